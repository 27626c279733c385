"""Last-digit programs backwards on a laptop CPU: nothing is planted, M1 → … → M4.

    stepjax run --config=configs/backwards.py --workdir=DIR

The model and the loop are those of the quickstart. What the world is, and what the loop
gains in it so far: docs/backwards.md.
"""

import pathlib
import runpy

_QUICKSTART = pathlib.Path(__file__).with_name("quickstart.py")


def get_config():
    """Returns the settings of the quickstart in another world."""
    c = runpy.run_path(str(_QUICKSTART))["get_config"]()
    c.data.world = "backwards"
    c.data.guessed_share = 0.0
    c.data.unseen_blocks = 0
    c.data.taught_results = 6
    c.data.unseen_results = 1
    c.data.ift_count = 2000
    c.data.eft_count = 5000

    c.train.row_length = 144
    c.sft.verdict_words = ()
    judge, mixed = c.sft.phases
    judge.stop_loss = 0.02
    mixed.steps = 600
    mixed.stop_loss = 0.03  # before M1 is sure of steps that it does not know

    c.search.width = 8
    c.search.temperature = 1.3
    c.search.redraw = 0.01  # other digits, where M1 is nearly sure of a wrong one
    c.judge.max_tokens = 48
    c.srlm.max_tokens = 80

    c.eval.search_count = 100
    c.dpo.epochs = 2
    c.dpo.optimizer.learning_rate = 3e-4
    return c
