"""Runs that can be stopped 20 times in each of their phases."""

import pathlib
import runpy

_TESTS = pathlib.Path(__file__).parents[1]


def get_config(initial_data=""):
    """Returns the settings of a tiny run with more and smaller units of work.

    Args:
      initial_data: "initial_data" for a run that makes its EFT rows.
    """
    name = "tiny_eft_config.py" if initial_data else "tiny_config.py"
    c = runpy.run_path(str(_TESTS / name))["get_config"]()
    c.iterations = 1
    c.data.questions = (64,)
    c.data.heldout_count = 192
    c.data.test_count = 480
    c.eval.search_count = 48
    c.search.slots = 2
    c.train.checkpoint_every = 2
    c.train.log_every = 2
    c.sft.phases[0].steps = 60
    c.sft.phases[1].steps = 90
    c.dpo.batch_size = 2
    c.dpo.epochs = 5
    if initial_data:
        c.data.ift_count = 128
        c.prm.labels, c.prm.phase.steps = "rollouts", 90
        c.rollouts.samples, c.rollouts.max_tokens = 3, 24
        c.rollouts.temperature = 1.0
        c.mcts.questions = 60
    return c
