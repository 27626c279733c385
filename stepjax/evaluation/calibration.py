"""What the verdicts of searches say about their judge, with and without the gold.

`of_verdicts` needs no gold: does the judge contradict itself, does it prefer length?
`calibration` compares its probabilities with the gold. Gold knowledge is used for
reporting only.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from stepjax.controls import IsRight
from stepjax.evaluation import diagnose
from stepjax.judge import majority, preference
from stepjax.trajectory import Expansion, State

FALL = 0.02  # share of judgments that may turn wrong since M1 before we warn
_BINS = 10  # of the reliability table


def of_verdicts(states: Sequence[State]) -> dict[str, float]:
    """Returns how the judge of closed searches decides.

    Args:
      states: closed searches.

    Returns:
      "informative_rate": share of the expansions with at least two distinct candidates
      and no tie; "cycle_rate": share of the triples of candidates, all three pairs of
      which are decided, that go in a circle; "longer_wins": share of the decided pairs
      of different lengths in tokens that the longer candidate wins. A rate of nothing
      is left out.
    """
    parts = counts_of_verdicts(states)
    return {name: part / whole for name, (part, whole) in parts.items() if whole}


def counts_of_verdicts(states: Sequence[State]) -> dict[str, tuple[int, int]]:
    """Returns the counts behind the rates of `of_verdicts`: name → (part, whole).

    Args:
      states: closed searches.
    """
    expansions = [e for state in states for e in state.expansions if e.candidates]
    triples = circles = pairs = longer = 0
    for expansion in expansions:
        won = _decided(expansion)
        for i, j, k in itertools.combinations(range(len(expansion.candidates)), 3):
            if (i, j) in won and (j, k) in won and (i, k) in won:
                triples += 1
                circles += won[i, j] == won[j, k] != won[i, k]
        lengths = [len(candidate.ids) for candidate in expansion.candidates]
        for (i, j), first in won.items():
            if lengths[i] != lengths[j]:
                pairs += 1
                longer += first == (lengths[i] > lengths[j])
    informative = sum(e.action == "pair" for e in expansions)
    return {
        "informative_rate": (informative, len(expansions)),
        "cycle_rate": (circles, triples),
        "longer_wins": (longer, pairs),
    }


def first_wins(states: Sequence[State]) -> tuple[int, int]:
    """Counts how often the candidate that is shown first wins.

    Args:
      states: closed searches.

    Returns:
      (calls that the first one won, calls that one of the two won). Half of them is no
      bias by position where each pair is judged in both orders.
    """
    expansions = (expansion for state in states for expansion in state.expansions)
    calls = [v for e in expansions for v in majority(e.verdicts) if v.a != v.b]
    sides = [v.winner for v in calls if v.winner in ("A", "B")]
    return sides.count("A"), len(sides)


def _decided(expansion: Expansion) -> dict[tuple[int, int], bool]:
    """Returns pair i < j → whether i is preferred, over both orders; without ties."""
    found: dict[tuple[int, int], list[float]] = {}
    for verdict in majority(expansion.verdicts):
        p, (a, b) = preference(verdict), verdict[:2]
        if p is not None and a != b:
            found.setdefault((min(a, b), max(a, b)), []).append(p if a < b else 1 - p)
    means = {pair: sum(own) / len(own) for pair, own in found.items()}
    return {pair: mean > 0.5 for pair, mean in means.items() if mean != 0.5}


def calibration(
    states: Sequence[State], is_right: IsRight
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Returns how well the judge's probabilities fit the gold.

    A call of two steps counts if exactly one of them is right, and a call of one step
    always. A verdict without a probability counts as certain, an unread one as 1/2.

    Args:
      states: closed searches; problems that the gold does not know are passed over.
      is_right: gold.

    Returns:
      (metrics, reliability). "judge_brier" is the mean of (p - y)^2, where p is the
      probability of A, and y is 1 if A is right and 0 if not: 0 is perfect, and 0.25 is
      always 1/2. It is absent where no call counts. The reliability table has a row per
      tenth of p that occurs: mean "probability", share "right" and "count".
    """
    said, truth = [], []
    for _, expansion, _, right in diagnose.graded_expansions(states, is_right):
        for verdict in majority(expansion.verdicts):
            if verdict.a != verdict.b and right[verdict.a] == right[verdict.b]:
                continue
            if verdict.winner not in ("A", "B", "C", None):
                continue  # a rating
            p = preference(verdict)
            said.append(0.5 if p is None else p)
            truth.append(right[verdict.a])
    if not said:
        return {}, []
    p, y = np.array(said), np.array(truth, float)
    place = np.minimum((p * _BINS).astype(int), _BINS - 1)
    table = [
        {
            "probability": float(p[place == n].mean()),
            "right": float(y[place == n].mean()),
            "count": int((place == n).sum()),
        }
        for n in range(_BINS)
        if (place == n).any()
    ]
    return {"judge_brier": float(((p - y) ** 2).mean())}, table


def warnings(
    first: Mapping[str, float], now: Mapping[str, float], keep: float | None
) -> list[str]:
    """Returns a warning if the judge has become worse on the model's own samples.

    Args:
      first: metrics of the evaluation "search" of M1, of `diagnose.sampled_judgments`.
      now: those of a later model.
      keep: `judge.keep`, which the remedy depends on; None where the judge is another
        model, which no training of this one changes.
    """
    before, after = (m.get("judge_sampled") for m in (first, now))
    if before is None or after is None or before - after <= FALL:
        return []
    if keep is None:
        remedy = ""
    elif keep:
        remedy = (
            f" Raise judge.keep, the weight of EFT rows in every update of DPO, which "
            f"is {keep:g}, or set judge.model='M1'."
        )
    else:
        remedy = (
            " Set judge.keep above 0, which trains it on EFT rows in every update of "
            "DPO, or judge.model='M1'."
        )
    return [
        f"the judge is right about {100 * after:.1f} % of {now['judge_sampled_count']} "
        f"pairs of a right and a wrong step of its own, {100 * (before - after):.1f} "
        f"points less than M1 ({100 * before:.1f} % of "
        f"{first['judge_sampled_count']}).{remedy}"
    ]
