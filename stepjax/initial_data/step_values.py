"""Values of a solution's beginnings, and the labels and pairs of steps they give.

The value of a solution's first steps is the share of completions of them that reach the
right answer (`stepjax.initial_data.rollouts` estimates it). What a step is worth is how
much it changes that value.
"""

import dataclasses
import reprlib

from stepjax import records
from stepjax.records import Preference, StepLabels


@dataclasses.dataclass(frozen=True)
class StepValues:
    """Solutions of a problem with the value of each of their beginnings.

    `records.write_jsonl` and `records.read_jsonl` write and read it.

    Attributes:
      id: name of the problem.
      problem: text of the problem.
      solutions: of each solution the text of each step, from its marker on.
      values: of each solution one number per beginning, from no step to all steps: the
        share of completions that reach the right answer. Of a finished solution it is
        1 or 0. None where the beginning did not fit into the context.

    Raises:
      ValueError: not every solution has one number from 0 to 1, or None, more than it
        has steps.
    """

    id: str
    problem: str
    solutions: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float | None, ...], ...]

    def __post_init__(self):
        for name, kind, usable in (
            ("solutions", "texts", lambda value: isinstance(value, str)),
            ("values", "numbers from 0 to 1 or null", records.is_share_or_none),
        ):
            rows = getattr(self, name)
            if not _is_list(rows) or not all(
                _is_list(row) and all(map(usable, row)) for row in rows
            ):
                raise ValueError(
                    f"field {name!r} is {reprlib.repr(rows)}; expected one list of "
                    f"{kind} per solution."
                )
            object.__setattr__(self, name, tuple(map(tuple, rows)))
        steps, numbers = (list(map(len, x)) for x in (self.solutions, self.values))
        if numbers != [count + 1 for count in steps]:
            raise ValueError(
                f"field 'values' has {numbers} numbers for solutions of {steps} steps; "
                "expected one number more than steps."
            )


def _is_list(value) -> bool:
    return isinstance(value, list | tuple)


def labels(row: StepValues, *, hard: bool = False) -> list[StepLabels]:
    """Returns the labels of the steps of each solution.

    The label of a step is how much of the value it keeps: the value after it divided by
    the value before it, 1 at most. A step that keeps the chance of a right answer has
    label 1, one that destroys it 0. Where the value before the step is 0, it has no
    label, since nothing can be said of it.

    Args:
      row: from `values`.
      hard: take the hard estimate of Math-Shepherd (arXiv 2312.08935, section 3.3)
        instead: 1 if at least one completion after the step is right, otherwise 0. Then
        the steps after a mistake have label 0.

    Returns:
      One row per solution with a label, "ID-N" with N from 1.
    """
    made = []
    for number, (steps, value) in enumerate(
        zip(row.solutions, row.values, strict=True), 1
    ):
        found = tuple(
            _label(before, after, hard)
            for before, after in zip(value, value[1:], strict=False)
        )
        if any(label is not None for label in found):
            made.append(StepLabels(f"{row.id}-{number}", row.problem, steps, found))
    return made


def _label(before: float | None, after: float | None, hard: bool) -> float | None:
    if after is None:
        return None
    if hard:
        return float(after > 0)
    return min(1.0, after / before) if before else None


def pairs(row: StepValues, *, margin: float) -> list[Preference]:
    """Returns pairs of next steps after the same steps, whose values differ clearly.

    Args:
      row: from `values`, with several solutions.
      margin: least difference of the two values, above 0 and at most 1.

    Returns:
      One pair for each beginning after which solutions go on differently: the next step
      of the highest value and that of the lowest, if they differ by the margin. Its id
      is "ID-N-M": first solution with this beginning, and number of the step, from 1.

    Raises:
      ValueError: for a margin out of range.
    """
    if not 0 < margin <= 1:
        raise ValueError(
            f"margin={margin}; expected a number above 0 and at most 1, as values are "
            "shares of right completions."
        )
    numbers: dict[tuple[str, ...], int] = {}
    following: dict[tuple[str, ...], dict[str, float]] = {}
    for number, (steps, value) in enumerate(
        zip(row.solutions, row.values, strict=True), 1
    ):
        for count, step in enumerate(steps):
            numbers.setdefault(steps[:count], number)
            if value[count + 1] is not None:
                known = following.setdefault(steps[:count], {})
                known.setdefault(step, value[count + 1])
    made = []
    for before, known in following.items():
        best, worst = max(known, key=known.get), min(known, key=known.get)
        if known[best] - known[worst] >= margin:
            name = f"{row.id}-{numbers[before]}-{len(before) + 1}"
            made.append(Preference(name, row.problem, before, best, worst))
    return made
