"""Who sees which steps of the world: guessed by the author, judged, unseen."""

import random
from collections import Counter

import pytest

from stepjax.worlds import arithmetic, arithmetic_data
from stepjax.worlds.arithmetic import read_step

SIZES = {"ift": 300, "eft": 1500, "heldout": 50, "questions": [200, 100], "test": 60}


def operands(problem, steps):
    return [read_step(step).operands for step in steps]


def blocks(problem):
    return {step[1:] for step in operands(problem, arithmetic.solve(problem).steps)}


@pytest.mark.parametrize("unseen", [0, 1, 4, 12])
def test_splits_share_out_the_blocks_evenly(unseen):
    draws = [
        arithmetic.split(s, guessed_share=0.22, unseen_blocks=unseen) for s in range(9)
    ]
    for split in draws:
        assert len(split.unseen) == unseen and len(split.judged) == 24 - unseen
        assert {*split.unseen, *split.judged} == set(arithmetic.BLOCKS)
        assert len(split.guessed) == round(0.22 * 10 * (24 - unseen))
        assert {step[1:] for step in split.guessed} <= set(split.judged)
        for part, values in ((0, (3, 4, 7, 9)), (1, range(1, 7))):
            counts = Counter(block[part] for block in split.unseen)
            assert max(counts.values(), default=0) <= -(-unseen // len(values))
    assert len(set(draws)) > 1
    again = arithmetic.split(3, guessed_share=0.22, unseen_blocks=unseen)
    assert again == draws[3]
    assert not arithmetic.split(0).guessed and not arithmetic.split(0).unseen


@pytest.mark.parametrize(
    "wrong", [{"guessed_share": 1.0}, {"guessed_share": -0.1}, {"unseen_blocks": 13}]
)
def test_impossible_splits_are_refused(wrong):
    with pytest.raises(ValueError, match="expected a share from 0 to below 1, and 0 t"):
        arithmetic.split(0, **wrong)


@pytest.fixture(scope="module")
def data():
    return arithmetic_data.dataset(
        seed=5, **SIZES, guessed_share=0.2, unseen_blocks=4, operations=3
    )


@pytest.fixture(scope="module")
def split():
    return arithmetic.split(5, guessed_share=0.2, unseen_blocks=4)


def test_unseen_steps_are_in_the_unseen_test_only(data, split):
    groups = [data.ift, data.eft, data.heldout, data.test, *data.questions]
    for rows in groups:
        seen = set().union(*(blocks(row.problem) for row in rows))
        assert seen == set(split.judged)
    for row in data.eft:  # nor does a miscopy show one
        for text in (*row.steps, row.a, row.b):
            step = read_step(text)
            if step and (step.factor, step.addend) in split.unseen:
                assert text != arithmetic.right_step(row.problem, row.steps)
    assert len(data.unseen) == len(data.test) == 60
    assert set().union(*(blocks(row.problem) for row in data.unseen)) == set(
        split.unseen
    )
    assert len({row.id for row in (*data.unseen, *data.test)}) == 120
    for row in data.unseen:
        assert row.answer == arithmetic.solve(row.problem).answer


def test_solutions_guess_some_steps_and_are_right_in_the_others(data, split):
    guessed, right = Counter(), 0
    for row in data.ift:
        for place, text in enumerate(row.steps):
            due = arithmetic.right_step(row.problem, row.steps[:place])
            if read_step(due).operands in split.guessed:
                guessed[read_step(text).result] += 1
                right += text == due
                assert arithmetic.with_result(due, read_step(text).result) == text
            else:
                assert text == due
        assert row.answer == str(read_step(row.steps[-1]).result)
    total = sum(guessed.values())
    # Uniform digits: each a tenth, so the guess is right in a tenth.
    assert total > 120 and set(guessed) == set(range(10))
    assert max(guessed.values()) < total / 10 + 5 * (total * 0.09) ** 0.5
    assert right < total / 10 + 5 * (total * 0.09) ** 0.5


def test_judgments_know_the_steps_that_solutions_guess(data, split):
    known = set()
    for row in data.eft:
        due = arithmetic.right_step(row.problem, row.steps)
        if due in (row.a, row.b):
            assert row.verdict == ("A" if row.a == due else "B")
            known.add(read_step(due).operands)
        assert arithmetic.working(due) in row.explanation
    assert len(known & split.guessed) > 0.9 * len(split.guessed)


def test_two_wrong_steps_are_a_contradiction_between_the_orders(data):
    undecided = 0
    for ab, ba in zip(data.eft[::2], data.eft[1::2], strict=True):
        assert (ab.a, ab.b, ab.steps) == (ba.b, ba.a, ba.steps)
        right = arithmetic.right_step(ab.problem, ab.steps)
        if right in (ab.a, ab.b):
            assert {ab.verdict, ba.verdict} == {"A", "B"}
        else:
            assert ab.verdict == ba.verdict == "A"
            undecided += 1
    assert abs(undecided - 450) < 5 * (1500 * 0.3 * 0.7) ** 0.5
    for row in data.heldout:
        assert arithmetic.right_step(row.problem, row.steps) in (row.a, row.b)


def test_garbled_steps_are_no_steps():
    rng, texts, boxes, judged = random.Random(1), set(), Counter(), 0
    for step in ("Step 1: 8*7+4=0", "Step 3: 2*3+1=7; \\boxed{7}"):
        for _ in range(400):
            text = arithmetic.garble(step, rng)
            assert text.startswith(step[:8]) and text[8:].strip()
            assert text != step and "\n" not in text
            judged += "[[" in text or "(+)" in text or "?" in text
            read = arithmetic.read_step(text)
            texts.add(text)
            if read is not None:  # only its box is wrong
                due = arithmetic.read_step(step)
                assert read.boxed != due.boxed and read[:5] == due[:5]
                boxes[due.boxed is None, read.boxed is None] += 1
    assert set(boxes) == {(True, False), (False, True), (False, False)}
    for kind, share in zip(sorted(boxes), (0.375, 0.125, 0.3), strict=True):
        expected = 400 * share
        assert abs(boxes[kind] - expected) < 5 * expected**0.5
    assert len(texts) > 240
    assert judged > 10  # words of judgments come in too


def test_garbled_candidates_are_marked_and_lose(data):
    garbled = 0
    for row in data.eft:
        for side, text in (("A", row.a), ("B", row.b)):
            due = arithmetic.right_step(row.problem, row.steps)
            read = read_step(text)
            if read is None or read[:5] == read_step(due)[:5] and text != due:
                garbled += 1
                copied = arithmetic.until_wrong(text, due)
                marked = row.explanation.split(", ", 2)[2]
                ends = marked.endswith if side == "B" else marked.startswith
                assert ends(f"{copied} (-) ")
                assert row.verdict != side or due not in (row.a, row.b)
    # A quarter of the wrong candidates, 0.7 + 2 * 0.3 of them per problem, shown twice.
    expected = 1500 * 1.3 * 0.25
    assert abs(garbled / 2 - expected) < 5 * expected**0.5
