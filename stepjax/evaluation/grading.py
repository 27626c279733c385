"""How good a model is: greedy accuracy, judge accuracy, test-time search.

Gold answers come in as arguments; `stepjax.evaluation.stages` reads them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.evaluation import answers, intervals
from stepjax.judge import Judge, Judgments, Request, comparisons, majority
from stepjax.lm import draws
from stepjax.lm.sampler import Sampler, make_decoding, sample_behind
from stepjax.records import Problem
from stepjax.trajectory import State, hash_id

_COMPARISONS = comparisons()


def accuracy(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy with its interval over items with a bool "right"."""
    right, total = sum(bool(item["right"]) for item in items), len(items)
    low, high = intervals.wilson(right, total)
    rate = right / total if total else 0.0
    return {"accuracy": rate, "low": low, "high": high, "count": total}


def right_so_far(items: Sequence[dict[str, Any]]) -> str:
    """Returns how many of the items are right, e.g. "62.5 % of 24 right"."""
    return f"{100 * accuracy(items)['accuracy']:.1f} % of {len(items)} right"


def greedy(
    sampler: Sampler,
    codec: Codec,
    problems: Sequence[Problem],
    *,
    max_tokens: int,
    strict: bool = False,
    on_done: Callable[[list[dict[str, Any]]], None] = lambda items: None,
) -> list[dict[str, Any]]:
    """Solves every problem with greedy decoding.

    Args:
      sampler: context caches.
      codec: tokenizer and templates.
      problems: with gold answers.
      max_tokens: most tokens of a solution.
      strict: how answers are graded, see `answers.grade`.
      on_done: called with the items of each batch of problems.

    Returns:
      One item for each problem, for `greedy_metrics`.
    """
    decoding = make_decoding(
        codec.tokenizer, (), seed=0, temperature=0.0, top_p=1.0, max_tokens=max_tokens
    )
    count, items = len(sampler.held), []
    path = (0,) * draws.PATH_LENGTH  # nothing is drawn
    for at in range(0, len(problems), count):
        batch = problems[at : at + count]
        contexts = {n: codec.solve_prompt(row.problem) for n, row in enumerate(batch)}
        rows = sample_behind(
            sampler, contexts, dict.fromkeys(contexts, [path]), decoding
        )
        for slot, problem in enumerate(batch):
            (row,) = rows[slot]
            text, tokens = codec.text(row.ids), len(row.ids)
            items.append(_graded(problem, text, tokens, codec, strict))
            items[-1]["finished"] = row.stopped
        on_done(items[-len(batch) :])
    return items


