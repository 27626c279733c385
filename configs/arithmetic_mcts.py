"""The quickstart, but the run finds its own EFT rows: PRM, tree search, teacher.

    stepjax run --config=configs/arithmetic_mcts.py --workdir=DIR --config.seed=41

Took 12.5 minutes on 2 cores of an AMD EPYC, most of it for the PRM, before the first
phase of SFT became longer (commit a26c1c8). The IFT rows, the step labels
and the teacher's explanations are made up; the pairs of steps that become EFT rows are
what a policy writes and a PRM tells apart (docs/initial_data.md). Results:
docs/results.md.
"""

import pathlib
import runpy

from stepjax import config

_QUICKSTART = pathlib.Path(__file__).with_name("quickstart.py")


def get_config():
    """Returns the settings of the quickstart with other EFT rows."""
    c = runpy.run_path(str(_QUICKSTART))["get_config"]()
    c.data.make_eft = True
    c.data.eft_count = 0  # all that the filter keeps
    rate = {"b2": 0.98, "weight_decay": 0.05}
    c.mcts.phase = config.phase(
        "policy",
        eft=0.0,
        epochs=0,
        steps=200,  # so few that it still gets steps wrong that it could know
        optimizer=config.optimizer(4e-3, "cosine", **rate),
    )
    c.prm.labels_count = 8000
    c.prm.heldout_count = 300
    c.prm.from_policy = True
    c.prm.language_weight = 0.1
    c.prm.phase = config.phase(
        "prm",
        ift=0.0,
        epochs=0,
        steps=6500,
        batch_size=64,
        optimizer=config.optimizer(2e-3, "cosine", warmup_steps=50, **rate),
    )
    c.mcts.questions = 2000
    c.mcts.width = 8
    c.mcts.temperature = 1.2
    c.mcts.top_p = 1.0
    c.mcts.iterations = 16
    c.mcts.pairs_per_layer = 2
    c.mcts.remember_tokens = 512
    c.teacher.backend = "world"
    c.teacher.undecided_margin = 1.0  # see `eft.keep`: two wrong steps
    return c
