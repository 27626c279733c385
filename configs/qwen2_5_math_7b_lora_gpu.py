"""Qwen2.5-Math-7B with adapters (LoRA) on one GPU of 80 GB. A plan, **not yet run**.

    stepjax run --config=configs/qwen2_5_math_7b_lora_gpu.py:WEIGHTS,DATA --workdir=DIR

WEIGHTS and DATA are those of configs/qwen2_5_math_7b.py, whose settings these are but
for what fits one card. The paper trains all parameters; with adapters the base is held
once, in bfloat16, and each model is some million numbers beside it. Rank and learning
rates are usual ones for adapters, and nobody has tuned them for this method.

`stepjax plan --config=configs/qwen2_5_math_7b_lora_gpu.py --gpu=80GB` says, in GiB, by
arithmetic: SFT 20.9, DPO 20.8, candidates 21.5, judgments 34.5. The weights are rounded
to bfloat16 while they are read, so they take no more before training begins. JAX takes
60 of the 80 unless it is told otherwise, so all of it fits.
"""

import pathlib
import runpy

_PAPER = pathlib.Path(__file__).with_name("qwen2_5_math_7b.py")


def get_config(paths: str = "Qwen2.5-Math-7B,data"):
    """Returns the settings that differ from the default.

    Args:
      paths: folder of the weights, a comma, folder of the data files.
    """
    c = runpy.run_path(str(_PAPER))["get_config"](paths)
    c.mesh.data, c.mesh.fsdp, c.search.tensor = -1, 1, 0  # as without a mesh
    c.lora.rank, c.lora.alpha = 32, 64.0
    for phase in c.sft.phases:
        phase.optimizer.learning_rate = 1e-4
    c.dpo.optimizer.learning_rate = 1e-5
    c.train.micro_batches = 8
    c.search.slots = 16
    c.judge.rows = 10
    return c
