"""Step labels of ProcessBench, Math-Shepherd and TRL's stepwise supervision.

Each function takes one row apart: (row, name, templates) → records, where the name is
the record's id unless the row has one. PRM800K has a file of its own, `prm800k`.
"""

import re
import reprlib
from typing import Any

from stepjax.initial_data.formats import fields
from stepjax.prompts import Templates
from stepjax.records import StepLabels

TAG = "ки"  # ends every step of a Math-Shepherd row


def processbench(
    row: dict[str, Any], name: str, templates: Templates
) -> list[StepLabels]:
    """Makes step labels of {"problem", "steps", "label"}.

    The upstream label is the index (from 0) of the first wrong step. The steps before
    it get the label 1, it gets 0, and those after it get none, since ProcessBench does
    not say what they are. Without a wrong step (-1) all get 1. So the index of the
    label 0 is the upstream label.
    """
    steps = fields.steps(templates, fields.field(row, "steps", list))
    first = row.get("label")
    if type(first) is not int or not -1 <= first < len(steps):
        raise ValueError(
            f"field 'label' is {reprlib.repr(first)} for {len(steps)} steps; expected "
            "the index of the first wrong step, or -1."
        )
    right = len(steps) if first < 0 else first
    labels = ((1,) * right + (0,) + (None,) * len(steps))[: len(steps)]
    identity = fields.identity(row, name)
    return [StepLabels(identity, fields.text(row, "problem"), steps, labels)]


def math_shepherd(
    row: dict[str, Any], name: str, templates: Templates
) -> list[StepLabels]:
    """Makes step labels of {"input", "label"}.

    The input is the problem and then "Step 1: ..." and so on, each step with the tag
    `TAG` at its end; the label is the same text with "+" or "-" in place of the tags.
    Calculator marks ("<<3+5=8>>") are removed, as from GSM8K's solutions.

    Raises:
      ValueError: when the two texts differ beyond the tags, when the label has neither
        "+" nor "-" in place of a tag, or when a step does not begin with its marker.
    """
    *pieces, end = fields.text(row, "input").split(TAG)
    label = fields.text(row, "label")
    labels, at = [], 0
    for piece in pieces:
        sign = label[at + len(piece) : at + len(piece) + 1]
        if label[at : at + len(piece)] != piece or sign not in ("+", "-"):
            raise ValueError(
                f"the label of step {len(labels) + 1} is {sign!r} behind "
                f"{label[at : at + len(piece)][-30:]!r}; expected + or - behind "
                f"{piece[-30:]!r}, as in the input."
            )
        labels.append(1 if sign == "+" else 0)
        at += len(piece) + 1
    if not pieces or end.strip() or label[at:].strip():
        raise ValueError(
            f"the input ends with {(end or label[at:])[-30:]!r}; expected the tag "
            f"{TAG!r} after each step, also after the last one."
        )
    problem, first, text = pieces[0].rpartition("Step 1:")
    if not first or not problem.strip():
        raise ValueError(
            f"the input begins with {pieces[0][:40]!r}; expected the problem and then "
            "'Step 1:'."
        )
    texts = [first + text, *pieces[1:]]
    for number, piece in enumerate(texts, 1):
        if not re.match(rf"\s*Step {number}:", piece):
            raise ValueError(
                f"step {number} begins with {piece.strip()[:30]!r}; expected "
                f"'Step {number}:'."
            )
    steps = fields.steps(templates, [fields.without_calculator(t) for t in texts])
    identity = fields.identity(row, name)
    return [StepLabels(identity, problem.strip(), steps, tuple(labels))]


def stepwise(row: dict[str, Any], name: str, templates: Templates) -> list[StepLabels]:
    """Makes step labels of TRL's stepwise supervision: {"prompt", "completions",
    "labels"}, with a label true or false, or a number from 0 to 1, per completion.
    """
    steps = fields.steps(templates, fields.field(row, "completions", list))
    labels = tuple(
        int(label) if isinstance(label, bool) else label
        for label in fields.field(row, "labels", list)
    )
    problem = fields.text(row, "prompt").strip()
    return [StepLabels(fields.identity(row, name), problem, steps, labels)]
