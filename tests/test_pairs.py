"""Preference data: rows of a hand-made search, and there and back through JSON."""

import dataclasses
import json
import re

import pytest
from fakes import by_rank

from stepjax import records, search, trajectory
from stepjax.forest import IdPair
from stepjax.pairs import Pair, pairs_of, summary
from stepjax.records import Question
from stepjax.trajectory import (
    Candidate,
    Proposal,
    Refused,
    State,
    Verdict,
    hash_id,
)

QUESTION = Question("arith-1", "8*7+4*4+2*3+1")
OPTIONS = {"model": "M1", "iteration": 2, "seed": 9}


def candidate(codec, text, count=1, logp=-1.5):
    final = "boxed" in text
    ids = codec.step(text) + ((codec.tokenizer.eos_id,) if final else ())
    return Candidate(ids, text, count, logp, final)


def calls(table):
    """Verdicts of a table like "01A 10B 12-": shown as A, shown as B, winner."""
    return [
        Verdict(int(a), int(b), None if winner == "-" else winner)
        for a, b, winner in table.split()
    ]


def expand(state, codec, texts, verdicts, malformed=0, **options):
    found = [candidate(codec, *((t,) if isinstance(t, str) else t)) for t in texts]
    return search.transition(
        state, Proposal(tuple(found), malformed), verdicts, iteration=2, **options
    )


@pytest.fixture(scope="session")
def searched(codec):
    """Three steps kept by expansions 0, 3 and 4; the pair of expansion 1 is dropped."""
    state = State(QUESTION)
    first = [("Step 1: 8*7+4=1", 1, -2.5), ("Step 1: 8*7+4=0", 3, -0.25)]
    first.append(("Step 1: 5*7+4=9", 2, -3.0))
    state = expand(state, codec, first, by_rank(2, 3, 1), malformed=2)
    second = ["Step 2: 0*4+2=4", "Step 2: 0*4+2=3"]
    state = expand(state, codec, second, by_rank(2, 1))
    third = ["Step 3: 4*3+1=3; \\boxed{3}", "Step 3: 4*3+1=5; \\boxed{5}"]
    tie = [Verdict(0, 1, "A"), Verdict(1, 0, "A")]
    state = expand(state, codec, third, tie)
    second = ["Step 2: 0*4+2=4", "Step 2: 0*4+2=2"]
    state = expand(state, codec, second, by_rank(1, 2))
    third = ["Step 3: 2*3+1=7; \\boxed{7}", "Step 3: 2*3+1=1; \\boxed{1}"]
    verdicts = [Verdict(0, 1, "A", "fine"), Verdict(1, 0, None, "hm")]
    state = expand(state, codec, third, verdicts)
    assert (state.status, state.pair_from) == ("complete", (0, 3, 4))
    return state


@pytest.fixture(scope="session")
def appended(codec):
    """A search without budget left; its step 1 was appended without a pair."""
    state = State(Question("arith-2", "5*3+1*7+2"))
    options = {"on_tie": "append", "max_expansions": 3}
    state = expand(state, codec, [("Step 1: 5*3+1=6", 4)], [], **options)
    state = expand(state, codec, [], [], malformed=4, **options)  # back
    state = expand(state, codec, [("Step 1: 5*3+1=6", 3)], [], malformed=1, **options)
    assert (state.status, state.pair_from) == ("budget", (None,))
    return state


def test_rows_are_the_kept_preferences(codec, searched):
    rows = pairs_of(searched, codec, **OPTIONS)
    prompt = codec.solve_prompt(QUESTION.problem)
    step = codec.step
    assert rows[0] == Pair(
        id="arith-1/1",
        problem_id="arith-1",
        problem="8*7+4*4+2*3+1",
        step=1,
        steps=[],
        context_ids=list(prompt),
        chosen_ids=list(step("Step 1: 8*7+4=0")),
        rejected_ids=list(step("Step 1: 5*7+4=9")),
        chosen="Step 1: 8*7+4=0",
        rejected="Step 1: 5*7+4=9",
        scores=[2, 4, 0],
        counts=[1, 3, 2],
        candidates=["Step 1: 8*7+4=1", "Step 1: 8*7+4=0", "Step 1: 5*7+4=9"],
        best=1,
        worst=2,
        verdicts=[
            [0, 1, "B", "0 or 1?"],
            [0, 2, "A", "0 or 2?"],
            [1, 0, "A", "1 or 0?"],
            [1, 2, "A", "1 or 2?"],
            [2, 0, "B", "2 or 0?"],
            [2, 1, "B", "2 or 1?"],
        ],
        chosen_logp=-0.25,
        rejected_logp=-3.0,
        model="M1",
        iteration=2,
        seed_path=[9, 2, hash_id("arith-1"), 1, 0],
    )
    assert [(row.id, row.step) for row in rows[1:]] == [
        ("arith-1/2", 2),
        ("arith-1/3", 3),
    ]
    assert [row.chosen for row in rows[1:]] == [
        "Step 2: 0*4+2=2",
        "Step 3: 2*3+1=7; \\boxed{7}",
    ]
    assert rows[1].steps == [rows[0].chosen]
    assert rows[2].steps == [rows[0].chosen, rows[1].chosen]
    assert [row.rejected for row in rows[1:]] == [
        "Step 2: 0*4+2=4",
        "Step 3: 2*3+1=1; \\boxed{1}",
    ]
    # The dropped pair (=4 over =3) is nowhere, the attempts after it count on.
    assert all(row.rejected != "Step 2: 0*4+2=3" for row in rows)
    assert [row.seed_path[3:] for row in rows] == [[1, 0], [2, 1], [3, 1]]
    assert rows[2].scores == [1, 0] and rows[2].verdicts[1] == [1, 0, None, "hm"]


