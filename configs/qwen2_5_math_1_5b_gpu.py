"""Qwen2.5-Math-1.5B, all parameters, on one GPU of 80 GB. A plan, **not yet run**.

    stepjax run --config=configs/qwen2_5_math_1_5b_gpu.py:WEIGHTS,DATA --workdir=DIR

WEIGHTS is a Hugging Face directory. DATA is a folder with ift.jsonl, eft.jsonl,
questions.jsonl and test.jsonl (docs/data.md). The method's settings are the paper's,
whose models are larger; only what decides memory differs from the 7B file.

`stepjax plan --config=configs/qwen2_5_math_1_5b_gpu.py --gpu=80GB` says, in GiB, by
arithmetic: SFT and DPO 32.0, candidates 10.1, judgments 21.0, the largest prefill 20.2.
JAX takes 60 of the 80 unless it is told otherwise, so all of it fits. On 40 GB, set
XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 (36 GiB).
"""

import pathlib
import runpy

_PAPER = pathlib.Path(__file__).with_name("qwen2_5_math_7b.py")


def get_config(paths: str = "Qwen2.5-Math-1.5B,data"):
    """Returns the settings that differ from the default.

    Args:
      paths: folder of the weights, a comma, folder of the data files.
    """
    c = runpy.run_path(str(_PAPER))["get_config"](paths)
    # The shape, for plans without the weights; config.json beside them counts.
    c.model.vocab_size = 151936
    c.model.hidden_size = 1536
    c.model.num_heads = 12
    c.model.num_kv_heads = 2
    c.model.intermediate_size = 8960
    c.model.tie_embeddings = True

    c.mesh.data, c.mesh.fsdp, c.search.tensor = -1, 1, 0  # as without a mesh
    c.train.micro_batches = 4
    c.judge.rows = 10
    return c
