"""Partial tournaments: the best and the worst candidate from fewer judgments.

The paper judges all pairs of candidates, n (n - 1) calls in both orders (``full``).
Two schedules ask fewer, in rounds; a round depends on the results before it:

  ``knockout``: the loser of a match leaves. The losers of the first round play for the
    last place, and there the winner of a match leaves. The best candidate has won all
    its matches, the worst has lost all of its own.
  ``swiss``: ceil(log2 n) rounds between candidates of equal points that have not met;
    with an odd count, one candidate sits each round out. A match gives its winner as
    many points as the judge's margin.

Candidates are seeded as in sports: the ones that were sampled more often, and then the
more probable ones, come first (`judge.Request.seeding`). In a knockout the first meets
the last, so that likely winners meet late.

A schedule is a generator: it yields the matches of a round, pairs of seeds, and
receives (winner, margin) of each match.

`voted` asks every call several times (`judge.votes`).
"""

import math
from collections.abc import Callable, Generator, Sequence

import numpy as np

from stepjax.judge import Call, Judge, Judgments, Request, all_calls, comparisons
from stepjax.trajectory import Verdict

Match = tuple[int, int]
Result = tuple[int, float]  # the winner, and by how much of a win it is better
Schedule = Generator[list[Match], list[Result], None]


def knockout(count: int) -> Schedule:
    """Yields the rounds of two brackets, one for the best and one for the worst."""
    upper, lower, played = list(range(count)), [], set()
    while len(upper) > 1 or len(lower) > 1:
        above, below = _first_with_last(upper), _first_with_last(lower)
        results = yield above + below
        winners = [winner for winner, _ in results]
        lost = [_other(m, w) for m, w in zip(above + below, winners, strict=True)]
        idle = set(upper + lower) - {i for match in above + below for i in match}
        upper = sorted(winners[: len(above)] + [i for i in upper if i in idle])
        lower = lost[len(above) :] + [i for i in lower if i in idle]
        lower += [i for i in lost[: len(above)] if i not in played]
        lower.sort()
        played |= {i for match in above for i in match}


def swiss(count: int) -> Schedule:
    """Yields rounds between candidates of equal points that have not met."""
    points, met, sat_out = [0.0] * count, set(), set()
    for _ in range(math.ceil(math.log2(count)) if count > 1 else 0):
        order = sorted(range(count), key=lambda i: (-points[i], i))
        if count % 2:
            idle = next(i for i in reversed(order) if i not in sat_out)
            sat_out.add(idle)
            order.remove(idle)
        matches = []
        while order:
            first = order.pop(0)
            fresh = [i for i in order if frozenset((first, i)) not in met]
            if fresh:  # otherwise it has met every candidate left, and sits this out
                order.remove(fresh[0])
                matches.append((first, fresh[0]))
        met |= {frozenset(match) for match in matches}
        for winner, margin in (yield matches):
            points[winner] += margin


_ANOTHER_VOTE = 1 << 20  # what each vote adds to the attempt in its key path
SCHEDULES = {"full": None, "knockout": knockout, "swiss": swiss}
Calls = Callable[[int, Sequence[int]], list[Call]]  # see `judge.Judgments`


def rounds(schedule: str, count: int, calls: Calls) -> list[int]:
    """Returns the number of calls per round, if the earlier candidate always won.

    Args:
      schedule: one of `SCHEDULES`.
      count: number of candidates.
      calls: all calls between candidates, `Judgments.calls`.
    """
    if schedule == "full":
        return [len(calls(count, ()))]
    sizes, play, results = [], SCHEDULES[schedule](count), None
    while matches := _next(play, results):
        sizes.append(len(matches) * len(calls(2, ())))
        results = [(min(match), 1.0) for match in matches]
    return sizes


def layout(schedule: str, count: int, calls: Calls, most: int) -> tuple[int, int]:
    """Returns how the calls of a problem are laid out for the devices.

    Args:
      schedule: one of `SCHEDULES`.
      count: number of candidates.
      calls: all calls between candidates, `Judgments.calls`.
      most: the largest number of calls per problem and batch (`judge.rows`).

    Returns:
      (rows, share) of `self_judge.make_judge`: calls batched behind the context, and
      consecutive calls with the same candidate A.
    """
    largest = max(rounds(schedule, count, calls), default=0)
    rows, share = max(1, min(most, largest)), count - 1
    # Only if every ordered pair is asked do all blocks have n - 1 calls: each candidate
    # is then shown as A once with each other candidate.
    if largest != count * share or not 1 < share <= rows:
        return rows, 1
    return rows // share * share, share