def test_contexts_are_the_prompt_and_the_kept_steps(codec, searched):
    rows = pairs_of(searched, codec, **OPTIONS)
    context = list(codec.solve_prompt(QUESTION.problem))
    for row, step in zip(rows, searched.steps, strict=True):
        assert row.context_ids == context
        assert row.chosen_ids == list(step.ids)
        assert row.ids() == IdPair(tuple(context), step.ids, tuple(row.rejected_ids))
        context += step.ids
    assert rows[2].chosen_ids[-1] == rows[2].rejected_ids[-1] == codec.tokenizer.eos_id
    assert codec.text(context) == "\n".join(
        [QUESTION.problem, *(s.text for s in searched.steps)]
    )


def test_steps_without_a_pair_stay_in_the_context(codec, appended):
    assert pairs_of(appended, codec, **OPTIONS) == []
    state = dataclasses.replace(appended, status="running")
    texts = ["Step 2: 6*7+2=1; \\boxed{1}", "Step 2: 6*7+2=4; \\boxed{4}"]
    state = expand(state, codec, texts, by_rank(1, 2))
    (row,) = pairs_of(state, codec, **OPTIONS)
    assert (row.id, row.step, row.chosen) == ("arith-2/2", 2, texts[1])
    assert row.context_ids == [
        *codec.solve_prompt("5*3+1*7+2"),
        *codec.step("Step 1: 5*3+1=6"),
    ]
    # Step 2 was tried before, without a candidate.
    assert row.seed_path == [9, 2, hash_id("arith-2"), 2, 1]


@pytest.mark.parametrize(
    ("verdicts", "best", "kept"),
    [
        (by_rank(3, 2, 1), 0, True),
        (by_rank(1, 2, 3), 2, True),
        # 0 scores 3 and wins, but lost once against 1, or was once not understood.
        (calls("01A 10A 02A 20B 12B 21B"), 0, False),
        (calls("01A 10- 02A 20B 12B 21B"), 0, False),
        # Calls between two other candidates do not matter.
        (calls("01A 10B 02A 20B 12A 21-"), 0, True),
        # Equally good as another one, chosen by multiplicity.
        (calls("01A 10A 02A 20B 12A 21B"), 0, False),
        # One order per pair.
        (calls("10B 02A 21A"), 0, True),
        (calls("10- 02A 21A"), 0, False),
    ],
)
def test_best_beats_all_keeps_clear_preferences_only(codec, verdicts, best, kept):
    texts = [("Step 1: 8*7+4=0", 5), "Step 1: 8*7+4=1", "Step 1: 8*7+4=2"]
    state = expand(State(QUESTION), codec, texts, verdicts)
    assert state.expansions[0].best == best
    assert len(pairs_of(state, codec, **OPTIONS)) == 1
    found = pairs_of(state, codec, best_beats_all=True, **OPTIONS)
    assert len(found) == (1 if kept else 0)


@pytest.mark.parametrize(("margin", "kept"), [(1, 1), (3, 1), (4, 0)])
def test_min_margin_keeps_large_differences_only(codec, margin, kept):
    texts = ["Step 1: 8*7+4=0", "Step 1: 8*7+4=1", "Step 1: 8*7+4=2"]
    verdicts = calls("01A 10B 02A 20- 12A 21B")  # scores 3, 2, 0
    state = expand(State(QUESTION), codec, texts, verdicts)
    assert state.expansions[0].scores == (3, 2, 0)
    found = pairs_of(state, codec, min_margin=margin, **OPTIONS)
    assert len(found) == kept


def test_best_beats_all_drops_rows_not_steps(codec, searched):
    rows = pairs_of(searched, codec, best_beats_all=True, **OPTIONS)
    assert rows == pairs_of(searched, codec, **OPTIONS)[:2]  # step 3 had an "hm"