def greedy_metrics(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy, outcomes, and how long and how complete solutions are."""
    steps = sum(item["steps"] for item in items)
    tokens = sum(item["tokens"] for item in items if item["steps"])
    return accuracy(items) | {
        **outcomes(items),
        "steps_per_solution": steps / max(len(items), 1),
        "tokens_per_step": tokens / steps if steps else 0.0,
        "finished_rate": sum(i["finished"] for i in items) / max(len(items), 1),
    }


def outcomes(items: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Counts what became of the solutions that are not right; each counts once.

    Args:
      items: of `greedy` or `searched`.

    Returns:
      "unfinished_count": solutions that were cut off, at the token limit or, of a
      search, when its expansions were used up. "no_answer_count": ended without a
      final answer that can be extracted. "ungraded_count": their answer met a limit of
      the grader, see `answers.Grade`. "wrong_count": all others.
    """
    counts = dict.fromkeys(("wrong", "unfinished", "no_answer", "ungraded"), 0)
    for item in items:
        if item["right"]:
            continue
        ended = item.get("finished", item.get("status") in (None, "complete"))
        if not ended:
            counts["unfinished"] += 1
        elif item["prediction"] is None:
            counts["no_answer"] += 1
        else:
            counts["ungraded" if "limit" in item else "wrong"] += 1
    return {f"{name}_count": count for name, count in counts.items()}


def graded(problem: Problem, text: str, *, strict: bool = False) -> dict[str, Any]:
    """Returns whether a solution is right, as fields of an item.

    Args:
      problem: with its gold answer, and the tolerance and unit that it states.
      text: the solution.
      strict: see `answers.extract` and `answers.grade`.

    Returns:
      "answer", "prediction" and "right"; "tolerance", "unit" and "limit", the limit of
      the grader that was met, where there is one.
    """
    prediction = answers.extract(text, strict=strict)
    stated = {"tolerance": problem.tolerance, "unit": problem.unit}
    grade = answers.grade(prediction, problem.answer, **stated, strict=strict)
    stated["limit"] = grade.limit
    return {
        "answer": problem.answer,
        "prediction": prediction,
        "right": grade.right,
        **{name: value for name, value in stated.items() if value},
    }


def _graded(
    problem: Problem, text: str, tokens: int, codec: Codec, strict: bool
) -> dict[str, Any]:
    try:
        steps = len(prompts.split_steps(codec.templates, text))
    except ValueError:
        steps = 0
    return {
        "id": problem.id,
        "problem": problem.problem,
        **graded(problem, text, strict=strict),
        "steps": steps,
        "tokens": tokens,
        "text": text,
    }


def judge_accuracy(
    judge: Judge,
    codec: Codec,
    rows: Sequence[Any],
    *,
    slots: int,
    judgments: Judgments = _COMPARISONS,
    on_done: Callable[[list[dict[str, Any]]], None] = lambda items: None,
) -> list[dict[str, Any]]:
    """Asks the judge every held-out row once; an unparsed verdict is wrong.

    Args:
      judge: from `self_judge.make_judge`.
      codec: tokenizer and templates.
      rows: EFT rows with the right verdicts, records of `judgments`.
      slots: rows asked at once, at most the judge's slots.
      judgments: what is asked.
      on_done: called with the items of each batch of rows.

    Returns:
      One item for each row, for `judge_metrics`.
    """
    items = []
    for at in range(0, len(rows), slots):
        batch = rows[at : at + slots]
        gold, requests = [], []
        for slot, row in enumerate(batch):
            steps, candidates, winner = judgments.held_out(codec, row)
            path = (0, hash_id(row.id), len(row.steps) + 1, 0)
            requests.append(Request(slot, row.id, row.problem, steps, candidates, path))
            gold.append(winner)
        calls = [[(0, len(request.candidates) - 1)] for request in requests]
        verdicts = judge(requests, calls)
        asked = zip(batch, requests, gold, verdicts, strict=True)
        for row, request, right, said in asked:
            (verdict,) = majority(said)
            items.append(
                {
                    "id": row.id,
                    "problem": row.problem,
                    "steps": [codec.text(ids) for ids in request.steps],
                    "candidates": [codec.text(ids) for ids in request.candidates],
                    "answer": right,
                    "prediction": verdict.winner,
                    "right": verdict.winner == right,
                    "response": verdict.response,
                }
            )
            if verdict.probability is not None:
                items[-1]["probability"] = verdict.probability
        on_done(items[-len(batch) :])
    return items


def judge_metrics(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy and unparsed_rate."""
    unparsed = sum(item["prediction"] is None for item in items)
    return accuracy(items) | {"unparsed_rate": unparsed / max(len(items), 1)}


def searched(
    states: Iterable[State],
    problems: Sequence[Problem],
    codec: Codec,
    *,
    strict: bool = False,
) -> dict[str, Any]:
    """Grades closed searches as answers (test-time search).

    Args:
      states: one closed search for each problem, in any order.
      problems: with gold answers.
      codec: tokenizer and templates.
      strict: how answers are graded, see `answers.grade`.

    Returns:
      {"metrics": accuracy and outcomes, "items": one for each problem}.
    """
    by_id = {state.question.id: state for state in states}
    items = []
    for problem in problems:
        state = by_id[problem.id]
        text = "\n".join(step.text for step in state.steps)
        tokens = sum(len(step.ids) for step in state.steps)
        items.append(_graded(problem, text, tokens, codec, strict))
        items[-1]["status"] = state.status
    return {"metrics": accuracy(items) | outcomes(items), "items": items}
