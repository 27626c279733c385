"""A run that can be stopped 20 times in each of its phases."""

import pathlib
import runpy

TINY = pathlib.Path(__file__).parents[1] / "tiny_config.py"


def get_config():
    """Returns the settings of tiny_config.py with more and smaller units of work."""
    c = runpy.run_path(str(TINY))["get_config"]()
    c.iterations = 1
    c.data.questions = (64,)
    c.data.heldout_count = 96
    c.data.test_count = 192
    c.eval.search_count = 48
    c.search.slots = 2
    c.train.checkpoint_every = 2
    c.train.log_every = 2
    c.sft.phases[0].steps = 60
    c.sft.phases[1].steps = 90
    c.dpo.batch_size = 2
    c.dpo.epochs = 5
    return c
