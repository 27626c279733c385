"""What the page holds of each search, packed so that the file stays small.

A page of a real run would take hundreds of megabytes as plain JSON: six candidates of a
step are compared in 30 calls, and each has an explanation. So searches are compressed
in chunks of 40 problems, and the browser unpacks a chunk when one of its problems is
looked at. As base64 they can hold no text that a browser would take for HTML.
"""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepjax.controls import IsRight
from stepjax.judge import position_flips
from stepjax.trajectory import Expansion, State, with_steps

CHUNK = 40  # problems that are unpacked together
_HEAD = 140  # characters of a problem in the list

_TIES = ("append", "back", "resample")  # actions without a preference
_AGAIN = ("back", "resample", "reject")  # actions that append no step

# What a page may leave out so that it stays below its size, least harmful first: words
# for the page, and the most characters of a text. From the second one on, only the
# calls between a chosen and a rejected candidate keep their explanation.
_OTHERS = "explanations of other comparisons than chosen against rejected"
_LEVELS = (
    ("", None),
    (_OTHERS, 1 << 30),
    *(
        (f"{_OTHERS}, and the ends of texts beyond {n} characters", n)
        for n in (1000, 400, 200)
    ),
)


class Source(NamedTuple):
    """The searches of one model on one set of problems.

    Attributes:
      model: as M1.
      problems: "questions", which make pairs, or the name of a benchmark.
      rows: what the page holds of each search; see `of_state`.
    """

    model: str
    problems: str
    rows: list[dict[str, Any]]


class Packed(NamedTuple):
    """Searches as they are written into the page.

    Attributes:
      index: what the list and its filters need, as base64 of gzip of JSON.
      chunks: the searches in the order of the index, each as base64 of gzip of JSON.
      left_out: what was left out because the page would be too large, in words.
    """

    index: str
    chunks: list[str]
    left_out: str


def of_state(
    state: State,
    is_right: IsRight | None = None,
    graded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what the page holds of a search.

    Args:
      state: a closed search.
      is_right: gold of a world, which marks candidates; None marks nothing.
      graded: its item of an evaluation, which knows the right answer; None for a
        question.
    """
    problem = state.question.problem
    expansions = [
        _of_expansion(expansion, problem, [step.text for step in steps], is_right)
        for steps, expansion in with_steps(state)
    ]
    row = {
        "id": state.question.id,
        "problem": problem,
        "status": state.status,
        "kept": [step.text for step in state.steps],
        "tokens": sum(len(step.ids) for step in state.steps),
        "expansions": expansions,
    }
    if graded:
        row["graded"] = {key: graded[key] for key in ("right", "prediction", "answer")}
    return row


def _of_expansion(
    expansion: Expansion, problem: str, kept: Sequence[str], is_right: IsRight | None
) -> dict[str, Any]:
    return {
        "step": expansion.step,
        "attempt": expansion.attempt + 1,
        "action": expansion.action,
        "best": expansion.best,
        "worst": expansion.worst,
        "scores": expansion.scores,
        "flips": position_flips(expansion.verdicts)[0],
        "candidates": [
            {
                "text": candidate.text,
                "count": candidate.count,
                "logp": round(candidate.logp, 2)
                if math.isfinite(candidate.logp)
                else None,
                "tokens": len(candidate.ids),
                "ends": candidate.finished,
                "right": is_right(problem, kept, candidate.text) if is_right else None,
            }
            for candidate in expansion.candidates
        ],
        "verdicts": [v._replace(ids=()).row() for v in expansion.verdicts],
        "refused": [vars(refused) for refused in expansion.refused],
    }


def facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the filters of the page need to know of a search.

    Args:
      row: of `of_state`.

    Returns:
      "id", "head" (the beginning of the problem), "steps" and "tokens" of what was
      kept, and counts of expansions: "tie" (several candidates, no preference), "flip"
      (a pair whose winner depends on the order), "wrong" (the candidate that was kept
      is wrong), "lost" (the same, though another one is right), "back" (a step was
      dropped or sampled again). "open" is 1 for a search without a complete solution,
      "failed" 1 for a wrong answer.
    """
    made = row["expansions"]
    wrong = [e for e in made if _best(e) is False]
    return {
        "id": row["id"],
        "head": row["problem"][:_HEAD],
        "steps": len(row["kept"]),
        "tokens": row["tokens"],
        "tie": sum(e["action"] in _TIES and len(e["candidates"]) > 1 for e in made),
        "flip": sum(e["flips"] > 0 for e in made),
        "wrong": len(wrong),
        "lost": sum(any(c["right"] for c in e["candidates"]) for e in wrong),
        "back": sum(e["action"] in _AGAIN for e in made),
        "open": int(row["status"] != "complete"),
        "failed": int(row.get("graded", {}).get("right") is False),
    }


def _best(expansion: Mapping[str, Any]) -> bool | None:
    """Returns whether the kept candidate is right; None where that is not known."""
    if expansion["best"] is None or expansion["action"] not in ("pair", "append"):
        return None
    return expansion["candidates"][expansion["best"]]["right"]


def pack(sources: Sequence[Source], most: int) -> Packed:
    """Packs searches into at most so many bytes.

    Where they do not fit, explanations are left out first and problems last, the same
    share from the end of each source.

    Args:
      sources: the searches.
      most: bytes of what is written.
    """
    for words, longest in _LEVELS:
        packed = _packed(sources, words, longest)
        if _size(packed) <= most:
            return packed
    share = 1.0
    while _size(packed) > most and share > 1e-4:
        share *= min(0.9, 0.97 * most / _size(packed))
        lost = f"{words}, and {100 * (1 - share):.0f} % of the problems"
        packed = _packed(sources, lost, longest, share)
    return packed


def _size(packed: Packed) -> int:
    return len(packed.index) + sum(map(len, packed.chunks))


def _packed(
    sources: Sequence[Source],
    words: str,
    longest: int | None,
    share: float = 1.0,
) -> Packed:
    rows, index = [], []
    for source in sources:
        cut = source.rows[: max(1, int(share * len(source.rows)))]
        columns = [facts(row) for row in cut]
        index.append(
            {
                "model": source.model,
                "problems": source.problems,
                "first": len(rows),
                "columns": {k: [c[k] for c in columns] for k in columns[0]},
            }
        )
        rows += [_reduced(row, longest) for row in cut]
    parts = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    return Packed(compressed(index), [compressed(part) for part in parts], words)


def _reduced(row: dict[str, Any], longest: int | None) -> dict[str, Any]:
    """Returns a row without the texts that a level leaves out."""
    if longest is None:
        return row

    def text(value: str) -> str:
        return value if len(value) <= longest else f"{value[:longest]} [...]"

    def verdict(e: dict[str, Any], call: list) -> list:
        a, b, winner, response, *probability = call
        is_shown = a == b or {a, b} == {e["best"], e["worst"]}
        return [a, b, winner, text(response) if is_shown else None, *probability]

    return row | {
        "problem": text(row["problem"]),
        "kept": list(map(text, row["kept"])),
        "expansions": [
            e
            | {
                "candidates": [c | {"text": text(c["text"])} for c in e["candidates"]],
                "refused": [r | {"text": text(r["text"])} for r in e["refused"]],
                "verdicts": [verdict(e, call) for call in e["verdicts"]],
            }
            for e in row["expansions"]
        ],
    }


def compressed(value: Any) -> str:
    """Returns base64 of gzip of JSON, the same each time."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate, which a broken text may hold, has no UTF-8.
    data = text.encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")
