"""How the judge errs in a systematic way: by position, by length, and in circles.

None of these needs to know which step is right.
"""

import graphlib
from collections.abc import Iterable

from stepjax.trajectory import Expansion, State


def biases(states: Iterable[State]) -> dict[str, tuple[int, int]]:
    """Counts the judge's biases in searches.

    Args:
      states: closed searches.

    Returns:
      Name → (how often, of how many):
      "first": calls that the candidate shown first won, of all calls with a verdict.
      0.5 is no bias when each pair is judged in both orders.
      "longer": calls that the candidate with more tokens won, of the calls with a
      verdict whose two candidates differ in length.
      "circle": expansions in which candidates beat each other in a circle, of those
      with at least three candidates that were compared.
    """
    first, longer, circle = [0, 0], [0, 0], [0, 0]
    for expansion in (e for state in states for e in state.expansions):
        calls = [v for v in expansion.verdicts if v.winner and v.a != v.b]
        lengths = [len(candidate.ids) for candidate in expansion.candidates]
        for call in calls:
            first[0] += call.winner == "A"
            first[1] += 1
            if lengths[call.a] != lengths[call.b]:
                longer[0] += (call.winner == "A") == (lengths[call.a] > lengths[call.b])
                longer[1] += 1
        if len({number for call in calls for number in call[:2]}) > 2:
            circle[0] += has_circle(expansion)
            circle[1] += 1
    named = {"first": first, "longer": longer, "circle": circle}
    return {name: (part, whole) for name, (part, whole) in named.items()}


def has_circle(expansion: Expansion) -> bool:
    """Whether candidates beat each other in a circle, as in 1 over 2 over 3 over 1.

    One candidate beats another when it won more of the calls between the two; a pair
    that is judged differently in the two orders has no winner.

    Args:
      expansion: with its verdicts.
    """
    balance: dict[tuple[int, int], int] = {}
    for call in expansion.verdicts:
        if call.winner and call.a != call.b:
            pair = min(call.a, call.b), max(call.a, call.b)
            winner = call.a if call.winner == "A" else call.b
            balance[pair] = balance.get(pair, 0) + (1 if winner == pair[0] else -1)
    beats: dict[int, set[int]] = {}
    for (low, high), net in balance.items():
        if net:
            winner, loser = (low, high) if net > 0 else (high, low)
            beats.setdefault(winner, set()).add(loser)
    try:
        graphlib.TopologicalSorter(beats).prepare()
    except graphlib.CycleError:
        return True
    return False