def scheduled(
    judge: Judge, schedule: str, score: str, seed: int, *, value: str = "hard"
) -> Judge:
    """Wraps a judge: without explicit `calls` it plays the tournament.

    Args:
      judge: from `stepjax.self_judge` or `stepjax.controls`.
      schedule: one of `SCHEDULES`.
      score: reading of equation 2: both orders of a match, or one drawn by key.
      seed: base seed.
      value: what a verdict counts, one of `judge.VALUES`.

    Raises:
      ValueError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(
            f"judge.schedule={schedule!r}; expected one of {tuple(SCHEDULES)}."
        )
    if schedule == "full":
        return judge
    scores = comparisons(score, value).scores

    def by_rounds(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is not None:
            return judge(requests, calls)
        plays = [_seeded(SCHEDULES[schedule], request) for request in requests]
        verdicts: list[list[Verdict]] = [[] for _ in requests]
        rounds = [_next(play, None) for play in plays]
        while any(rounds):
            asked = [
                [call for match in matches for call in _orders(match, request)]
                for request, matches in zip(requests, rounds, strict=True)
            ]
            for number, answers in enumerate(judge(requests, asked)):
                verdicts[number] += answers
                if rounds[number]:
                    results = [_result(m, answers, scores) for m in rounds[number]]
                    rounds[number] = _next(plays[number], results)
        return verdicts

    def _orders(match: tuple[int, int], request: Request) -> list[tuple[int, int]]:
        both = [match, match[::-1]]
        if score != "single":
            return both
        coin = np.random.default_rng([seed, *request.path, *sorted(match)]).random()
        return [both[coin < 0.5]]

    return by_rounds


def voted(judge: Judge, judgments: Judgments, votes: int, seed: int) -> Judge:
    """Wraps a judge: each call is asked `votes` times, with other random draws.

    Args:
      judge: from `self_judge.make_judge`; its temperature is above 0.
      judgments: what is asked; `judge.majority` counts the votes of a call.
      votes: explanations per call.
      seed: base seed.

    Returns:
      A judge whose verdicts are those of the first vote, then of the second, ….
    """
    if votes == 1:
        return judge

    def ask(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, judgments, seed)
        verdicts: list[list[Verdict]] = [[] for _ in requests]
        for vote in range(votes):
            own = []
            for request in requests:
                *path, attempt = request.path
                path = (*path, attempt + vote * _ANOTHER_VOTE)
                own.append(request._replace(path=path))
            for found, answers in zip(verdicts, judge(own, calls), strict=True):
                found += answers
        return verdicts

    return ask


def _seeded(schedule: Callable[[int], Schedule], request: Request) -> Schedule:
    """Yields the matches of a schedule between candidates instead of seeds."""
    count = len(request.candidates)
    seeding = request.seeding or tuple(range(count))
    seed_of = {candidate: seed for seed, candidate in enumerate(seeding)}
    play, results = schedule(count), None
    while matches := _next(play, results):
        found = yield [(seeding[a], seeding[b]) for a, b in matches]
        results = [(seed_of[winner], margin) for winner, margin in found]


def _first_with_last(seeds: Sequence[int]) -> list[Match]:
    """Returns matches of the first with the last, and so on inwards."""
    half = len(seeds) // 2
    return list(zip(seeds[:half], reversed(seeds[-half:]), strict=True)) if half else []


def _other(match: tuple[int, int], one: int) -> int:
    return match[0] if match[1] == one else match[1]


def _next(play: Schedule, results: list[Result] | None) -> list[Match]:
    try:
        return play.send(results)
    except StopIteration:
        return []


def _result(
    match: Match, verdicts: Sequence[Verdict], scores: Callable[..., list]
) -> Result:
    """Returns the winner and its margin; without a preference, the first one and 0."""
    places = {name: place for place, name in enumerate(match)}
    own = [
        v._replace(a=places[v.a], b=places[v.b])
        for v in verdicts
        if {v.a, v.b} == set(match)
    ]
    first, second = scores(2, own)
    return match[int(second > first)], abs(first - second)
