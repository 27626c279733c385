"""Files on which a judge is measured: what they hold, and how a judge is graded.

Three kinds of files are known by their rows: PRM800K and ProcessBench as they are
published, and our own comparisons (`records.Comparison`).

A *pair* is a right and a wrong next step behind the same problem and the same steps.
It is judged in both orders.

- PRM800K has several completions of a step. The first one rated +1 and the first one
  rated -1 of each step make its pair (`formats.prm800k.comparisons`).
- ProcessBench has whole solutions with the place of their first error, and no second
  version of a step. A pair is there only where two solutions of one problem begin with
  the same steps, and one goes on with a right step and the other with its first error.
  The first ones of such a place make its pair. In what is published that happens at
  step 1 only, and seldom. Steps behind the first error are not labelled, and a right
  step of another place is no alternative, so nothing else is made of them.

*First errors* are those of ProcessBench (arXiv 2412.06559, section 3): the judge finds
the first wrong step of a solution, or says that there is none. F1 is the harmonic mean
of the accuracy on the solutions with an error and of that on the right ones. Only a
judge of single steps (`judge.score` = "pointwise") can do that: a comparison needs a
second version of the step.
"""

import collections
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stepjax import pointwise
from stepjax.codec import Codec
from stepjax.evaluation import intervals
from stepjax.initial_data.formats import files, sources
from stepjax.judge import Judge, Request, majority
from stepjax.prompts import Templates
from stepjax.records import Comparison, StepLabels
from stepjax.trajectory import hash_id

NO_ERROR = -1  # place of the first error of a solution that is right


class JudgeSet(NamedTuple):
    """What a file holds.

    Attributes:
      comparisons: pairs in both orders, or rows of our own format as they are.
      solutions: with the labels of their steps up to the first error.
    """

    comparisons: list[Comparison]
    solutions: list[StepLabels]


def form(path: pathlib.Path) -> str | None:
    """Returns "prm800k", "processbench", "jsonl" (comparisons) or None for others.

    The first row decides.

    Raises:
      ValueError: for a file that cannot be read.
    """
    _, row = next(iter(files.rows(path)))
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return "prm800k"
    if isinstance(row.get("steps"), list) and type(row.get("label")) is int:
        return "processbench"
    return "jsonl" if {"a", "b", "verdict"} <= row.keys() else None


def read(path: pathlib.Path, templates: Templates) -> JudgeSet:
    """Reads a file to measure a judge on.

    Args:
      path: see `form`.
      templates: of the run; their step marker begins each step.

    Raises:
      ValueError: for a file of another kind, and for a row that does not fit it.
    """
    found = form(path)
    if found is None:
        raise ValueError(
            f"--benchmark={path}: its first row is no labelled solution and no "
            "comparison; expected rows of PRM800K, of ProcessBench, or of our own "
            "comparisons for --mode=judge."
        )
    if found == "processbench":
        solutions = sources.read(path, found, "labels", templates)
        return JudgeSet(alternatives(solutions), solutions)
    return JudgeSet(sources.read(path, found, "comparison", templates), [])


def first_error(solution: StepLabels) -> int:
    """Returns the index (from 0) of the first wrong step, or `NO_ERROR`."""
    labels = solution.labels
    return labels.index(0) if 0 in labels else NO_ERROR


def alternatives(solutions: Sequence[StepLabels]) -> list[Comparison]:
    """Returns pairs of a right step and a first error behind the same steps.

    Args:
      solutions: of ProcessBench; those of one problem are compared.

    Returns:
      Two comparisons of each pair, one per order: "ID-3-ab" and "ID-3-ba", where ID is
      that of the solution with the right step, and 3 the number of the step, from 1.
    """
    right: dict[tuple, tuple[str, str]] = {}
    wrong: dict[tuple, str] = {}
    for solution in solutions:
        for at, (step, label) in enumerate(
            zip(solution.steps, solution.labels, strict=True)
        ):
            place = solution.problem, solution.steps[:at]
            if label == 1:
                right.setdefault(place, (solution.id, step))
            elif label == 0:
                wrong.setdefault(place, step)
    rows = []
    for place, (name, good) in right.items():
        bad = wrong.get(place)
        if bad is not None and bad != good:  # people may differ about equal steps
            one = f"{name}-{len(place[1]) + 1}"
            rows.append(Comparison(f"{one}-ab", *place, good, bad, "A"))
            rows.append(Comparison(f"{one}-ba", *place, bad, good, "B"))
    return rows


def stated_alone(codec: Codec, row: Comparison):
    """Returns what `Judgments.held_out` does for a judge that sees the step `a` alone.

    The verdict of the row is the gold: the better step is right and the other is wrong.
    """
    side, _ = pointwise.stated(row)
    return tuple(map(codec.step, row.steps)), (codec.step(row.a),), side


