"""What a search makes: key paths, contexts, and there and back through JSON."""

import json

from stepjax import trajectory
from stepjax.judge import ordered_pairs
from stepjax.records import Question
from stepjax.search import transition
from stepjax.trajectory import (
    Candidate,
    Proposal,
    Refused,
    State,
    Verdict,
    hash_id,
)

QUESTION = Question("q-1", "spell it")


def step(text, count=1, finished=False):
    return Candidate(tuple(text.encode()), text, count, -0.25, finished)


def expand(state, *candidates, winner="A", malformed=0, **options):
    """One expansion; of each pair the candidate named first wins, or nobody."""
    sides = {True: winner, False: "B" if winner == "A" else winner}
    verdicts = [
        Verdict(a, b, sides[a < b], f"{a} or {b}?")
        for a, b in ordered_pairs(len(candidates), "sum", ())
    ]
    proposal = Proposal(tuple(map(step, candidates)), malformed)
    return transition(state, proposal, verdicts, iteration=3, **options)


class Letters:
    """The part of a codec that contexts need: an id per letter."""

    def solve_prompt(self, problem):
        return tuple(f"{problem}: ".encode())


def test_ids():
    assert hash_id("q-1") != hash_id("q-2")
    assert 0 <= hash_id("q-1") < 2**32
    assert hash_id("123456789") == 0xCBF43926  # crc32, the same on every machine


def test_key_path_counts_expansions_again_after_going_back():
    state, paths = State(QUESTION), []
    for winner in ("A", None, "A", None, None, "A", "A"):
        paths.append(state.key_path(3))
        state = expand(state, "a", "b", winner=winner)
    assert [path[:2] for path in paths] == [(3, hash_id("q-1"))] * 7
    steps_and_attempts = [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (1, 3), (2, 2)]
    assert [path[2:] for path in paths] == steps_and_attempts
    assert [(e.step, e.attempt) for e in state.expansions] == steps_and_attempts
    # Each expansion keeps the path that its draws had.
    assert [e.path for e in state.expansions] == paths


def test_a_context_is_the_prompt_and_the_first_kept_steps():
    state = State(QUESTION)
    for texts in (("ab", "x"), ("c", "y"), ("def", "z")):
        state = expand(state, *texts)
    found = [trajectory.context_ids(Letters(), state, kept) for kept in range(4)]
    texts = ["spell it: ", "spell it: ab", "spell it: abc", "spell it: abcdef"]
    assert [bytes(ids).decode() for ids in found] == texts
    assert trajectory.context_ids(Letters(), state) == found[3]


def test_trajectories_survive_json():
    searched = expand(State(QUESTION), "a", "b", "c", malformed=2)
    searched = expand(searched, "d", "e", winner=None)  # back
    searched = expand(searched, "a", "c")
    searched = expand(searched, "f", "g")
    cut = (Refused("cut off", 2, "Step 3: and so \u2028"), Refused("other", 1, ""))
    proposal = Proposal((step("x"), step("y")), 3, cut)
    searched = transition(searched, proposal, [], on_tie="append")
    assert searched.expansions[-1].refused == cut
    appended = expand(State(Question("q-2", "cafe \u2028 {a}")), "a", on_tie="append")
    untouched = State(Question("q-3", "1*3+1"), status="length")
    assert searched.pair_from == (2, 3, None) and appended.pair_from == (None,)
    for state in (searched, appended, untouched):
        row = trajectory.to_row(state)
        assert (row["id"], row["problem"]) == (
            state.question.id,
            state.question.problem,
        )
        read = json.loads(json.dumps(row))
        assert trajectory.from_row(read) == state
        assert trajectory.to_row(trajectory.from_row(read)) == row
        again = json.dumps(trajectory.to_row(trajectory.from_row(read)))
        assert again == json.dumps(row)
    row = json.loads(json.dumps(trajectory.to_row(searched)))
    assert row["expansions"][1]["verdicts"] == [
        [0, 1, None, "0 or 1?"],
        [1, 0, None, "1 or 0?"],
    ]
    assert row["expansions"][3]["path"] == [3, hash_id("q-1"), 2, 1]
    assert row["steps"][0]["text"] == "a" and row["pair_from"] == [2, 3, None]
    assert row["expansions"][4]["refused"][1] == {
        "fault": "other",
        "count": 1,
        "text": "",
    }
