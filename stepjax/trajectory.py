"""A search of one question as data: candidates, verdicts, expansions, states.

An expansion is one attempt at a next step: its candidates, the verdicts on them, and
what was decided. A state is the search so far: the steps that were kept, and every
expansion, also those of steps that were dropped again. `stepjax.search` makes the next
state; `to_row` and `from_row` write a state to search.jsonl and read it back.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from stepjax.codec import Codec
from stepjax.records import Question


class Verdict(NamedTuple):
    """One call of the judge: candidate `a` was shown first and `b` second.

    Attributes:
      a: index of the candidate shown as A.
      b: index of the candidate shown as B.
      winner: "A", "B", "C" for neither, or None when no verdict could be read.
      response: what the judge wrote; in logprob mode the log-odds of A.
      probability: that A is better, 0 to 1, as the judge's model has it; None unless
        `judge.value` asks for it and a verdict could be read.
      ids: token ids of the response, kept only where the judge learns from them
        (`judge.learn`).
    """

    a: int
    b: int
    winner: str | None
    response: str = ""
    probability: float | None = None
    ids: tuple[int, ...] = ()

    def row(self) -> list:
        """Returns the verdict as a JSON list, without absent values at its end."""
        known = 6 if self.ids else 5 if self.probability is not None else 4
        return list(self[:known])


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One distinct candidate for the next step.

    Attributes:
      ids: the sampled token ids, cut where the next step would begin.
      text: for people.
      count: how many of the samples are this candidate; `search.redraw` draws more
        than w.
      logp: sum of its tokens' log-probabilities under the model.
      finished: whether it ends the solution (EOS, or a boxed answer).
    """

    ids: tuple[int, ...]
    text: str
    count: int
    logp: float
    finished: bool


# Why a sample is no candidate: it did not end within its budget of tokens, it does not
# begin with the marker of its step, it holds a verdict, or it breaks another rule.
FAULTS = CUT_OFF, NO_MARKER, VERDICT, OTHER = "cut off", "no marker", "verdict", "other"


@dataclasses.dataclass(frozen=True)
class Refused:
    """The samples of one expansion that are no candidates for the same reason.

    Attributes:
      fault: the reason, one of `FAULTS`.
      count: how many samples there are.
      text: of the first one, as far as it was sampled.
    """

    fault: str
    count: int
    text: str


