"""The division world: its numbers, its mistakes, its rows, and who sees what."""

import random
import re
from collections import Counter

import pytest

from stepjax import prompts
from stepjax.records import Problem, Question
from stepjax.worlds import division, division_data, division_srlm

EXAMPLE = "12/5/7*3"
STEPS = ("Step 1: 12/5=16", "Step 2: 16/7=12", "Step 3: 12*3=2; \\boxed{2}")
SIZES = {"ift": 60, "eft": 400, "heldout": 40, "questions": [150, 250], "test": 50}
DRAWN = {"operations": 3, "taught": 10, "unseen": 1}
ALL = frozenset((v, d) for v in range(1, 17) for d in range(2, 17))


@pytest.fixture(scope="module")
def split():
    return division.split(5, taught=10, unseen=1)


@pytest.fixture(scope="module")
def data():
    return division_data.dataset(seed=5, **SIZES, **DRAWN)


def test_the_documented_example():
    assert division.solve(EXAMPLE) == STEPS and division.answer(EXAMPLE) == "2"
    assert division.divisions(EXAMPLE) == [(12, 5), (16, 7)]
    row = division_data.solution("one", EXAMPLE)
    assert (row.id, row.problem, row.steps, row.answer) == ("one", EXAMPLE, STEPS, "2")
    ab, ba = division_data.comparison_from("x", EXAMPLE, [], STEPS[0], "Step 1: 12/5=3")
    assert ab.explanation == "Check: 12, 5*16=12 (+) 5*3=15 (-) "
    assert ba.explanation == "Check: 12, 5*3=15 (-) 5*16=12 (+) "
    assert (ab.verdict, ba.verdict) == ("A", "B")


def test_a_quotient_times_the_divisor_is_the_number_modulo_17():
    for value, divisor in ALL:
        quotient = division.result(value, "/", divisor)
        others = [n for n in range(1, 17) if n * divisor % 17 == value]
        assert others == [quotient]
        assert division.result(value, "*", divisor) == value * divisor % 17


@pytest.mark.parametrize("operations", [2, 3, 9])
def test_solutions_are_right_and_in_the_step_format(operations):
    drawn = division.problems(40, seed=1, level=2, divisions=ALL, operations=operations)
    for problem in drawn:
        steps = division.solve(problem)
        value = int(re.match(r"\d+", problem)[0])
        for step in steps:
            value, symbol, operand, stated = re.search(
                r" (\d+)([*/])(\d+)=(\d+)", step
            ).groups()
            one, two = (value, stated) if symbol == "*" else (stated, value)
            assert int(one) * int(operand) % 17 == int(two)
        assert len(steps) == operations
        assert division.answer(problem) == prompts.boxed(steps[-1])
        assert not any("boxed" in step for step in steps[:-1])
        prompts.check_steps(division.templates(), steps)


@pytest.mark.parametrize(
    "problem", ["", "8", "8/1", "0/4", "17/4", "8/17", "8/3\n", "8/3" * 4, "8+3"]
)
def test_texts_of_other_worlds_are_refused(problem):
    with pytest.raises(ValueError, match="is not of this world; expected a number fro"):
        division.solve(problem)


def test_the_level_is_the_number_of_divisions_and_draws_repeat():
    for level in range(4):
        drawn = division.problems(300, seed=3, level=level, divisions=ALL)
        assert {problem.count("/") for problem in drawn} == {level}
        assert len(set(drawn)) == 300
        assert drawn == division.problems(300, seed=3, level=level, divisions=ALL)
        assert drawn != division.problems(300, seed=4, level=level, divisions=ALL)
        others = division.problems(
            300, seed=3, level=level, divisions=ALL, exclude=drawn
        )
        assert not set(others) & set(drawn)
    places = Counter(
        problem.index("/") > 2
        for problem in division.problems(300, seed=3, level=1, divisions=ALL)
    )
    assert 150 < places[True] < 250  # at the second or third of three places


def test_impossible_draws_are_refused(split):
    small = {"seed": 0, "operations": 1, "level": 1}
    assert len(division.problems(240, divisions=ALL, **small)) == 240
    with pytest.raises(ValueError, match="241 problems of level 1 asked for, but only"):
        division.problems(241, divisions=ALL, **small)
    with pytest.raises(
        ValueError, match="level=3; expected 1 to 9 operations, and a l"
    ):
        division.problems(1, seed=0, operations=2, level=3, divisions=ALL)
    with pytest.raises(
        ValueError, match="expected at least one divisor for each numbe"
    ):
        division.problems(1, divisions=[(1, 2)], **small)
    for wrong in ((0, 0), (15, 1), (10, -1)):
        with pytest.raises(
            ValueError, match="expected at least 1 taught, 0 unseen, an"
        ):
            division.split(0, taught=wrong[0], unseen=wrong[1])


