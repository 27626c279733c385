"""Preferences between explanations of the same call (`judge.learn`)."""

import pytest
import runs
from fakes import candidate
from tiny_config import changed

from stepjax import forest, iterate, records, trajectory
from stepjax.judge import comparisons
from stepjax.judgment_pairs import JudgmentPair, judgment_pairs
from stepjax.lm import files
from stepjax.records import Question
from stepjax.run import ranges
from stepjax.trajectory import Candidate, Expansion, State, Verdict
from stepjax.worlds import arithmetic

PROBLEM = "8*7+4*4+2*3+1"
FIRST = ("Step 1: 8*7+4=0", "Step 1: 8*7+4=5", "Step 1: 5*7+4=9")


def said(table):
    """Votes from a table like "01AB 10BB": shown as A and B, a verdict per vote."""
    votes = []
    for item in table.split():
        a, b, *sides = item
        for number, side in enumerate(sides):
            winner = None if side == "-" else side
            text = f"{a}{b}{number} [[{side}]]"
            ids = tuple(text.encode())
            votes.append(Verdict(int(a), int(b), winner, text, None, ids))
    return tuple(votes)


def searched(codec, verdicts, texts=FIRST, kept=()):
    made = tuple(Candidate(codec.step(t), t, 1, -1.0, False) for t in texts)
    before = []
    for number, text in enumerate(kept):
        step = Candidate(codec.step(text), text, 1, -1.0, False)
        e = Expansion(number + 1, 0, (step,), 0, (), (), 0, None, "append", (1,))
        before.append(e)
    last = Expansion(
        len(kept) + 1, 2, made, 0, verdicts, (), None, None, "reject", (1,)
    )
    return State(Question("q", PROBLEM), (), (), (*before, last), "budget")


def made_of(codec, state, learn="consistency", most=99, seed=0):
    return judgment_pairs(
        [state],
        codec,
        comparisons(),
        learn=learn,
        is_right=arithmetic.is_right,
        most=most,
        seed=seed,
    )


def test_an_explanation_that_agrees_is_preferred_to_one_that_does_not(codec):
    # Both orders agree on 0 against 1, with one vote against; 0 and 2 flip with the
    # order; 1 against 2 is undecided in one order.
    table = "01AAB 10BBB 02AAB 20AAB 12AB- 21BBA"
    (pair,) = made_of(codec, searched(codec, said(table)))
    assert pair.id == "q/1/2/0/1" and pair.winner == "A"
    assert (pair.chosen, pair.rejected) == ("010 [[A]]", "012 [[B]]")
    assert (pair.a, pair.b) == FIRST[:2] and pair.votes == ["A", "A", "B"]
    assert bytes(pair.chosen_ids) == b"010 [[A]]"
    asked = codec.judge_context(PROBLEM, ()) + codec.judge_question(
        codec.step(FIRST[0]), codec.step(FIRST[1])
    )
    assert tuple(pair.context_ids) == asked
    assert pair.ids() == forest.IdPair(
        asked, tuple(pair.chosen_ids), tuple(pair.rejected_ids)
    )


def test_the_gold_names_the_winner_where_answers_are_known(codec):
    # 0 alone is right. The votes prefer 1 in both orders.
    state = searched(codec, said("01ABB 10AAB 02AAA 12AB-"))
    pairs = made_of(codec, state, "outcome")
    assert [(p.id[-3:], p.winner, p.chosen[:3]) for p in pairs] == [
        ("0/1", "A", "010"),
        ("1/0", "B", "102"),
    ]
    # By consistency it is the other way round.
    pairs = made_of(codec, state)
    assert [(p.id[-3:], p.winner) for p in pairs] == [("0/1", "B"), ("1/0", "A")]


def test_the_context_has_the_steps_that_were_kept(codec):
    later = ("Step 2: 0*4+2=2", "Step 2: 0*4+2=3")
    state = searched(codec, said("01AB 10BB"), later, FIRST[:1])
    (pair,) = made_of(codec, state, "outcome")
    steps = [codec.step(FIRST[0])]
    assert tuple(pair.context_ids) == codec.judge_context(
        PROBLEM, steps
    ) + codec.judge_question(*map(codec.step, later))


def test_at_most_so_many_are_kept_and_drawn_by_seed(codec):
    state = searched(codec, said("01AB 10AB 02AB 20AB"))
    every = made_of(codec, state, "outcome")
    assert len(every) == 4
    drawn = made_of(codec, state, "outcome", 2, 1)
    assert len(drawn) == 2 and drawn == made_of(codec, state, "outcome", 2, 1)
    assert all(pair in every for pair in drawn)
    assert made_of(codec, state, "outcome", 0) == []


def test_verdicts_with_ids_are_written_and_read_back():
    verdict = Verdict(0, 1, "A", "hm", None, (4, 5))
    assert verdict.row() == [0, 1, "A", "hm", None, (4, 5)]
    e = Expansion(1, 0, (candidate("a"),), 0, (verdict,), (), 0, None, "append", (1,))
    state = State(Question("q", "p"), (), (), (e,), "budget")
    assert trajectory.from_row(trajectory.to_row(state)) == state


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"judge.votes": 2}, "judge.votes=2; expected 3 or more with judge.learn="),
        ({"judge.score": "single"}, "'single'; expected 'sum' or 'consistent' with"),
        ({"judge.by": "random"}, "expected ('self', '', 'generate', 'comparisons')"),
        ({"judge.model": "M1"}, "expected ('self', '', 'generate', 'comparisons')"),
        ({"judge.learn": "outcome", "judge.votes": 2}, ""),
        (
            {"judge.learn": "outcome", "judge.votes": 1},
            "judge.votes=1; expected 2 or more with judge.learn='outcome'",
        ),
    ],
)
def test_learning_that_makes_no_sense_is_refused(changes, words):
    c = changed(judge__learn="consistency", judge__votes=3)
    c.update_from_flattened_dict(changes)
    found = ranges.wrong(c)
    assert len(found) == bool(words) and all(words in line for line in found)


def test_a_run_trains_on_pairs_of_its_judgments(tmp_path):
    with runs.quick_runs():
        run = runs.copy_run(
            tmp_path / "run",
            *("M1/search*", "M1/pairs*", "M2", "M3", "eval"),
            judge__learn="consistency",
            judge__votes=3,
        )
        iterate.search(run, 1)
        iterate.dpo(run, 1)
    folder = run.dir.model(1)
    pairs = records.read_jsonl(folder / "judgments.jsonl", JudgmentPair)
    counts = files.read_json(folder / "search.json")["counts"]
    assert 0 < len(pairs) == counts["judgment_pairs"] <= counts["pairs"]
    for pair in pairs:
        assert {"A", "B"} <= set(pair.votes)
        assert run.codec.text(pair.chosen_ids) == pair.chosen
        assert run.codec.text(pair.rejected_ids) == pair.rejected
        assert pair.chosen.endswith(f"[[{pair.winner}]]")
    made = files.read_json(run.dir.model(2) / "manifest.json")
    assert set(made["inputs"]) == {"M1", "pairs", "judgments"}
    counted = made["counts"]
    assert counted["pairs"] + counted["dropped"] == counts["pairs"] + len(pairs)
    run.dir.check()
    # The pairs of steps hold no ids of judgments.
    rows = [row for _, row in records.read_objects(folder / "pairs.jsonl")]
    assert all(len(v) == 4 for row in rows for v in row["verdicts"])
