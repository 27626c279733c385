"""Step search: every transition by hand, and key paths."""

import dataclasses

import pytest
from fakes import by_rank

from stepjax import search
from stepjax.judge import comparisons, ordered_pairs
from stepjax.records import Question
from stepjax.search import transition
from stepjax.trajectory import (
    Candidate,
    Expansion,
    Proposal,
    State,
    Verdict,
    hash_id,
)

QUESTION = Question("q-1", "spell it")


def step(text, count=1, logp=-1.0, finished=False):
    return Candidate(tuple(text.encode()), text, count, logp, finished)


def proposal(*candidates, malformed=0):
    return Proposal(tuple(candidates), malformed)


def always_first(count):
    return [Verdict(a, b, "A") for a, b in ordered_pairs(count, "sum", ())]


def two_steps():
    """A state with two kept steps, made by expansions 0 and 1."""
    state = State(QUESTION)
    for first, second in (("a", "b"), ("c", "d")):
        state = transition(state, proposal(step(first), step(second)), by_rank(2, 1))
    assert [s.text for s in state.steps] == ["a", "c"] and state.pair_from == (0, 1)
    return state


# One expansion.


def test_best_is_appended_and_best_and_worst_make_the_pair():
    candidates = step("a"), step("b"), step("c")
    # b beats both others in both orders, a beats c when shown first.
    verdicts = [
        Verdict(0, 1, "B", "r0"),
        Verdict(0, 2, "A", "r1"),
        Verdict(1, 0, "A", "r2"),
        Verdict(1, 2, "A", "r3"),
        Verdict(2, 0, None, "cut off"),
        Verdict(2, 1, "B", "r5"),
    ]
    state = transition(State(QUESTION), proposal(*candidates, malformed=2), verdicts)
    assert state.steps == (candidates[1],)
    assert state.pair_from == (0,)
    assert state.status == "running"
    assert state.expansions == (
        Expansion(
            step=1,
            attempt=0,
            candidates=candidates,
            malformed=2,
            verdicts=tuple(verdicts),
            scores=(1, 4, 0),
            best=1,
            worst=2,
            action="pair",
            path=(0, hash_id("q-1"), 1, 0),
        ),
    )


def test_pairs_count_all_expansions():
    state = two_steps()
    state = transition(state, proposal(step("e"), step("f")), always_first(2))  # back
    state = transition(state, proposal(step("g"), step("h")), by_rank(1, 2))
    assert [s.text for s in state.steps] == ["a", "h"]
    assert state.pair_from == (0, 3)
    assert [e.step for e in state.expansions] == [1, 2, 3, 2]
    assert [e.attempt for e in state.expansions] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "verdicts", [always_first(3), by_rank(1, 1, 1), [], by_rank(5, 5, 5)[:2]]
)
def test_all_scores_equal_drops_the_step_and_its_pair(verdicts):
    before = two_steps()
    proposed = proposal(step("e"), step("f"), step("g"))
    state = transition(before, proposed, verdicts)
    assert state.steps == before.steps[:1]
    assert state.pair_from == (0,)
    assert state.expansions[:2] == before.expansions
    last = state.expansions[2]
    assert (last.step, last.action, last.best, last.worst) == (3, "back", None, None)
    assert len(set(last.scores)) == 1
    assert state.status == "running"


def test_tie_at_step_one_resamples_it():
    state = State(QUESTION)
    for attempt in range(3):
        state = transition(state, proposal(step("a"), step("b")), always_first(2))
        assert (state.steps, state.pair_from) == ((), ())
        last = state.expansions[-1]
        assert (last.step, last.attempt, last.action) == (1, attempt, "resample")
    assert state.attempt() == 3


def test_append_keeps_going_on_a_tie_without_a_pair():
    proposed = proposal(step("e"), step("f", count=3), step("g", count=2))
    state = transition(two_steps(), proposed, always_first(3), on_tie="append")
    assert [s.text for s in state.steps] == ["a", "c", "f"]
    assert state.pair_from == (0, 1, None)
    last = state.expansions[-1]
    assert (last.action, last.best, last.worst) == ("append", 1, None)
    # A preference still makes a pair.
    state = transition(state, proposed, by_rank(1, 2, 3), on_tie="append")
    assert state.pair_from == (0, 1, None, 3)
    assert (state.expansions[-1].best, state.expansions[-1].worst) == (2, 0)


@pytest.mark.parametrize(
    ("start", "on_tie", "action", "texts", "pairs"),
    [
        (State(QUESTION), "back", "resample", [], ()),
        (State(QUESTION), "append", "append", ["e"], (None,)),
        (two_steps(), "back", "back", ["a"], (0,)),
        (two_steps(), "append", "append", ["a", "c", "e"], (0, 1, None)),
    ],
)
def test_one_distinct_candidate_is_a_tie(start, on_tie, action, texts, pairs):
    state = transition(start, proposal(step("e", count=6)), [], on_tie=on_tie)
    assert state.expansions[-1].action == action
    assert state.expansions[-1].scores == (0,)
    assert [s.text for s in state.steps] == texts
    assert state.pair_from == pairs


@pytest.mark.parametrize("on_tie", search.ON_TIE)
def test_no_candidate_goes_back_whatever_on_tie_says(on_tie):
    for start, action, texts in (
        (State(QUESTION), "resample", []),
        (two_steps(), "back", ["a"]),
    ):
        state = transition(start, proposal(malformed=4), [], on_tie=on_tie)
        last = state.expansions[-1]
        assert (last.action, last.scores, last.malformed) == (action, (), 4)
        assert (last.best, last.worst) == (None, None)
        assert [s.text for s in state.steps] == texts
        assert len(state.pair_from) == len(texts)