def locate(
    judge: Judge,
    codec: Codec,
    solutions: Sequence[StepLabels],
    *,
    slots: int,
    on_done: Callable[[list[dict[str, Any]]], None] = lambda items: None,
) -> list[dict[str, Any]]:
    """Lets a judge of single steps find the first error of each solution.

    The steps are judged in their order, each behind those before it. The first one that
    the judge rejects is its answer, and `NO_ERROR` if it accepts all of them. Where a
    verdict before that cannot be read, the judge has no answer, which is wrong.

    Args:
      judge: from `self_judge.make_judge`, of `pointwise.appraisals`.
      codec: tokenizer and templates.
      solutions: with labels up to their first error.
      slots: solutions judged at once, at most the judge's slots.
      on_done: called with the items of each batch of solutions.

    Returns:
      One item for each solution, for `first_error_metrics`.
    """
    items: list[dict[str, Any]] = []
    for at in range(0, len(solutions), slots):
        batch = solutions[at : at + slots]
        ids = [tuple(map(codec.step, solution.steps)) for solution in batch]
        said: list[list] = [[] for _ in batch]
        going = list(range(len(batch)))
        while going:
            requests = [_request(slot, batch[slot], ids[slot], said) for slot in going]
            answers = judge(requests, [[(0, 0)] for _ in requests])
            for slot, verdicts in zip(going, answers, strict=True):
                said[slot] += majority(verdicts)
            going = [
                slot
                for slot in going
                if said[slot][-1].winner == "A" and len(said[slot]) < len(ids[slot])
            ]
        items += [_located(*row) for row in zip(batch, said, strict=True)]
        on_done(items[-len(batch) :])
    return items


def _request(slot: int, solution: StepLabels, ids: tuple, said: list) -> Request:
    at = len(said[slot])
    path = (0, hash_id(solution.id), at + 1, 0)
    return Request(slot, solution.id, solution.problem, ids[:at], (ids[at],), path)


def _located(solution: StepLabels, said: Sequence) -> dict[str, Any]:
    """Returns the item of a solution, from the verdicts of its first steps."""
    last, gold = said[-1].winner, first_error(solution)
    judged = [f"judgment: {verdict.response}" for verdict in said]
    texts = itertools.zip_longest(solution.steps, judged)
    found = {"A": NO_ERROR, "B": len(said) - 1}.get(last)
    return {
        "id": solution.id,
        "problem": solution.problem,
        "text": "\n".join(text for pair in texts for text in pair if text),
        "answer": gold,
        "prediction": found,
        "right": found == gold,
        "verdicts": [verdict.winner for verdict in said],
    }


def metrics(
    comparisons: Sequence[Comparison],
    items: Sequence[dict[str, Any]],
    located: Sequence[dict[str, Any]],
) -> dict[str, float]:
    """Returns what a judge's answers are worth; see `pair_metrics` and so on.

    Args:
      comparisons: that were asked.
      items: of `grading.judge_accuracy`, one for each comparison.
      located: of `locate`.
    """
    found = pair_metrics(comparisons, items) if items else {}
    return found | (first_error_metrics(located) if located else {})


def pair_metrics(
    comparisons: Sequence[Comparison], items: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Returns the accuracy of a judge on pairs.

    Returns:
      "accuracy": share of the judgments that are right, with the 95 % interval "low" to
      "high" of as many trials as there are pairs, since both orders of a pair are not
      independent; "count": pairs; "judgments"; "both_orders": share of the pairs that
      are judged right in both orders; "flip_rate": share of the pairs in which the
      judge says "A" twice, "B" twice, or ties once; "unparsed_rate".
    """
    by_pair: dict[tuple, list[dict[str, Any]]] = collections.defaultdict(list)
    for row, item in zip(comparisons, items, strict=True):
        by_pair[row.problem, row.steps, frozenset((row.a, row.b))].append(item)
    pairs = list(by_pair.values())
    rate = sum(item["right"] for item in items) / len(items)
    low, high = intervals.wilson(rate * len(pairs), len(pairs))
    found = {
        "accuracy": rate,
        "low": low,
        "high": high,
        "count": len(pairs),
        "judgments": len(items),
        "both_orders": sum(all(i["right"] for i in own) for own in pairs) / len(pairs),
        "unparsed_rate": sum(item["prediction"] is None for item in items) / len(items),
    }
    said = [[item["prediction"] for item in own] for own in pairs]
    two = [own for own in said if len(own) == 2 and None not in own]
    if two and all(len(item["candidates"]) == 2 for item in items):
        found["flip_rate"] = sum({*own} != {"A", "B"} for own in two) / len(two)
    return found


def first_error_metrics(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns ProcessBench's figures.

    Returns:
      "first_error_accuracy": share of the solutions with an error whose first error is
      found, of "first_error_count"; "no_error_accuracy": share of the right solutions
      that are called right, of "no_error_count"; "first_error_f1": their harmonic mean,
      with the 95 % interval "f1_low" to "f1_high"; "unread_rate": share of the
      solutions without an answer. F1 is left out where one of the two is empty.
    """
    wrong = [item["right"] for item in items if item["answer"] != NO_ERROR]
    right = [item["right"] for item in items if item["answer"] == NO_ERROR]
    found: dict[str, float] = {}
    for name, part in (("first_error", wrong), ("no_error", right)):
        if part:
            found[f"{name}_accuracy"] = sum(part) / len(part)
        found[f"{name}_count"] = len(part)
    if wrong and right:
        both = (sum(wrong), len(wrong)), (sum(right), len(right))
        f1, low, high = intervals.harmonic_mean(*both)
        found |= {"first_error_f1": f1, "f1_low": low, "f1_high": high}
    unread = sum(item["prediction"] is None for item in items)
    return found | {"unread_rate": unread / len(items)}
