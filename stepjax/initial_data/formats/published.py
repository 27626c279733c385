r"""What rows of published benchmarks have besides a problem and an answer.

- SVAMP tells its problem in two fields: "Body" is the story, "Question" what is asked.
- OlympiadBench has its answers in the list "final_answer". "unit" is their unit, which
  is not in the answer, "error" how far a number may be from the gold one: one for all
  answers or, with commas, one for each. For tuples it does not hold. "context" stands
  before the question, in physics only.

The other ones have no such fields. GSM8K ends its solution with "#### N", MATH has its
answer in the last \boxed{} of "solution", MATH-500, Gaokao2023En, AIME 2024 and AMC
2023 in "answer"; see `own.answer`.
"""

from typing import Any

from stepjax.initial_data.formats import fields

FIELDS = ("body", "context", "error", "answer_type", "is_multiple_answer")


def text(row: dict[str, Any]) -> str:
    """Returns the whole text of a problem, whose row has our names of fields.

    Raises:
      ValueError: when it is missing or blank.
    """
    asked = fields.text(row, "problem")
    if "body" in row:
        story = fields.text(row, "body").strip()
        return f"{story}{'' if story[-1] in '.!?,;:' else '.'} {asked}"
    if is_olympiad(row) and row.get("context"):
        return f"{fields.text(row, 'context').strip()}\n{asked}"
    return asked


def is_olympiad(row: dict[str, Any]) -> bool:
    """Whether a row is one of OlympiadBench: others may use its names otherwise."""
    return "final_answer" in row and "answer_type" in row


def grading(row: dict[str, Any]) -> dict[str, str]:
    """Returns what the row says of how its answer is graded, by our names.

    Raises:
      ValueError: when a field holds neither a text nor a number.
    """
    names = {"tolerance": "tolerance", "unit": "unit"}
    if is_olympiad(row):
        names["error"] = "tolerance"
        if "Tuple" in fields.text({"answer_type": "", **row}, "answer_type"):
            names.pop("error")
    return {
        ours: fields.answer(row, theirs)
        for theirs, ours in names.items()
        if row.get(theirs) is not None
    }