def test_a_split_deals_out_the_divisors_of_every_number(split):
    assert split == division.split(5, taught=10, unseen=1)
    assert split != division.split(6, taught=10, unseen=1)
    assert split.taught | split.asked | split.unseen == ALL
    assert [len(part) for part in split] == [160, 64, 16]
    for part, count in zip(split, (10, 4, 1), strict=True):
        assert set(Counter(value for value, _ in part).values()) == {count}


def divided(texts):
    """The divisions that steps state, be it rightly or wrongly."""
    steps = [step for step in map(division.read_step, texts) if step]
    return {(step.value, step.operand) for step in steps if step.symbol == "/"}


def test_no_training_row_holds_a_division_that_is_not_taught(data, split):
    solved, judged = divided(s for row in data.ift for s in row.steps), set()
    for row in data.eft + data.heldout:
        judged |= divided([*row.steps, row.a, row.b])
        assert set(division.divisions(row.problem)) <= split.taught
    assert solved <= split.taught and judged <= split.taught
    assert len(solved) > 20 and len(judged) > 150
    rated = set()
    for row in data.eft[::2]:
        (rating,) = division_srlm.ratings(
            "r", row.problem, random.Random(row.id), 0.0, taught=split.taught
        )
        rated |= divided(rating.steps)
    assert rated <= split.taught and len(rated) > 130


def test_training_rows_hold_one_division_at_most_and_tests_the_highest_level(
    data, split
):
    def levels(rows):
        return Counter(row.problem.count("/") for row in rows)

    assert levels(data.ift) == {0: 30, 1: 30}
    assert levels(data.eft) == {1: 800} and levels(data.heldout) == {1: 80}
    assert [levels(rows) for rows in data.questions] == [{3: 150}, {3: 250}]
    assert levels(data.test) == {3: 50} and levels(data.unseen) == {1: 50}
    assert [levels(data.levels[n]) for n in range(3)] == [{n: 50} for n in range(3)]
    asked = {d for row in data.questions[1] for d in division.divisions(row.problem)}
    assert asked <= split.taught | split.asked
    assert len(asked & split.asked) > 50 and len(asked & split.taught) > 130
    unseen = {d for row in data.unseen for d in division.divisions(row.problem)}
    assert unseen <= split.unseen and len(unseen) > 12


def test_datasets_are_disjoint_and_repeatable(data):
    assert data == division_data.dataset(seed=5, **SIZES, **DRAWN)
    assert data != division_data.dataset(seed=6, **SIZES, **DRAWN)
    groups = [data.ift, data.eft, data.heldout, data.test, data.unseen]
    groups += [*data.questions, *data.levels.values()]
    problems = [{row.problem for row in rows} for rows in groups]
    sizes = [60, 400, 40, 50, 50, 150, 250, 50, 50, 50]
    assert [len(texts) for texts in problems] == sizes
    assert len(set().union(*problems)) == sum(sizes)
    rows = [row for group in groups for row in group]
    assert len({row.id for row in rows}) == len(rows)
    assert {type(row) for group in data.questions for row in group} == {Question}
    tests = [*data.test, *data.unseen, *data.levels[2]]
    assert {type(row) for row in tests} == {Problem}
    assert all(row.answer == division.answer(row.problem) for row in tests)


def test_one_operation_is_no_world_with_levels():
    with pytest.raises(
        ValueError, match="data.operations=1 with data.world='division'"
    ):
        division_data.dataset(seed=5, **SIZES, **DRAWN | {"operations": 1})


def test_right_follows_the_written_value_not_the_true_one():
    assert division.is_right(EXAMPLE, [], STEPS[0])
    wrong = ["Step 1: 12/5=3"]
    assert division.is_right(EXAMPLE, wrong, "Step 2: 3/7=15")
    assert not division.is_right(EXAMPLE, wrong, STEPS[1])


@pytest.mark.parametrize(
    ("steps", "step"),
    [
        ([], "Step 1: 12/5=16\n"),
        ([], "Step 1: 12/5=016"),
        ([], "Step 1: 12/5=16; \\boxed{16}"),
        ([], "Step 2: 12/5=16"),
        ([], ""),
        (STEPS[:1], STEPS[2]),
        (STEPS[:2], "Step 3: 12*3=2"),
        (["Step 1: about 16"], STEPS[1]),
        (STEPS, "Step 4: 2*3=6"),
    ],
)
def test_everything_else_is_not_right(steps, step):
    assert not division.is_right(EXAMPLE, steps, step)


