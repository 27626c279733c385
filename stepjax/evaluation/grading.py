"""How good a model is: greedy accuracy, judge accuracy, test-time search.

The only stage, with data preparation, that sees gold answers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from stepjax import prompts
from stepjax.codec import Codec
from stepjax.evaluation import answers
from stepjax.judge import Judge, Request, hash_id
from stepjax.lm import draws
from stepjax.lm.sampler import Sampler, make_decoding
from stepjax.records import Comparison, Problem, Rating
from stepjax.search import State

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % Wilson interval of a rate (E. B. Wilson, 1927).

    Args:
      right: successes.
      total: trials; 0 gives (0, 1).
    """
    if not total:
        return 0.0, 1.0
    rate = right / total
    middle = rate + _Z * _Z / (2 * total)
    spread = _Z * math.sqrt(rate * (1 - rate) / total + _Z * _Z / (4 * total**2))
    scale = 1 + _Z * _Z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def paired_gain(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> tuple[float, float, float]:
    """Returns the gain in accuracy on the same problems with its 95 % interval.

    The adjusted Wald interval for paired proportions (D. G. Bonett and R. M. Price,
    2012): it counts only the problems that one of the two models gets right.

    Args:
      before: items with "id" and a bool "right".
      after: likewise, of the same problems.

    Returns:
      (gain, low, high), each from -1 to 1.

    Raises:
      ValueError: when the problems differ.
    """
    was = {item["id"]: item["right"] for item in before}
    now = {item["id"]: item["right"] for item in after}
    if was.keys() != now.keys():
        raise ValueError(
            f"{len(was)} and {len(now)} items of different problems; expected the "
            "same problems: evaluate both models on one benchmark"
        )
    total = len(was)
    gained = sum(now[i] and not was[i] for i in was)
    lost = sum(was[i] and not now[i] for i in was)
    up, down = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    spread = _Z * math.sqrt((up + down - (up - down) ** 2) / (total + 2))
    low, high = max(-1.0, up - down - spread), min(1.0, up - down + spread)
    return (gained - lost) / max(total, 1), low, high


def accuracy(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy with its interval over items with a bool "right"."""
    right, total = sum(bool(item["right"]) for item in items), len(items)
    low, high = wilson(right, total)
    rate = right / total if total else 0.0
    return {"accuracy": rate, "low": low, "high": high, "count": total}


def greedy(
    sampler: Sampler,
    codec: Codec,
    problems: Sequence[Problem],
    *,
    max_tokens: int,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Solves every problem with greedy decoding.

    Args:
      sampler: context caches.
      codec: tokenizer and templates.
      problems: with gold answers.
      max_tokens: most tokens of a solution.
      on_done: called with the number of problems just done.

    Returns:
      One item for each problem, for `greedy_metrics`.
    """
    decoding = make_decoding(
        codec.tokenizer, (), seed=0, temperature=0.0, top_p=1.0, max_tokens=max_tokens
    )
    count, items = len(sampler.held), []
    paths = np.zeros((count, 1, draws.PATH_LENGTH), np.uint32)  # nothing is drawn
    for at in range(0, len(problems), count):
        batch = problems[at : at + count]
        ids = [codec.solve_prompt(problem.problem) for problem in batch]
        sampler.hold({slot: prompt[:-1] for slot, prompt in enumerate(ids)})
        fed = [[prompt[-1:]] for prompt in ids] + [[()]] * (count - len(batch))
        out = sampler.sample(fed, paths, decoding)
        for slot, problem in enumerate(batch):
            made = out.tokens[slot, 0, : out.count[slot, 0]].tolist()
            items.append(_graded(problem, codec.text(made), len(made), codec))
            items[-1]["finished"] = bool(out.stopped[slot, 0])
        on_done(len(batch))
    return items


def greedy_metrics(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy, steps_per_solution, tokens_per_step and finished_rate."""
    steps = sum(item["steps"] for item in items)
    tokens = sum(item["tokens"] for item in items if item["steps"])
    return accuracy(items) | {
        "steps_per_solution": steps / max(len(items), 1),
        "tokens_per_step": tokens / steps if steps else 0.0,
        "finished_rate": sum(i["finished"] for i in items) / max(len(items), 1),
    }


def _graded(problem: Problem, text: str, tokens: int, codec: Codec) -> dict[str, Any]:
    try:
        steps = len(prompts.split_steps(codec.templates, text))
    except ValueError:
        steps = 0
    prediction = answers.extract(text)
    return {
        "id": problem.id,
        "answer": problem.answer,
        "prediction": prediction,
        "right": answers.equivalent(prediction, problem.answer),
        "steps": steps,
        "tokens": tokens,
        "text": text,
    }


def judge_accuracy(
    judge: Judge,
    codec: Codec,
    rows: Sequence[Comparison | Rating],
    *,
    slots: int,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Asks the judge every held-out row: a comparison in its order, or a rating.

    An unparsed verdict is wrong; so is every rating but the row's own.

    Args:
      judge: from `judge.make_judge`.
      codec: tokenizer and templates.
      rows: comparisons with gold verdicts, or ratings with gold scores.
      slots: rows asked at once, at most the judge's slots.
      on_done: called with the number of rows just done.

    Returns:
      One item for each row, for `judge_metrics`.
    """
    items = []
    for at in range(0, len(rows), slots):
        batch = rows[at : at + slots]
        asked = [_question(row, slot, codec) for slot, row in enumerate(batch)]
        calls = [[(0, len(request.candidates) - 1)] for request in asked]
        for row, (verdict,) in zip(batch, judge(asked, calls), strict=True):
            gold = str(row.score) if isinstance(row, Rating) else row.verdict
            items.append(
                {
                    "id": row.id,
                    "answer": gold,
                    "prediction": verdict.winner,
                    "right": verdict.winner == gold,
                    "response": verdict.response,
                }
            )
        on_done(len(batch))
    return items


def _question(row: Comparison | Rating, slot: int, codec: Codec) -> Request:
    steps = tuple(codec.step(text) for text in row.steps)
    path = (0, hash_id(row.id), len(steps) + 1, 0)
    if isinstance(row, Rating):
        return Request(slot, row.id, row.problem, (), (sum(steps, ()),), path)
    both = codec.step(row.a), codec.step(row.b)
    return Request(slot, row.id, row.problem, steps, both, path)


def judge_metrics(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy and unparsed_rate."""
    unparsed = sum(item["prediction"] is None for item in items)
    return accuracy(items) | {"unparsed_rate": unparsed / max(len(items), 1)}


def searched(
    states: Iterable[State], problems: Sequence[Problem], codec: Codec
) -> dict[str, Any]:
    """Grades closed searches as answers (test-time search).

    Args:
      states: one closed search for each problem, in any order.
      problems: with gold answers.
      codec: tokenizer and templates.

    Returns:
      {"metrics": accuracy, "items": one for each problem}.
    """
    found = {state.question.id: state for state in states}
    items = []
    for problem in problems:
        state = found[problem.id]
        text = "\n".join(step.text for step in state.steps)
        tokens = sum(len(step.ids) for step in state.steps)
        items.append(_graded(problem, text, tokens, codec))
        items[-1]["status"] = state.status
    return {"metrics": accuracy(items), "items": items}
