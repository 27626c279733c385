"""The paper's 7B run: Qwen2.5-Math-7B, M0 → M4. A plan, **not yet reproduced**.

    stepjax run --config=configs/qwen2_5_math_7b.py:WEIGHTS,DATA --workdir=DIR

WEIGHTS is a Hugging Face directory (local, or gs://BUCKET/...). DATA is a folder with
ift.jsonl, eft.jsonl, questions.jsonl and test.jsonl (docs/data.md); the paper's own
files are not part of this repository. On a slice of N hosts each host runs this with
--hosts=N, which tpu_scripts/run.sh does.

The settings are the paper's where it states them (`stepjax.config`). With libtpu
0.0.52, `stepjax plan --config=configs/qwen2_5_math_7b.py --topology=...` says this.
The times are arithmetic at 40 % of the chips' peak; nothing was run:

    GiB per chip       SFT   DPO   candidates  judgments   M0 → M4
    v5p:2x2x2 (95.7)  17.9  17.8          5.5       15.8    15 chip-hours
    v5e:4x4   (15.8)   9.1   9.0          4.6        9.6    42 chip-hours

The smallest slices that fit are v5p:2x2x1 (4 chips) and v5e:4x4 (16 chips). The paper's
average accuracy over its six benchmarks is 51.3 for M1 and 55.7 for M4.
"""

from stepjax import config


def get_config(paths: str = "Qwen2.5-Math-7B,data"):
    """Returns the settings that differ from the default.

    Args:
      paths: folder of the weights, a comma, folder of the data files.
    """
    weights, _, data = paths.partition(",")
    if not weights or not data:
        raise ValueError(f"{paths!r} after the colon; expected WEIGHTS,DATA.")
    c = config.default()
    c.data.ift = f"{data}/ift.jsonl"
    c.data.eft = f"{data}/eft.jsonl"
    c.data.heldout_count = 250  # problems, two rows each
    c.data.question_file = f"{data}/questions.jsonl"
    c.data.test = f"{data}/test.jsonl"

    c.model.init = f"hf:{weights}"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    # The shape, for plans without the weights; config.json beside them counts.
    c.model.vocab_size = 152064
    c.model.hidden_size = 3584
    c.model.num_layers = 28
    c.model.num_heads = 28
    c.model.num_kv_heads = 4
    c.model.head_dim = 128
    c.model.intermediate_size = 18944

    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.search.tensor = 4  # 4 key/value heads: at most 4 ways
    c.train.row_length = 2304  # context 1792 and two steps of 256
    return c
