r"""PRM800K in its original schema (phase 1 and phase 2): what people said of steps.

A row holds question.problem and label.steps. Each of these step groups has completions
that people rated -1, 0 or +1, perhaps a step that a person wrote (human_completion),
and the index of the completion that the solution goes on with (chosen_completion).
The trunk of a row is what its solution went on with: the chosen completion or, where
none was chosen, the human one. Where neither is there, the trunk ends: the rest of the
row, if any, follows no known step and is left out.
"""

import reprlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from stepjax.initial_data.formats import fields, worked
from stepjax.prompts import Templates, marker
from stepjax.records import Comparison, Preference, Problem, Question, StepLabels

Neutral = Literal["+", "-", ""]


class _Group(NamedTuple):
    """One step of a row: all its completions, and the one that is on the trunk."""

    number: int  # from 1
    completions: list[tuple[str, int | None]]  # (text, rating)
    chosen: int | None
    human: str | None

    def pairs(self) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
        """Yields a completion rated 1 and one rated -1, each as (index, text).

        The two texts differ, and neither is empty.
        """
        for i, (good, first) in enumerate(self.completions):
            for j, (bad, second) in enumerate(self.completions):
                if (first, second) == (1, -1) and good != bad and good and bad:
                    yield (i, good), (j, bad)


def _completions(group: Any) -> list[tuple[str, int | None]]:
    if isinstance(group, dict) and group.get("completions", 0) is None:
        return []  # upstream has null where only a human wrote
    completions = []
    for completion in fields.field(group, "completions", list):
        text = fields.one_line(fields.field(completion, "text", str))
        rating = completion.get("rating")
        if isinstance(rating, bool) or rating not in (-1, 0, 1, None):
            raise ValueError(
                f"rating is {reprlib.repr(rating)}; expected -1, 0, 1 or null."
            )
        completions.append((text, rating))
    return completions


def _groups(row: dict[str, Any]) -> Iterator[_Group]:
    """Takes the step groups of a row, as far as a known step leads to them.

    Every group is checked, also those that are left out.
    """
    groups = []
    for number, item in enumerate(
        fields.field(fields.field(row, "label", dict), "steps", list), 1
    ):
        completions = _completions(item)
        chosen, human = item.get("chosen_completion"), None
        if chosen is not None:
            whole = isinstance(chosen, int) and not isinstance(chosen, bool)
            if not whole or not 0 <= chosen < len(completions):
                raise ValueError(
                    f"chosen_completion is {reprlib.repr(chosen)}; expected null or "
                    f"an index below {len(completions)}."
                )
        elif item.get("human_completion") is not None:
            written = fields.field(item, "human_completion", dict)
            human = fields.one_line(fields.field(written, "text", str))
        groups.append(_Group(number, completions, chosen, human))
    for group in groups:
        yield group
        if not _following(group):
            return


def _following(group: _Group) -> str | None:
    """Returns the text that the solution goes on with, if there is any."""
    if group.chosen is not None:
        return group.completions[group.chosen][0] or None
    return group.human or None


def _problem(row: dict[str, Any]) -> str:
    return fields.text(fields.field(row, "question", dict), "problem")


def question(row: dict[str, Any], name: str, templates: Templates) -> list[Question]:
    """Makes a question of a row."""
    return [Question(name, _problem(row))]


def problem(row: dict[str, Any], name: str, templates: Templates) -> list[Problem]:
    """Makes a benchmark item of a row that states its answer."""
    text = _problem(row)
    return [Problem(name, text, fields.text(row["question"], "ground_truth_answer"))]


def comparisons(
    row: dict[str, Any], name: str, templates: Templates
) -> list[Comparison]:
    """Makes pairwise judgments (EFT).

    In each step group the first completion rated +1 and the first one rated -1 whose
    texts differ make a pair, shown in both orders. Each step is put on one line.

    Returns:
      Two comparisons per pair, "NAME-3-ab" (verdict A) and "NAME-3-ba" (verdict B) of
      step 3 (from 1). The explanations are empty.
    """
    problem, made = _problem(row), []
    steps: tuple[str, ...] = ()
    for group in _groups(row):
        start = marker(templates, group.number)
        pair = next(group.pairs(), None)
        if pair:
            good, bad = (start + text for _, text in pair)
            one = f"{name}-{group.number}"
            made += [
                Comparison(f"{one}-ab", problem, steps, good, bad, "A"),
                Comparison(f"{one}-ba", problem, steps, bad, good, "B"),
            ]
        steps += (start + (_following(group) or ""),)
    return made


def _step(text: str, number: int, templates: Templates) -> str:
    r"""Makes the text of a step; "# Answer 7" at its end becomes a boxed answer."""
    before, heading, answer = text.rpartition("# Answer ")
    if heading:
        text = f"{before}{worked.closing(answer)}"
    return marker(templates, number) + text


def preferences(
    row: dict[str, Any], name: str, templates: Templates
) -> list[Preference]:
    r"""Makes a preference of every pair rated +1 and -1 within a step group.

    A pair of equal texts is left out. The heading "# Answer" at the end of a final
    step becomes "The answer is \boxed{...}.", as our solutions end.

    Returns:
      "NAME-3-0-2" of step 3 (from 1), completions 0 and 2 (from 0).
    """
    problem, made = _problem(row), []
    steps: tuple[str, ...] = ()
    for group in _groups(row):
        made += [
            Preference(
                f"{name}-{group.number}-{i}-{j}",
                problem,
                steps,
                _step(good, group.number, templates),
                _step(bad, group.number, templates),
            )
            for (i, good), (j, bad) in group.pairs()
        ]
        steps += (_step(_following(group) or "", group.number, templates),)
    return made


def labels(
    row: dict[str, Any], name: str, templates: Templates, neutral: Neutral = "+"
) -> list[StepLabels]:
    r"""Makes step labels: +1 becomes 1, -1 becomes 0.

    The trunk makes one row, with the ratings of its steps; a step that a person wrote
    has no label. Every other completion with a rating makes a row of its own: the trunk
    up to it, without labels, and the completion with its label. So each rating is
    there once. The heading "# Answer" becomes a boxed answer, as in `preferences`.

    Args:
      row: of PRM800K.
      name: of the row.
      templates: their step marker begins each step.
      neutral: what a rating of 0 becomes: "+" is 1, which arXiv 2305.20050 chose, "-"
        is 0, and "" is no label.

    Returns:
      "NAME" of the trunk, "NAME-3-2" of step 3 (from 1), completion 2 (from 0).
    """
    values = {1: 1, -1: 0, 0: {"+": 1, "-": 0, "": None}[neutral], None: None}
    problem, made = _problem(row), []
    steps: tuple[str, ...] = ()
    trunk: list[int | None] = []
    for group in _groups(row):
        for index, (text, rating) in enumerate(group.completions):
            label = values[rating]
            if index == group.chosen or label is None or not text:
                continue
            path = (*steps, _step(text, group.number, templates))
            made.append(
                StepLabels(
                    f"{name}-{group.number}-{index}",
                    problem,
                    path,
                    (None,) * len(steps) + (label,),
                )
            )
        following = _following(group)
        if following:
            steps += (_step(following, group.number, templates),)
            chosen = group.chosen
            rating = None if chosen is None else group.completions[chosen][1]
            trunk.append(values[rating])
    if any(label is not None for label in trunk):
        made.insert(0, StepLabels(name, problem, steps, tuple(trunk)))
    return made
