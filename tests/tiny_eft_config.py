"""A run of seconds that makes its EFT rows: ``--config=tests/tiny_eft_config.py``."""

import pathlib
import runpy

from stepjax import config

_TINY = pathlib.Path(__file__).with_name("tiny_config.py")


def get_config():
    """Returns the settings of `tiny_config`, with a PRM, tree search and a teacher."""
    c = runpy.run_path(str(_TINY))["get_config"]()
    c.iterations = 1
    c.data.questions = (16,)
    c.data.make_eft = True
    c.data.eft_count = 0
    rate = config.optimizer(1e-2, b2=0.98)
    sizes = {"epochs": 0, "batch_size": 16, "optimizer": rate}
    c.prm.labels_count, c.prm.heldout_count = 64, 12
    c.prm.phase = config.phase("prm", ift=0.0, steps=20, **sizes)
    c.mcts.phase = config.phase("policy", eft=0.0, steps=150, **sizes)
    c.mcts.questions = 40
    c.mcts.width = 4
    c.mcts.temperature = 0.9  # at 1, a draw falls on a border, see test_make_eft
    c.mcts.top_p = 1.0
    c.mcts.iterations = 4
    c.mcts.max_steps = 3
    c.mcts.remember_tokens = 128
    c.teacher.backend = "world"
    c.teacher.undecided_margin = 1.0  # also keeps pairs of two wrong steps
    return c


def changed(**changes):
    """Returns these settings with some changed: setting, dots as "__" → value."""
    c = get_config()
    values = {name.replace("__", "."): value for name, value in changes.items()}
    c.update_from_flattened_dict(values)
    return c