def test_unparsed_verdicts_count_for_nobody():
    # Counted for b, the second call would make a tie.
    verdicts = [Verdict(0, 1, "A"), Verdict(1, 0, None, "b is better, surely")]
    state = transition(State(QUESTION), proposal(step("a"), step("b")), verdicts)
    assert state.expansions[0].scores == (1, 0)
    assert state.steps[0].text == "a"
    for score in ("sum", "consistent", "single"):
        unparsed = [v._replace(winner=None) for v in verdicts]
        state = transition(
            State(QUESTION),
            proposal(step("a"), step("b")),
            unparsed,
            scores=comparisons(score).scores,
        )
        assert state.expansions[0].scores == (0, 0)
        assert state.expansions[0].action == "resample"


def test_reading_of_equation_2_decides():
    # sum: a has 2, b 3, c 1 wins; consistent: a beats c, b beats a, c nobody.
    verdicts = [
        Verdict(0, 1, "B"),
        Verdict(1, 0, "A"),
        Verdict(0, 2, "A"),
        Verdict(2, 0, "B"),
        Verdict(1, 2, "A"),
        Verdict(2, 1, "A"),
    ]
    candidates = step("a"), step("b"), step("c")
    results = {
        score: transition(
            State(QUESTION),
            proposal(*candidates),
            verdicts,
            scores=comparisons(score).scores,
        )
        for score in ("sum", "consistent")
    }
    assert results["sum"].expansions[0].scores == (2, 3, 1)
    assert results["consistent"].expansions[0].scores == (1, 1, 0)
    assert results["sum"].steps[0].text == "b"
    assert results["consistent"].steps[0].text == "a"  # equal to b: the first


@pytest.mark.parametrize(
    ("counts", "logps", "scores", "best", "worst"),
    [
        # The score comes first, whatever the rest says.
        ((1, 9, 5), (-9.0, -1.0, -2.0), (2, 1, 0), 0, 2),
        # Then multiplicity, for the best and for the worst.
        ((1, 2, 9, 1, 2), (-1.0, -9.0, -5.0, -1.0, -9.0), (3, 3, 2, 0, 0), 1, 4),
        # Then the log-probability.
        ((2, 2, 9, 2, 2), (-3.0, -2.0, -1.0, -5.0, -4.0), (3, 3, 2, 0, 0), 1, 4),
        # Then the index.
        ((2, 2, 9, 2, 2), (-3.0, -3.0, -1.0, -4.0, -4.0), (3, 3, 2, 0, 0), 0, 3),
    ],
)
def test_ties_break_by_score_count_probability_and_index(
    counts, logps, scores, best, worst
):
    candidates = [step("x", c, p) for c, p in zip(counts, logps, strict=True)]
    assert search.best_and_worst(candidates, scores) == (best, worst)


def test_a_request_has_the_steps_so_far_and_the_likely_winners_first():
    state = search.State(Question("q", "p"), steps=(step("a"),))
    candidates = step("x", 1, -1.0), step("y", 1, -0.5), step("z", 2, -3.0)
    asked = search.request(4, state, candidates, (1, 2))
    assert asked[:4] == (4, "q", "p", (state.steps[0].ids,))
    assert asked.candidates == tuple(c.ids for c in candidates)
    assert asked.path == (1, 2) and asked.seeding == (2, 1, 0)


def test_every_expansion_counts_towards_the_budget():
    pair, tie = by_rank(2, 1), always_first(2)
    state = State(QUESTION)
    # pair, tie (back), tie (resample), pair, and the last one allowed: a tie.
    for verdicts in (pair, tie, tie, pair):
        state = transition(
            state, proposal(step("a"), step("b")), verdicts, max_expansions=5
        )
        assert state.status == "running"
    state = transition(state, proposal(step("a"), step("b")), tie, max_expansions=5)
    assert state.status == "budget"
    assert [e.action for e in state.expansions] == [
        "pair",
        "back",
        "resample",
        "pair",
        "back",
    ]
    assert (state.steps, state.pair_from) == ((), ())


def test_budget_keeps_the_pairs_that_were_made():
    state = transition(
        two_steps(), proposal(step("e"), step("f")), by_rank(1, 2), max_expansions=3
    )
    assert state.status == "budget"
    assert [s.text for s in state.steps] == ["a", "c", "f"]
    assert state.pair_from == (0, 1, 2)


def test_complete_when_the_chosen_step_is_finished():
    proposed = proposal(step("e", finished=True), step("f"))
    done = transition(two_steps(), proposed, by_rank(2, 1))
    assert (done.status, done.pair_from) == ("complete", (0, 1, 2))
    # Only the chosen one counts, and completing wins over an empty budget.
    assert transition(two_steps(), proposed, by_rank(1, 2)).status == "running"
    last = transition(two_steps(), proposed, by_rank(2, 1), max_expansions=3)
    assert last.status == "complete"
    alone = proposal(step("e", finished=True))
    appended = transition(two_steps(), alone, [], on_tie="append")
    assert (appended.status, appended.pair_from) == ("complete", (0, 1, None))
    dropped = transition(two_steps(), alone, [])
    assert (dropped.status, len(dropped.steps)) == ("running", 1)


@pytest.mark.parametrize("status", ["complete", "budget", "length"])
def test_closed_state_refuses(status):
    state = dataclasses.replace(two_steps(), status=status)
    with pytest.raises(ValueError, match=f"'q-1' is {status}"):
        transition(state, proposal(step("e")), [])


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="on_tie='forward'"):
        transition(State(QUESTION), proposal(step("a")), [], on_tie="forward")
    with pytest.raises(ValueError, match="score='mean'"):
        transition(
            State(QUESTION),
            proposal(step("a")),
            [],
            scores=comparisons("mean").scores,
        )
