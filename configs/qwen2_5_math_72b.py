"""The paper's 72B run: Qwen2.5-Math-72B, M0 → M4.

stepjax run --config=configs/qwen2_5_math_72b.py:WEIGHTS,DATA --workdir=DIR --hosts=N
"""

import pathlib
import runpy


def get_config(where: str = "Qwen2.5-Math-72B,data"):
    """Returns the settings that differ from the 7B run's.

    Args:
      where: folder of the weights, a comma, folder of the data files.
    """
    beside = pathlib.Path(__file__).with_name("qwen2_5_math_7b.py")
    c = runpy.run_path(str(beside))["get_config"](where)
    c.model.hidden_size = 8192
    c.model.num_layers = 80
    c.model.num_heads = 64
    c.model.num_kv_heads = 8
    c.model.intermediate_size = 29568

    c.mesh.tensor = 4
    c.search.tensor = 4  # the chips of a host; whole weights take 34 GiB of each
    c.search.slots = 128
    return c
