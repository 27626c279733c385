"""SmolLM2-135M-Instruct on word problems, on one GPU of 24 GB. **Not yet run**.

    stepjax run --config=configs/smollm2_gpu.py:MODEL,DATA --workdir=DIR

MODEL is what model.init may be: gguf:FILE or hf:DIR. DATA is a folder with
word_problems/mawps_asdiv_train.jsonl and svamp_test.jsonl. docs/real_model.md says
where both come from, and what the same run gives on a CPU. Only what suits a GPU
differs from configs/smollm2_word_problems.py: more problems in flight, and more
judgments together.

`stepjax plan --config=configs/smollm2_gpu.py --gpu=24GB` says, in GiB, by arithmetic:
SFT 2.4, DPO 3.2, candidates 3.6, judgments 8.5, the largest prefill 5.0.
JAX takes 18 of the 24 unless it is told otherwise, so all of it fits.
"""

import pathlib
import runpy

_CPU = pathlib.Path(__file__).with_name("smollm2_word_problems.py")


def get_config(paths: str = "gguf:SmolLM2-135M-Instruct.Q4_1.gguf,data"):
    """Returns the settings of smollm2_word_problems.py, with those of a GPU.

    Args:
      paths: model.init, a comma, folder of the data files.
    """
    model, _, data = paths.rpartition(",")
    if not model or not data:
        raise ValueError(f"{paths!r} after the colon; expected MODEL,DATA.")
    c = runpy.run_path(str(_CPU))["get_config"](data)
    c.model.init = model
    # The shape, for plans without the weights; the model's own counts.
    c.model.vocab_size = 49152
    c.model.hidden_size = 576
    c.model.num_layers = 30
    c.model.num_heads = 9
    c.model.num_kv_heads = 3
    c.model.head_dim = 64
    c.model.intermediate_size = 1536
    c.model.qkv_bias = False
    c.model.tie_embeddings = True
    c.search.slots = 128
    c.judge.rows = 6
    return c
