"""Settings that could each be right, and together can not."""

import pytest
from tiny_config import changed

from stepjax import config
from stepjax.run import ranges


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"search.temperature": 0.0},
            "search.temperature=0.0; expected above 0, or all candidates of a step",
        ),
        ({"search.temperature": 0.0, "search.propose_by": "module:function"}, ""),
        ({"search.redraw": 0.01}, ""),
        (
            {"search.redraw": 0.01, "search.propose_by": "module:function"},
            "search.redraw=0.01; expected 0 with search.propose_by='module:function'",
        ),
        (
            {"search.context_tokens": 64, "search.max_step_tokens": 64},
            "search.max_step_tokens=64; expected less than search.context_tokens=64",
        ),
        (
            {"search.width": 3, "pairs.min_margin": 5},
            "pairs.min_margin=5.0; expected at most 4, the largest difference of two",
        ),
        ({"search.width": 3, "pairs.min_margin": 4}, ""),
        (  # two of three votes for one step and one for the other would make no pair
            {"judge.score": "pointwise", "judge.votes": 3, "judge.temperature": 1.0},
            "pairs.min_margin=1.0; expected below 1 with judge.score='pointwise' and "
            "judge.votes=3, whose scores are shares of votes from 0 to 1; 0 keeps all",
        ),
        ({"judge.score": "pointwise"}, ""),
        (
            {"search.width": 3, "judge.score": "single", "pairs.min_margin": 3},
            "pairs.min_margin=3.0; expected at most 2, the largest difference of two",
        ),
        (
            {"dpo.optimizer.learning_rate": 1.0, "dpo.optimizer.weight_decay": 1.0},
            "dpo.optimizer.learning_rate, dpo.optimizer.weight_decay=(1.0, 1.0); ex",
        ),
        (
            {"dpo.updates": (9, 5), "dpo.optimizer.warmup_steps": 5},
            "dpo.optimizer.warmup_steps=5; expected less than the 5 updates, or it",
        ),
        ({"dpo.updates": (9, 5), "dpo.optimizer.warmup_steps": 4}, ""),
        (
            {"dpo.optimizer.b2": 0.99999999},
            "dpo.optimizer.b2=0.99999999; expected 0 to below 1 (float32 takes it for",
        ),
        (
            {"judge.temperature": 1e-40},
            "judge.temperature=1e-40; expected 0 to 100 (a number below 1e-30 is taken",
        ),
        (
            {"sft.verdict_weight": 0.0},
            "sft.verdict_weight=0.0; expected above 0 and at most 1,000.",
        ),
        (
            {"tokenizer": "a\0b"},
            "tokenizer='a\\x00b'; expected text that UTF-8 can hold",
        ),
        (
            {"prompts.solve": "\ud800{problem}\n"},
            "prompts.solve='\\ud800{problem}\\n'; ex",
        ),
        (
            {"data.test": "x" * 100_001},
            "(100,003 characters); expected text that UTF-8",
        ),
        ({"prompts.chat": "x" * 5000}, "xxx... (5,002 characters); expected one of"),
    ],
)
def test_settings_that_do_not_fit_together(changes, words):
    c = changed()
    c.update_from_flattened_dict(changes)
    found = ranges.wrong(c)
    assert len(found) == bool(words) and all(words in line for line in found)


def test_a_warmup_that_outlasts_its_phase():
    c = changed()
    rate = config.optimizer(1e-3, warmup_steps=10)
    c.sft.phases = (config.phase("a", epochs=0, steps=10, optimizer=rate),)
    (said,) = ranges.wrong(c)
    assert said.startswith(
        "sft.phases[0].optimizer.warmup_steps=10; expected less than"
    )
