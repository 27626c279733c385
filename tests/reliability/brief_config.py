"""A run of seconds that has every phase of a run, for what is done to it many times."""

import pathlib
import runpy

TINY = pathlib.Path(__file__).parents[1] / "tiny_config.py"


def get_config():
    """Returns the settings of tiny_config.py with one iteration, and less of each."""
    c = runpy.run_path(str(TINY))["get_config"]()
    c.iterations = 1
    c.data.questions = (16,)
    c.data.test_count = 16
    c.eval.search_count = 8
    c.train.checkpoint_every = 10
    c.train.log_every = 5
    c.sft.phases[0].steps = 15
    c.sft.phases[1].steps = 25
    c.dpo.epochs = 2
    return c
