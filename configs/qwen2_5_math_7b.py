"""The paper's 7B run: Qwen2.5-Math-7B, M0 → M4.

stepjax run --config=configs/qwen2_5_math_7b.py:WEIGHTS,DATA --workdir=DIR
"""

from stepjax import config


def get_config(where: str = "Qwen2.5-Math-7B,data"):
    """Returns the settings that differ from the default.

    Args:
      where: folder of the weights, a comma, folder of the data files.
    """
    weights, _, data = where.partition(",")
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
