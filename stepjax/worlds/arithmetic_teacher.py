"""The arithmetic world as a teacher: its own judgments, as a file to replay.

So its pairs go the same way as those of a model or a server: prompt, text of an answer,
verdict read from the text, filter.
"""

from collections.abc import Sequence
from typing import Any

from stepjax import prompts
from stepjax.initial_data import eft
from stepjax.prompts import Templates
from stepjax.records import Preference
from stepjax.worlds import arithmetic as world
from stepjax.worlds import arithmetic_data


def answers(pairs: Sequence[Preference], templates: Templates) -> list[dict[str, Any]]:
    """Returns the answers to ``eft.requests(pairs, templates)``.

    This is gold knowledge: only for making SFT data.

    Args:
      pairs: two next steps each. Where they are the same, or none is due (after the
        end, or after an unreadable step), the answer says so and has no verdict.
      templates: the prompt texts.

    Returns:
      Rows of a file for `teacher.replay`, in the order of the prompts.

    Raises:
      ValueError: a problem is not of this world.
    """
    texts: list[str] = []
    for pair in pairs:
        if world.right_step(pair.problem, pair.steps) is None:
            texts += ["No step is due."] * 2
            continue
        if pair.chosen == pair.rejected:
            texts += ["The two steps are the same."] * 2
            continue
        for row in arithmetic_data.comparison_from(
            pair.id, pair.problem, pair.steps, pair.chosen, pair.rejected
        ):
            texts.append(row.explanation + prompts.verdict(templates, row.verdict))
    return eft.replay_rows(pairs, texts, templates)