# JSON.


def test_pairs_survive_the_file(codec, searched, tmp_path):
    rows = pairs_of(searched, codec, **OPTIONS)
    rows[1] = dataclasses.replace(rows[1], problem="caf\u00e9 \u2028 {a} \\boxed{")
    path = tmp_path / "pairs.jsonl"
    records.write_jsonl(path, rows)
    assert records.read_jsonl(path, Pair) == rows
    again = tmp_path / "again.jsonl"
    records.write_jsonl(again, records.read_jsonl(path, Pair))
    assert again.read_bytes() == path.read_bytes()
    keys = list(json.loads(path.read_text("utf-8").split("\n")[0]))
    assert keys == [field.name for field in dataclasses.fields(Pair)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("context_ids", [], "'context_ids' is .*nonempty list of token ids"),
        ("chosen_ids", [], "'chosen_ids' is .*nonempty list of token ids"),
        ("rejected_ids", [], "'rejected_ids' is .*nonempty list of token ids"),
        ("context_ids", [3, -1, 5], "'context_ids' is .*-1"),
        ("chosen_ids", [-7], "'chosen_ids' is .*-7"),
        ("rejected_ids", [1, 2.0], "'rejected_ids'"),
        ("rejected_ids", [1, True], "'rejected_ids'"),
        ("chosen_ids", ["1"], "'chosen_ids'"),
        ("chosen_ids", "12", "'chosen_ids'"),
        ("chosen_ids", None, "'chosen_ids'"),
        ("chosen_ids", 12, "'chosen_ids'"),
        ("chosen", 7, "'chosen' is 7; expected a string"),
        ("unknown", 7, "unknown field 'unknown'"),
    ],
)
def test_malformed_rows_are_refused(codec, searched, tmp_path, field, value, message):
    rows = [dataclasses.asdict(row) for row in pairs_of(searched, codec, **OPTIONS)]
    rows[1][field] = value
    path = tmp_path / "pairs.jsonl"
    records.write_jsonl(path, rows)
    place = rf"pairs\.jsonl:2 \(id {re.escape(rows[1]['id'])}\): "
    with pytest.raises(ValueError, match=f"{place}.*{message}"):
        records.read_jsonl(path, Pair)


def test_equal_steps_make_no_pair(codec, searched, tmp_path):
    row = pairs_of(searched, codec, **OPTIONS)[0]
    with pytest.raises(ValueError, match="chosen_ids equal rejected_ids"):
        dataclasses.replace(row, rejected_ids=list(row.chosen_ids))
    path = tmp_path / "pairs.jsonl"
    records.write_jsonl(path, [row, row])
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: id 'arith-1/1'"):
        records.read_jsonl(path, Pair)


def test_pairs_of_a_read_trajectory_are_the_same(codec, searched):
    read = trajectory.from_row(json.loads(json.dumps(trajectory.to_row(searched))))
    assert pairs_of(read, codec, **OPTIONS) == pairs_of(searched, codec, **OPTIONS)


# Counts and rates.


def test_summary_by_hand(searched, appended):
    refused = (Refused("cut off", 3, "Step 1: 5*"), Refused("no marker", 1, "5*3"))
    others = (Refused("cut off", 1, "Step 1:"), *appended.expansions[0].refused)
    first, second, third = appended.expansions
    second = dataclasses.replace(second, refused=refused)
    third = dataclasses.replace(third, refused=others)
    appended = dataclasses.replace(appended, expansions=(first, second, third))
    found = summary([searched, appended])
    assert found == {
        "questions": 2,
        "complete": 1,
        "complete_rate": 1 / 2,
        "expansions": 8,  # 5 + 3
        "judgments": 14,  # 6 + 2 + 2 + 2 + 2
        # (6 + 2) + 2 + 2 + 2 + 2, and 4 + 4 + (3 + 1)
        "samples": 28,
        "tie_rate": 3 / 7,  # one back, two appended; no candidate is no tie
        "reject_rate": 0.0,
        "flip_rate": 1 / 6,  # 3 + 1 + 1 + 1 pairs of candidates; expansion 2 flips
        "unparsed_rate": 1 / 14,
        "malformed_rate": 7 / 28,
        "cut_off_rate": 4 / 28,
        "unmarked_rate": 1 / 28,
        "misshapen_rate": 0,  # the other two samples do not say why
        "steps_per_solution": 4 / 2,
        "tokens_per_step": (7 + 7 + 10 + 7) / 4,
    }


def test_summary_of_nothing():
    assert set(summary([]).values()) == {0}
    unsearched = summary([State(QUESTION, status="length")])
    assert unsearched.pop("questions") == 1
    assert set(unsearched.values()) == {0}