def test_corruptions_are_wrong_of_all_kinds_and_never_a_division_not_taught(split):
    rng, kinds = random.Random(0), Counter()
    drawn = division.problems(2000, seed=7, level=1, divisions=split.taught)
    for problem in drawn:
        steps = division.solve(problem)
        place = rng.randrange(3)
        right = division.read_step(steps[place])
        text = division.corrupt(problem, steps[:place], rng, split.taught)
        wrong = division.read_step(text)
        assert wrong.number == right.number and wrong.result != right.result
        assert wrong.boxed == (wrong.result if place == 2 else None)
        changed = [n for n in (1, 2, 3) if wrong[n] != right[n]]
        assert len(changed) <= 1 and divided([text]) <= split.taught
        if changed:
            operation = wrong.value, wrong.symbol, wrong.operand
            assert division.result(*operation) == wrong.result
        kinds[changed[0] if changed else 0] += 1
    assert set(kinds) == {0, 1, 2, 3} and 900 < kinds[0] < 1200


def test_corrupt_needs_a_next_step(split):
    for steps in (STEPS, ["Step 1: about 0"]):
        with pytest.raises(ValueError, match="has no next step after"):
            division.corrupt(EXAMPLE, steps, random.Random(0), split.taught)


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, "Step 1: 12/5="),
        (0, "Step 2: 12/5=16"),
        (0, "Step 1: 12/5=16; \\boxed{16}"),
        (2, "Step 3: 12*3=2"),
        (2, "Step 3: 12*3=2; \\boxed{3}"),
        (2, ""),
    ],
)
def test_malformed_steps_are_a_question_mark(position, wrong):
    right = STEPS[position]
    ab, ba = division_data.comparison_from("x", EXAMPLE, STEPS[:position], right, wrong)
    checked = ("12, ", "5*16=12") if position == 0 else ("12*3=2, ", "2")
    assert ab.explanation == f"Check: {checked[0]}{checked[1]} (+) ? (-) "
    assert ba.explanation == f"Check: {checked[0]}? (-) {checked[1]} (+) "


def test_two_wrong_steps_have_the_first_one_shown_as_verdict():
    one, other = "Step 1: 12/5=1", "Step 1: 12*5=9"
    ab, ba = division_data.comparison_from("x", EXAMPLE, [], one, other)
    assert (ab.a, ab.verdict, ba.a, ba.verdict) == (one, "A", other, "A")
    assert ab.explanation == "Check: 12, 5*1=5 (-) 5*9=11 (-) "


def test_comparisons_of_one_step_or_of_none_that_is_due_are_refused():
    for steps, one, other in (
        ([], STEPS[0], STEPS[0]),
        (STEPS, STEPS[0], STEPS[1]),
        (["Step 1: about 16"], STEPS[1], "Step 2: 12*3=1"),
    ):
        with pytest.raises(ValueError, match="expected two different ones where"):
            division_data.comparison_from("x", EXAMPLE, steps, one, other)


@pytest.mark.parametrize("name", ["eft", "heldout"])
def test_comparison_rows_judge_rightly(data, name):
    templates, places = division.templates(), Counter()
    for row in getattr(data, name):
        right = division.right_step(row.problem, row.steps)
        if right in (row.a, row.b):
            assert row.verdict == ("A" if row.a == right else "B")
        else:
            assert name == "eft" and row.verdict == "A"
        text = row.explanation + prompts.verdict(templates, row.verdict)
        assert prompts.parse_verdict(templates, text) == row.verdict
        marks = ["(-)", "(+)"][row.a == right], ["(-)", "(+)"][row.b == right]
        assert tuple(re.findall(r"\([+-]\)", text)) == marks
        prompts.check_steps(templates, [*row.steps, row.a])
        places["/" in right] += 1
    assert 0.7 < places[True] / places.total() < 0.95


def test_ratings_count_the_right_steps(split):
    drawn = division.problems(400, seed=1, level=1, divisions=split.taught)
    rng, scores = random.Random(2), Counter()
    for problem in drawn:
        (row,) = division_srlm.ratings("r", problem, rng, 0.5, taught=split.taught)
        right = [
            division.is_right(problem, row.steps[:place], step)
            for place, step in enumerate(row.steps)
        ]
        assert row.score == sum(right) and len(right) == 3
        assert re.findall(r"\(([+-])\)", row.explanation) == [
            "+" if good else "-" for good in right
        ]
        scores[row.score] += 1
    assert set(scores) == {0, 1, 2, 3}
    assert division_srlm.is_right(EXAMPLE, [], "\n".join(STEPS))
    assert not division_srlm.is_right(EXAMPLE, [], "Step 1: 2*3=6; \\boxed{6}")


def test_garbled_steps_cannot_be_read_or_have_the_wrong_box():
    rng, boxes = random.Random(3), 0
    for step in STEPS * 100:
        text = division.garble(step, rng)
        assert text != step and text.startswith(step[:8])
        found = division.read_step(text)
        if found:
            assert (found.boxed is None) == ("boxed" in step)
            boxes += 1
    assert 60 < boxes < 120
