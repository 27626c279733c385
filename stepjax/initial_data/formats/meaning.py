"""Refuses rows that have the right fields and mean nothing.

A row is checked once, when it is read, whatever its format: an EFT row whose two steps
are the same, an IFT row that never states its answer, or a problem without a visible
character would be trained on in silence. Errors are "reason; expected ...", without the
place of the row, which `sources.read_with` puts in front.
"""

from collections.abc import Iterator
from typing import Any

from stepjax import prompts, records
from stepjax.initial_data.formats import fields
from stepjax.prompts import Templates

LONGEST = 1_000_000  # characters of a text


def check(record: Any, templates: Templates) -> None:
    """Checks what holds for the rows of every format.

    Args:
      record: one of the types in `stepjax.records`, or a row with such fields.
      templates: the marker of their steps, and the form of a verdict.

    Raises:
      ValueError: for a blank id or problem; a text that holds the character NUL or is
        longer than `LONGEST`; steps without their markers; two candidates that are the
        same; and a verdict within a solution, the texts that are judged, or the
        explanation.
    """
    for name, text in _texts(record):
        if "\0" in text:
            raise ValueError(
                f"field {name!r} holds the character NUL; expected text without it."
            )
        if len(text) > LONGEST:
            raise ValueError(
                f"field {name!r} has {len(text):,} characters; expected at most "
                f"{LONGEST:,}."
            )
    for name in ("id", "problem"):
        fields.text({name: getattr(record, name)}, name)
    if hasattr(record, "steps"):
        for name, steps in _steps(record):
            try:
                prompts.check_steps(templates, steps)
            except ValueError as error:
                raise ValueError(f"field {name!r}: {error}") from error
    for pair in (("a", "b"), ("chosen", "rejected")):
        if hasattr(record, pair[0]):
            _check_pair(record, pair, templates)
    if isinstance(record, records.Solution):
        _check_solution(record.steps, templates)
    if hasattr(record, "verdict"):
        _check_explanation(record, templates)
    if hasattr(record, "score") and not record.steps:
        raise ValueError("field 'steps' is []; expected one step at least.")


def check_own(record: Any) -> None:
    r"""Checks what rows of our own format promise besides.

    Raises:
      ValueError: for an IFT row without steps, without a \boxed{} in its last step,
        with one before it, or with another answer in it than in its field "answer"; and
        for steps so far that hold a \boxed{}, which ends a solution.
    """
    steps = getattr(record, "steps", ())
    solved = isinstance(record, records.Solution)
    if solved and not steps:
        raise ValueError("field 'steps' is []; expected one step at least.")
    before = steps[:-1] if solved else steps
    if solved or isinstance(record, records.Comparison | records.Preference):
        for number, step in enumerate(before, 1):
            if prompts.boxed(step) is not None:
                raise ValueError(
                    f"step {number} holds \\boxed{{{prompts.boxed(step)[:40]}}} and "
                    "another step follows; expected it in the last step only, because "
                    "it ends a solution."
                )
    if not solved:
        return
    boxed = prompts.boxed(steps[-1])
    if boxed is None or fields.is_blank(boxed):
        raise ValueError(
            f"the last step is {steps[-1][:60]!r}, without an answer in \\boxed{{}}; "
            "expected one, because it ends a solution."
        )
    if _differ(boxed, record.answer):
        raise ValueError(
            f"field 'answer' is {record.answer[:60]!r}, and the last step holds "
            f"\\boxed{{{boxed[:60]}}}; expected the same answer in both."
        )


def _differ(boxed: str, answer: str) -> bool:
    """Whether a box holds another answer than the one that is stated."""
    if boxed.strip() == answer.strip():
        return False
    from stepjax.evaluation import answers  # and mpmath

    return not answers.equivalent(boxed, answer)


def _texts(record: Any) -> Iterator[tuple[str, str]]:
    """Yields name and text of everything in a record that is text."""
    for name, value in vars(record).items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((name, item) for item in value if isinstance(item, str))


def _steps(record: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the name of a field, and the steps up to the one that it holds."""
    yield "steps", record.steps
    for name in ("a", "b", "chosen", "rejected"):
        if hasattr(record, name):
            yield name, (*record.steps, getattr(record, name))


def _check_pair(record: Any, names: tuple[str, str], templates: Templates) -> None:
    first, second = (" ".join(getattr(record, name).split()) for name in names)
    if first == second:
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} are the same step, {first[:40]!r}; "
            "expected two steps."
        )
    judged = [("problem", record.problem)]
    judged += [("steps", step) for step in record.steps]
    judged += [(name, getattr(record, name)) for name in names]
    for name, text in judged:
        if verdict := prompts.held_verdict(templates, text):
            raise ValueError(
                f"field {name!r} holds the verdict {verdict!r}; expected it nowhere "
                "in what is judged, because the judge would learn to read it there."
            )


def _check_solution(steps: tuple[str, ...], templates: Templates) -> None:
    for step in steps:
        if verdict := prompts.held_verdict(templates, step):
            raise ValueError(
                f"field 'steps' holds the verdict {verdict!r} in {step[:60]!r}; "
                "expected no step with one, because searches refuse such steps. Leave "
                "out the row, or set prompts.verdict to a form that no step holds."
            )


def _check_explanation(record: Any, templates: Templates) -> None:
    text = record.explanation
    if any(prompts.verdict(templates, side) in text for side in "AB"):
        raise ValueError(
            f"field 'explanation' is {text[-40:]!r} and holds a verdict; expected it "
            "in the field 'verdict' only, because a judgment ends at the first one."
        )
    if text[:1].isspace():
        raise ValueError(
            f"field 'explanation' begins with {text[:10]!r}; expected no white space "
            "in front, because a judgment begins at the start of a line."
        )
