"""Partial tournaments against the full one, by hand and at random."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepjax import tournament
from stepjax.judge import Request, comparisons, ordered_pairs, win_counts
from stepjax.search import best_and_worst
from stepjax.trajectory import Candidate, Verdict

PARTIAL = ("knockout", "swiss")


def request(count, slot=0):
    return Request(slot, "q", "problem", (), tuple((i,) for i in range(count)), (1, 2))


def judge_by_rank(ranks, log=None):
    """A judge that prefers the candidate of the higher rank, each request its own."""

    def judge(requests, calls=None):
        if calls is None:
            calls = [ordered_pairs(len(r.candidates), "sum", ()) for r in requests]
        if log is not None:
            log.append(calls)
        answers = []
        for r, pairs in zip(requests, calls, strict=True):
            rank = ranks[r.slot]
            verdicts = []
            for a, b in pairs:
                gap = rank[a] - rank[b]
                won = "A" if gap > 0 else "B" if gap < 0 else None
                verdicts.append(Verdict(a, b, won))
            answers.append(verdicts)
        return answers

    return judge


def candidates(count):
    return [Candidate((i,), str(i), 1, -float(i), False) for i in range(count)]


def calls(score):
    return comparisons(score).calls


def calls_of(schedule, count, score="sum"):
    judge = judge_by_rank({0: list(range(count))})
    asked = tournament.scheduled(judge, schedule, score, 0)([request(count)])
    return [(v.a, v.b) for v in asked[0]]


@pytest.mark.parametrize("schedule", ["full", *PARTIAL])
@pytest.mark.parametrize("score", ["sum", "consistent", "single"])
@pytest.mark.parametrize("count", range(1, 7))
def test_a_sure_judge_gives_the_same_best_and_worst(schedule, score, count):
    worsts = []
    for ranks in itertools.permutations(range(count)):
        judge = tournament.scheduled(judge_by_rank({0: ranks}), schedule, score, 5)
        (verdicts,) = judge([request(count)])
        scores = win_counts(count, verdicts, score)
        best, worst = best_and_worst(candidates(count), scores)
        assert ranks[best] == count - 1
        worsts.append(ranks[worst] == 0)
    if schedule != "swiss":
        assert all(worsts)
    if count == 6:  # swiss: who never met the worst may look as bad
        assert sum(worsts) > 0.9 * len(worsts)


def test_calls_of_six_candidates():
    assert len(calls_of("full", 6)) == 30
    asked_by = {schedule: calls_of(schedule, 6) for schedule in PARTIAL}
    assert [len(asked) for asked in asked_by.values()] == [14, 18]
    assert len(calls_of("knockout", 6, "single")) == 7
    for asked in asked_by.values():
        assert len(set(asked)) == len(asked)
        assert {pair[::-1] for pair in asked} == set(asked)


@pytest.mark.parametrize("schedule", PARTIAL)
@settings(deadline=None)
@given(count=st.integers(2, 12), data=st.data())
def test_no_call_is_asked_twice_and_everybody_plays(schedule, count, data):
    table = data.draw(
        st.lists(
            st.sampled_from(["A", "B", None]), min_size=count**2, max_size=count**2
        )
    )

    def judge(requests, calls):
        return [[Verdict(a, b, table[a * count + b]) for a, b in c] for c in calls]

    (verdicts,) = tournament.scheduled(judge, schedule, "sum", 0)([request(count)])
    asked = [(v.a, v.b) for v in verdicts]
    assert all(a != b for a, b in asked)
    assert len(set(asked)) == len(asked)
    assert {i for pair in asked for i in pair} == set(range(count))
    assert len(asked) <= count * (count - 1)


@pytest.mark.parametrize("schedule", ["full", *PARTIAL])
@pytest.mark.parametrize("score", ["sum", "single"])
@pytest.mark.parametrize("count", [2, 3, 5, 6, 9])
def test_a_call_has_rows_for_the_largest_round(schedule, score, count):
    log = []
    judge = judge_by_rank({0: list(range(count, 0, -1))}, log)
    if schedule == "full":
        asked = [len(ordered_pairs(count, score, ()))]
    else:
        tournament.scheduled(judge, schedule, score, 0)([request(count)])
        asked = [len(calls[0]) for calls in log]
    assert asked == tournament.rounds(schedule, count, calls(score))
    rows, share = tournament.layout(schedule, count, calls(score), 1000)
    assert rows == max(asked)
    shared = max(asked) == count * (count - 1)  # each is shown first with all others
    assert share == (count - 1 if shared else 1)


@pytest.mark.parametrize(
    ("most", "layout"), [(1, (1, 1)), (4, (4, 1)), (5, (5, 5)), (14, (10, 5))]
)
def test_rows_are_whole_blocks_of_one_first_candidate(most, layout):
    assert tournament.layout("full", 6, calls("consistent"), most) == layout


def test_requests_of_unlike_sizes_share_their_rounds():
    log = []
    ranks = {0: [0, 3, 1, 2], 1: [0], 2: [1, 0]}
    judge = tournament.scheduled(judge_by_rank(ranks, log), "knockout", "sum", 0)
    requests = [request(len(rank), slot) for slot, rank in ranks.items()]
    answers = judge(requests)
    assert [len(a) for a in answers] == [8, 0, 2]
    assert [[len(calls) for calls in turn] for turn in log] == [[4, 0, 2], [4, 0, 0]]
    # Named calls are asked as they are.
    log.clear()
    judge(requests, [[(0, 1)], [], [(1, 0)]])
    assert log == [[[(0, 1)], [], [(1, 0)]]]


def test_scores_of_unplayed_comparisons_are_filled_in():
    verdicts = [Verdict(0, 1, "A"), Verdict(1, 0, "B"), Verdict(0, 2, "B")]
    # 0 won both calls against 1, lost one against 2; 1 met one, 2 met one.
    assert win_counts(3, verdicts, "sum") == [2.0, 0.0, 2.0]
    assert win_counts(2, verdicts[:2], "sum") == [2, 0]


def test_single_draws_one_order_by_key():
    first = calls_of("knockout", 6, "single")
    assert first == calls_of("knockout", 6, "single")
    rng = np.random.default_rng([0, 1, 2, 0, 5])
    assert first[0] == ((5, 0) if rng.random() < 0.5 else (0, 5))


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="judge.schedule='ladder'; expected one of"):
        tournament.scheduled(judge_by_rank({}), "ladder", "sum", 0)


@pytest.mark.parametrize("schedule", PARTIAL)
def test_likely_winners_meet_late(schedule):
    log = []
    judge = judge_by_rank({0: [3, 0, 1, 2]}, log)
    seeded = request(4)._replace(seeding=(0, 3, 2, 1))
    tournament.scheduled(judge, schedule, "single", 0)([seeded])
    first = {frozenset(call) for call in log[0][0]}
    if schedule == "knockout":
        assert first == {frozenset((0, 1)), frozenset((3, 2))}
    if schedule == "swiss":
        assert first == {frozenset((0, 3)), frozenset((2, 1))}


def test_points_of_swiss_are_margins():
    play = tournament.swiss(4)
    assert next(play) == [(0, 1), (2, 3)]
    # A clear win is worth more than a narrow one, and an even match nothing.
    assert play.send([(0, 0.1), (3, 0.9)]) == [(3, 0), (1, 2)]
