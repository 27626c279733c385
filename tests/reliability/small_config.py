"""A run of a few seconds that has every phase once, for the harness here."""

import pathlib
import runpy

_TINY = pathlib.Path(__file__).parents[1] / "tiny_config.py"


def get_config():
    """Returns the settings of `tiny_config`, with one iteration and few of all."""
    c = runpy.run_path(str(_TINY))["get_config"]()
    c.iterations = 1
    c.data.questions = (12,)
    c.data.heldout_count = 4
    c.data.test_count = 8
    c.eval.search_count = 4
    c.train.checkpoint_every = 20
    c.dpo.epochs = 1
    return c
