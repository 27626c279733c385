r"""Data sets of problems with solutions: GSM8K, MATH, NuminaMath-CoT, benchmarks.

Each function takes one row apart: (row, name, templates) → records, where the name is
the record's id unless the row has one. `sources` in this folder lists them by format,
and says how files are read with them.
"""

import re
from typing import Any

from stepjax import prompts
from stepjax.initial_data.formats import fields
from stepjax.prompts import Templates
from stepjax.records import Problem, Question, Solution, Worked


def closing(answer: str) -> str:
    r"""Returns the sentence that ends a solution: "The answer is \boxed{7}."."""
    return f"The answer is \\boxed{{{answer}}}."


def _gsm8k(row: dict[str, Any]) -> tuple[str, list[str], str]:
    """Takes an upstream GSM8K row apart: problem, lines of reasoning, answer."""
    problem, text = fields.text(row, "question"), fields.field(row, "answer", str)
    reasoning, _, last = text.rstrip().rpartition("\n")
    final = re.fullmatch(r"#### *(\S+)", last)
    if not final:
        raise ValueError(
            f"the last line of the answer is {last[:40]!r}; expected '#### N'."
        )
    lines = [fields.without_calculator(line).strip() for line in reasoning.split("\n")]
    answer = final[1].replace(",", "")
    lines = [line for line in lines if line]
    lines[-1:] = [f"{lines[-1]} {closing(answer)}" if lines else closing(answer)]
    return problem, lines, answer


def gsm8k_solution(
    row: dict[str, Any], name: str, templates: Templates
) -> list[Solution]:
    r"""Makes a step-by-step solution (IFT) of {"question", "answer"}.

    One line of reasoning is one step. The calculator marks "<<48/2=24>>" and empty
    lines are removed; the last step gets "The answer is \boxed{N}." at its end. The
    answer is N without thousands commas.
    """
    problem, lines, answer = _gsm8k(row)
    return [Solution(name, problem, prompts.numbered(templates, lines), answer)]


def gsm8k_worked(row: dict[str, Any], name: str, templates: Templates) -> list[Worked]:
    """Makes an uncut solution; its lines are the steps of `gsm8k_solution`."""
    problem, lines, answer = _gsm8k(row)
    return [Worked(name, problem, "\n".join(lines), answer)]


def gsm8k_question(
    row: dict[str, Any], name: str, templates: Templates
) -> list[Question]:
    """Makes a question, without the answer."""
    return [Question(name, fields.text(row, "question"))]


def gsm8k_problem(
    row: dict[str, Any], name: str, templates: Templates
) -> list[Problem]:
    """Makes a benchmark item; a row of {"id", "problem", "answer"} will do as well."""
    if row.get("question") is None and row.get("problem") is not None:
        return problem(row, name, templates)
    text, _, answer = _gsm8k(row)
    return [Problem(name, text, answer)]


def question(row: dict[str, Any], name: str, templates: Templates) -> list[Question]:
    """Makes a question of {"problem"} and, if there, "id"; other fields are ignored."""
    return [Question(fields.identity(row, name), asked(row))]


def problem(row: dict[str, Any], name: str, templates: Templates) -> list[Problem]:
    """Makes a benchmark item of {"problem", "answer"} and, if there, "id"."""
    identity = fields.identity(row, name)
    answer = fields.answer(row)  # a few benchmarks have "" for a proof
    return [Problem(identity, asked(row), answer)]


def asked(row: dict[str, Any]) -> str:
    """Takes the text of the problem: the field "problem", or else "question"."""
    other = row.get("problem") is None and row.get("question") is not None
    return fields.text(row, "question" if other else "problem")


def worked(row: dict[str, Any], name: str, templates: Templates) -> list[Worked]:
    r"""Makes an uncut solution of {"problem", "solution"}: MATH, NuminaMath-CoT.

    The answer is the field "answer" or, where it is missing, what the last \boxed{} of
    the solution holds; "" without either, as in a proof. Further fields ("level",
    "type", "source", "messages") are ignored.
    """
    solution = fields.text(row, "solution")
    if row.get("answer") is None:
        answer = prompts.boxed(solution) or ""
    else:
        answer = fields.answer(row)
    identity = fields.identity(row, name)
    return [Worked(identity, asked(row), solution, answer)]


def worked_problem(
    row: dict[str, Any], name: str, templates: Templates
) -> list[Problem]:
    r"""Makes a benchmark item of {"problem", "solution"}; the answer as in `worked`.

    Raises:
      ValueError: also where the solution has no answer, as in a proof.
    """
    (whole,) = worked(row, name, templates)
    if not whole.answer.strip():
        raise ValueError(
            "no answer; expected the field 'answer', or a \\boxed{} in the solution."
        )
    return [Problem(whole.id, whole.problem, whole.answer)]
