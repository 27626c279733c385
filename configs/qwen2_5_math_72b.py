"""The paper's 72B run: Qwen2.5-Math-72B, M0 → M4. A plan, **not yet reproduced**.

    stepjax run --config=configs/qwen2_5_math_72b.py:WEIGHTS,DATA --workdir=DIR

As qwen2_5_math_7b.py, which says what WEIGHTS and DATA are, for a slice v5p:4x4x8 (128
chips, 32 hosts). This is what `stepjax plan` says with libtpu 0.0.52. The time is
arithmetic at 40 % of the chips' peak; nothing was run:

    GiB per chip       SFT   DPO   candidates  judgments   M0 → M4
    v5p:4x4x8 (95.7)   9.9   9.9         39.6       49.4   299 chip-hours

With --config.mesh.tensor=8, training also fits v5e:16x16. Sampling does not: each host
holds the whole weights, 145 GB in bfloat16 or 75 GB with search.weights="int8", and its
4 chips have 68 GB. The paper's average accuracy over its six
benchmarks is 55.9 for M1 and 60.6 for M4.
"""

import pathlib
import runpy


def get_config(paths: str = "Qwen2.5-Math-72B,data"):
    """Returns the settings that differ from the 7B run's.

    Args:
      paths: folder of the weights, a comma, folder of the data files.
    """
    beside = pathlib.Path(__file__).with_name("qwen2_5_math_7b.py")
    c = runpy.run_path(str(beside))["get_config"](paths)
    c.model.hidden_size = 8192
    c.model.num_layers = 80
    c.model.num_heads = 64
    c.model.num_kv_heads = 8
    c.model.intermediate_size = 29568

    c.mesh.tensor = 4
    c.search.tensor = 4  # the chips of a host; the weights take 34 GiB of each
    c.search.slots = 128
    return c