def refused(samples: Iterable[tuple[str, str]]) -> tuple[Refused, ...]:
    """Counts samples that are no candidates by the reason, in the order of `FAULTS`.

    Args:
      samples: (reason, text) of each.
    """
    texts: dict[str, list[str]] = {fault: [] for fault in FAULTS}
    for fault, text in samples:
        texts[fault].append(text)
    return tuple(Refused(f, len(own), own[0]) for f, own in texts.items() if own)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Distinct well-formed candidates, and the samples that are none.

    Attributes:
      candidates: the candidates.
      malformed: how many samples are no candidate.
      refused: these samples by the reason, with the text of the first.
    """

    candidates: tuple[Candidate, ...]
    malformed: int = 0
    refused: tuple[Refused, ...] = ()


@dataclasses.dataclass(frozen=True)
class Expansion:
    """One attempt at a next step, kept whole so that pairs can be audited.

    Attributes:
      step: number of the step that was sampled, from 1.
      attempt: how often that step had been expanded before.
      candidates: the distinct candidates.
      malformed: how many samples were left out.
      verdicts: every call of the judge.
      scores: Score_i of each candidate; None where a candidate has none.
      best: index of the candidate that was kept, or None.
      worst: index of the candidate that lost to it, or None.
      action: "pair" (the best was appended, and made a pair with the worst), "append"
        (no preference, but the search went on), "back" (no preference: the step before
        was dropped), "resample" (no preference at step 1), or "reject" (the judge calls
        the best one wrong, so this step is sampled again).
      path: key path of its draws (see `stepjax.lm.draws`): iteration, hash of the
        problem's id, step, attempt.
      refused: the malformed samples by the reason; see `Proposal`.
    """

    step: int
    attempt: int
    candidates: tuple[Candidate, ...]
    malformed: int
    verdicts: tuple[Verdict, ...]
    scores: tuple[float | None, ...]
    best: int | None
    worst: int | None
    action: str
    path: tuple[int, ...]
    refused: tuple[Refused, ...] = ()


@dataclasses.dataclass(frozen=True)
class State:
    """The search of one problem so far.

    Attributes:
      question: the problem, without an answer.
      steps: the steps kept so far.
      pair_from: for each kept step, the index of the expansion that its pair comes
        from, or None where the step was appended without a pair.
      expansions: all expansions, also those of steps that were dropped again.
      status: "running"; "complete" (the solution is finished), "budget" (all
        expansions were used up) or "length" (no room for another step).
    """

    question: Question
    steps: tuple[Candidate, ...] = ()
    pair_from: tuple[int | None, ...] = ()
    expansions: tuple[Expansion, ...] = ()
    status: str = "running"

    def key_path(self, iteration: int) -> tuple[int, ...]:
        """Returns the key path of the next draws: iteration, problem, step, attempt.

        Args:
          iteration: number of the iteration, first in the path.
        """
        step = len(self.steps) + 1
        return iteration, hash_id(self.question.id), step, self.attempt()

    def attempt(self) -> int:
        """Returns how often the next step was expanded before."""
        return sum(e.step == len(self.steps) + 1 for e in self.expansions)


def with_steps(state: State) -> Iterator[tuple[list[Candidate], Expansion]]:
    """Yields each expansion of a search with the steps that had been kept before it."""
    kept: list[Candidate] = []
    for expansion in state.expansions:
        yield list(kept), expansion
        if expansion.action in ("pair", "append"):
            kept.append(expansion.candidates[expansion.best])
        elif expansion.action == "back":
            kept.pop()


def hash_id(text: str) -> int:
    """Returns a stable 32-bit integer of a problem id, for key paths."""
    return zlib.crc32(text.encode())


def context_ids(codec: Codec, state: State, kept: int | None = None) -> tuple[int, ...]:
    """Returns the context of a step: ids of the prompt and of the steps before it.

    The proposer feeds these ids, and the pair of that step holds them.

    Args:
      codec: tokenizer and templates.
      state: the search.
      kept: how many of its kept steps come before; None for all.
    """
    steps = state.steps[:kept]
    return sum((s.ids for s in steps), codec.solve_prompt(state.question.problem))


def to_row(state: State) -> dict[str, Any]:
    """Returns a search as a JSON object, for one line of search.jsonl."""
    # A search writes thousands of these; `dataclasses.asdict` takes 3 times as long.
    return {
        "id": state.question.id,
        "problem": state.question.problem,
        "status": state.status,
        "steps": _rows(state.steps),
        "pair_from": state.pair_from,
        "expansions": [
            vars(expansion)
            | {
                "candidates": _rows(expansion.candidates),
                "verdicts": [verdict.row() for verdict in expansion.verdicts],
                "refused": _rows(expansion.refused),
            }
            for expansion in state.expansions
        ],
    }


def _rows(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns dataclasses without dataclasses in them as JSON objects."""
    return [dict(vars(item)) for item in items]


def verdict_from(row: list) -> Verdict:
    """Returns the verdict of a JSON list, see `Verdict.row`."""
    return Verdict(*row[:5], *map(tuple, row[5:]))


def candidate_from(item: dict[str, Any]) -> Candidate:
    """Returns the candidate of a JSON object."""
    return Candidate(**item | {"ids": tuple(item["ids"])})


def from_row(row: dict[str, Any]) -> State:
    """Returns the search that `to_row` wrote."""
    expansions = tuple(
        Expansion(
            **item
            | {
                "candidates": tuple(map(candidate_from, item["candidates"])),
                "verdicts": tuple(map(verdict_from, item["verdicts"])),
                "scores": tuple(item["scores"]),
                "path": tuple(item["path"]),
                "refused": tuple(Refused(**r) for r in item.get("refused", ())),
            }
        )
        for item in row["expansions"]
    )
    return State(
        Question(row["id"], row["problem"]),
        tuple(map(candidate_from, row["steps"])),
        tuple(row["pair_from"]),
        expansions,
        row["status"],
    )
