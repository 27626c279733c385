"""Backward programs: their numbers, their mistakes, their rows, and who sees what."""

import random
import re
from collections import Counter

import pytest

from stepjax import prompts
from stepjax.records import Problem, Question
from stepjax.worlds import arithmetic, backwards, backwards_data, backwards_srlm
from stepjax.worlds.arithmetic import read_step

EXAMPLE = "?*3+2*9+1*7+4=8"
STEPS = ("Step 1: 2*7+4=8", "Step 2: 9*9+1=2", "Step 3: 9*3+2=9; \\boxed{9}")
SIZES = {"ift": 60, "eft": 400, "heldout": 40, "questions": [150, 250], "test": 50}
DRAWN = {"operations": 3, "taught": 6, "unseen": 1}
ALL = frozenset((*block, result) for block in backwards.BLOCKS for result in range(10))


@pytest.fixture(scope="module")
def split():
    return backwards.split(5, taught=6, unseen=1)


@pytest.fixture(scope="module")
def data():
    return backwards_data.dataset(seed=5, **SIZES, **DRAWN)


def test_the_documented_example():
    assert backwards.solve(EXAMPLE) == STEPS and backwards.answer(EXAMPLE) == "9"
    assert backwards.tasks(EXAMPLE) == [(7, 4, 8), (9, 1, 2), (3, 2, 9)]
    assert ((9 * 3 + 2) * 9 + 1) * 7 + 4 == 1838
    row = backwards_data.solution("one", EXAMPLE)
    assert (row.id, row.problem, row.steps, row.answer) == ("one", EXAMPLE, STEPS, "9")
    ab, ba = backwards_data.comparison_from(
        "x", EXAMPLE, [], STEPS[0], "Step 1: 5*7+4=8"
    )
    two, five = "2*7+4=8, 2*7=4, 4+4=8 (+) ", "5*7+4=8, 5*7=5, 5+4=9 (-) "
    assert ab.explanation == f"Check: ?*7+4=8, {two}{five}"
    assert ba.explanation == f"Check: ?*7+4=8, {five}{two}"
    assert (ab.verdict, ba.verdict) == ("A", "B")


def test_one_digit_and_no_other_leads_to_a_result():
    assert len(ALL) == 180
    for factor, addend, result in ALL:
        found = [d for d in range(10) if (d * factor + addend) % 10 == result]
        assert found == [backwards.digit_before((factor, addend, result))]


@pytest.mark.parametrize("operations", [1, 3, 9])
def test_programs_run_forwards_from_the_answer_to_their_last_digit(operations):
    for problem in backwards.problems(40, seed=1, among=[ALL] * operations):
        steps = backwards.solve(problem)
        value = int(backwards.answer(problem))
        for factor, addend in re.findall(r"\*(\d)\+(\d)", problem):
            value = value * int(factor) + int(addend)
        assert value % 10 == int(problem[-1])
        assert len(steps) == operations
        assert backwards.answer(problem) == prompts.boxed(steps[-1])
        assert not any("boxed" in step for step in steps[:-1])
        prompts.check_steps(backwards.templates(), steps)


@pytest.mark.parametrize(
    "problem",
    ["", "8", "?=8", "8*7+4=8", "?*4+4=8", "?*7+0=8", "?*7+4=18", "?*7+4=8\n"],
)
def test_texts_of_other_worlds_are_refused(problem):
    with pytest.raises(ValueError, match="is not of this world; expected '\\?', then"):
        backwards.solve(problem)


def test_draws_repeat_and_keep_to_the_tasks_at_every_place(split):
    among = [split.asked, split.taught, split.taught]
    drawn = backwards.problems(300, seed=3, among=among)
    assert len(set(drawn)) == 300
    assert drawn == backwards.problems(300, seed=3, among=among)
    assert drawn != backwards.problems(300, seed=4, among=among)
    others = backwards.problems(300, seed=3, among=among, exclude=drawn)
    assert not set(others) & set(drawn)
    places = Counter()
    for problem in drawn:
        asked = [task in split.asked for task in backwards.tasks(problem)]
        assert sum(asked) == 1
        places[asked.index(True)] += 1
    assert set(places) == {0, 1, 2} and min(places.values()) > 70


def test_impossible_draws_are_refused():
    assert len(backwards.problems(180, seed=0, among=[ALL])) == 180
    with pytest.raises(ValueError, match="181 problems of 1 steps asked for, but only"):
        backwards.problems(181, seed=0, among=[ALL])
    with pytest.raises(ValueError, match="problems of 10 steps asked for; expected 1"):
        backwards.problems(1, seed=0, among=[ALL] * 10)
    for taught, unseen in ((0, 0), (10, 1), (6, -1)):
        with pytest.raises(ValueError, match="expected at least 1 taught, 0 unseen"):
            backwards.split(0, taught=taught, unseen=unseen)


def test_a_split_deals_out_the_results_of_every_block(split):
    assert split == backwards.split(5, taught=6, unseen=1)
    assert split != backwards.split(6, taught=6, unseen=1)
    assert split.taught | split.asked | split.unseen == ALL
    assert [len(part) for part in split] == [108, 54, 18]
    for part, count in zip(split, (6, 3, 1), strict=True):
        assert set(Counter(task[:2] for task in part).values()) == {count}


def stated(texts):
    """The tasks that steps claim to solve, be it rightly or wrongly."""
    return {backwards.task_of(step) for step in map(read_step, texts) if step}


def test_no_training_row_holds_a_step_that_is_not_taught(data, split):
    solved = stated(step for row in data.ift for step in row.steps)
    judged = set()
    for row in data.eft + data.heldout:
        judged |= stated([*row.steps, row.a, row.b])
    assert solved <= split.taught and len(solved) > 70
    assert judged == split.taught
    for row in data.eft[::2]:
        (rating,) = backwards_srlm.ratings(
            "r", row.problem, random.Random(row.id), 0.0, taught=split.taught
        )
        assert stated(rating.steps) <= split.taught


def test_training_rows_have_level_0_and_questions_and_tests_any(data, split):
    def levels(rows):
        return Counter(
            sum(task not in split.taught for task in backwards.tasks(row.problem))
            for row in rows
        )

    for rows in (data.ift, data.eft, data.heldout):
        assert set(levels(rows)) == {0}
    for rows in (data.test, *data.questions):
        assert set(levels(rows)) == {0, 1, 2, 3}
    assert [levels(rows) for rows in data.levels] == [{n: 50} for n in range(4)]
    assert levels(data.unseen) == {1: 50}
    found = {name: set() for name in ("asked", "unseen")}
    for row in (*data.questions[0], *data.questions[1], *data.test):
        found["asked"].update(backwards.tasks(row.problem))
    for row in data.unseen:
        found["unseen"].update(backwards.tasks(row.problem))
    assert found["asked"] == split.taught | split.asked
    assert found["unseen"] <= split.taught | split.unseen
    assert len(found["unseen"] & split.unseen) > 12


def test_datasets_are_disjoint_and_repeatable(data):
    assert data == backwards_data.dataset(seed=5, **SIZES, **DRAWN)
    assert data != backwards_data.dataset(seed=6, **SIZES, **DRAWN)
    groups = [data.ift, data.eft, data.heldout, data.test, data.unseen]
    groups += [*data.questions, *data.levels]
    problems = [{row.problem for row in rows} for rows in groups]
    sizes = [60, 400, 40, 50, 50, 150, 250, 50, 50, 50, 50]
    assert [len(texts) for texts in problems] == sizes
    assert len(set().union(*problems)) == sum(sizes)
    rows = [row for group in groups for row in group]
    assert len({row.id for row in rows}) == len(rows)
    assert {type(row) for group in data.questions for row in group} == {Question}
    tests = [*data.test, *data.unseen, *data.levels[2]]
    assert {type(row) for row in tests} == {Problem}
    assert all(row.answer == backwards.answer(row.problem) for row in tests)


def test_more_questions_go_on_where_the_questions_end(data):
    longer = backwards_data.dataset(
        seed=5, **SIZES | {"questions": [150, 250, 30]}, **DRAWN
    )
    assert longer._replace(questions=longer.questions[:2]) == data
    groups = [data.ift, data.eft, data.heldout, data.test, data.unseen]
    groups += [*data.questions, *data.levels]
    seen = {row.problem for rows in groups for row in rows}
    more = backwards_data.further(30, seed=5, seen=seen, **DRAWN)
    assert more == [row.problem for row in longer.questions[2]]


def test_nothing_is_asked_where_everything_is_taught():
    made = backwards_data.dataset(seed=5, **SIZES, operations=3, taught=10, unseen=0)
    assert len(made.levels) == 1 and not made.unseen


def test_right_follows_the_digit_that_the_last_step_found():
    assert backwards.is_right(EXAMPLE, [], STEPS[0])
    wrong = ["Step 1: 5*7+4=8"]
    assert backwards.is_right(EXAMPLE, wrong, "Step 2: 6*9+1=5")
    assert not backwards.is_right(EXAMPLE, wrong, STEPS[1])


@pytest.mark.parametrize(
    ("steps", "step"),
    [
        ([], "Step 1: 2*7+4=8\n"),
        ([], "Step 1: 2*7+4=08"),
        ([], "Step 1: 2*7+4=8; \\boxed{2}"),
        ([], "Step 1: 2*9+0=8"),
        ([], "Step 2: 2*7+4=8"),
        ([], ""),
        (STEPS[:1], STEPS[2]),
        (STEPS[:2], "Step 3: 9*3+2=9"),
        (["Step 1: about 2"], STEPS[1]),
        (STEPS, "Step 4: 9*3+2=9"),
    ],
)
def test_everything_else_is_not_right(steps, step):
    assert not backwards.is_right(EXAMPLE, steps, step)


def test_corruptions_are_wrong_of_all_kinds_and_never_a_step_not_taught(split):
    rng, kinds, kept = random.Random(0), Counter(), 0
    for problem in backwards.problems(2000, seed=7, among=[split.taught] * 3):
        steps = backwards.solve(problem)
        place = rng.randrange(3)
        right = read_step(steps[place])
        text = backwards.corrupt(problem, steps[:place], rng, split.taught)
        wrong = read_step(text)
        assert wrong.number == right.number and text != steps[place]
        assert wrong.boxed == (wrong.value if place == 2 else None)
        task, due = backwards.task_of(wrong), backwards.task_of(right)
        changed = [n for n in range(3) if task[n] != due[n]]
        assert len(changed) <= 1 and task in split.taught
        if changed:
            kept += wrong.value == right.value
            assert wrong.value in (backwards.digit_before(task), right.value)
        kinds[changed[0] if changed else "digit"] += 1
    assert set(kinds) == {"digit", 0, 1, 2} and 900 < kinds["digit"] < 1150
    assert 400 < kept < 600


def test_corrupt_needs_a_next_step(split):
    for steps in (STEPS, ["Step 1: about 0"]):
        with pytest.raises(ValueError, match="has no next step after"):
            backwards.corrupt(EXAMPLE, steps, random.Random(0), split.taught)


@pytest.mark.parametrize(
    ("position", "wrong", "copied"),
    [
        (0, "Step 1: 2*7+4=", "2*7+4="),
        (0, "Step 1: 2*9+4=8", "2*9"),
        (0, "Step 1: 2*7+4=8=8", "2*7+4=8="),
        (0, "Step 1: x*7+4=8", "x"),
        (0, "Step 2: 2*7+4=8", "Step 2: "),
        (0, "Step 1: 2*7+4=8; \\boxed{2}", "2*7+4=8; \\boxed{"),
        (2, "Step 3: 9*3+2=9", "9*3+2=9"),
        (2, "Step 3: 9*3+2=9; \\boxed{3}", "9*3+2=9; \\boxed{3"),
        (2, "Step 3: 8*3+2=9; \\boxed{9}", "8*3+2=9; \\boxed{9"),
        (2, "", ""),
    ],
)
def test_steps_of_another_form_are_copied_up_to_the_first_wrong_piece(
    position, wrong, copied
):
    right, steps = STEPS[position], STEPS[:position]
    ab, ba = backwards_data.comparison_from("x", EXAMPLE, steps, right, wrong)
    due, tried = [("?*7+4=8", "2*7=4, 4+4=8"), ("?*3+2=9", "9*3=7, 7+2=9")][
        position // 2
    ]
    good = f"{right.split(': ')[1]}, {tried} (+) "
    assert ab.explanation == f"Check: {due}, {good}{copied} (-) "
    assert ba.explanation == f"Check: {due}, {copied} (-) {good}"
    assert (ab.verdict, ba.verdict) == ("A", "B")


def test_garbled_steps_are_wrong(split):
    rng = random.Random(0)
    for problem in backwards.problems(300, seed=7, among=[split.taught] * 3):
        for place, step in enumerate(backwards.solve(problem)):
            for _ in range(10):
                text = arithmetic.garble(step, rng)
                before = backwards.solve(problem)[:place]
                assert not backwards.is_right(problem, before, text)


def test_two_wrong_steps_have_the_first_one_shown_as_verdict():
    one, other = "Step 1: 1*7+4=8", "Step 1: 3*7+4=8"
    ab, ba = backwards_data.comparison_from("x", EXAMPLE, [], one, other)
    assert (ab.a, ab.verdict, ba.a, ba.verdict) == (one, "A", other, "A")
    tried = "1*7+4=8, 1*7=7, 7+4=1 (-) 3*7+4=8, 3*7=1, 1+4=5 (-) "
    assert ab.explanation == f"Check: ?*7+4=8, {tried}"


def test_comparisons_of_one_step_or_of_none_that_is_due_are_refused():
    for steps, one, other in (
        ([], STEPS[0], STEPS[0]),
        (STEPS, STEPS[0], STEPS[1]),
        (["Step 1: about 2"], STEPS[1], "Step 2: 8*9+1=2"),
    ):
        with pytest.raises(ValueError, match="expected two different ones where"):
            backwards_data.comparison_from("x", EXAMPLE, steps, one, other)


@pytest.mark.parametrize("name", ["eft", "heldout"])
def test_comparison_rows_judge_rightly(data, name):
    templates, places, mistakes = backwards.templates(), Counter(), 0
    for row in getattr(data, name):
        right = backwards.right_step(row.problem, row.steps)
        if right in (row.a, row.b):
            assert row.verdict == ("A" if row.a == right else "B")
        else:
            assert name == "eft" and row.verdict == "A"
        text = row.explanation + prompts.verdict(templates, row.verdict)
        assert prompts.parse_verdict(templates, text) == row.verdict
        marks = ["(-)", "(+)"][row.a == right], ["(-)", "(+)"][row.b == right]
        if "(" not in row.a + row.b:  # else a piece that is copied may be a mark
            assert tuple(re.findall(r"\([+-]\)", text)) == marks
        prompts.check_steps(templates, [*row.steps, row.a])
        places[len(row.steps)] += 1
        mistakes += row.steps != backwards.solve(row.problem)[: len(row.steps)]
    assert set(places) == {0, 1, 2}
    assert 0.02 < mistakes / (places[1] + places[2]) < 0.2


def test_ratings_count_the_right_steps(split):
    rng, scores = random.Random(2), Counter()
    for problem in backwards.problems(600, seed=1, among=[split.taught] * 3):
        (row,) = backwards_srlm.ratings("r", problem, rng, 0.5, taught=split.taught)
        right = [
            backwards.is_right(problem, row.steps[:place], step)
            for place, step in enumerate(row.steps)
        ]
        assert row.score == sum(right) and len(right) == 3
        marks = ["+" if good else "-" for good in right]
        assert re.findall(r"\(([+-])\)", row.explanation) == marks
        scores[row.score] += 1
    assert set(scores) >= {1, 2, 3}
    assert backwards_srlm.is_right(EXAMPLE, [], "\n".join(STEPS))
    assert not backwards_srlm.is_right(EXAMPLE, [], "Step 1: 2*7+4=8; \\boxed{2}")


def test_the_tokenizer_of_the_arithmetic_world_has_no_unknown_piece(tmp_path):
    from stepjax.lm import tokenizer

    arithmetic.train_tokenizer(tmp_path)
    made = tokenizer.load(tmp_path)
    for text, length in (
        (EXAMPLE, 9),
        (STEPS[0], 6),
        (STEPS[2], 9),
        ("Check: ?*7+4=8, 2*7+4=8, 2*7=4, 4+4=8 (+) 2*9 (-) [[A]]", 27),
    ):
        ids = made.encode_line(text)
        assert len(ids) == length and made.unknown_id not in ids
        assert made.decode(ids) == text


def test_a_step_alone_is_appraised_by_its_own_check():
    ab, ba = backwards_data.comparison_from(
        "x", EXAMPLE, [], STEPS[0], "Step 1: 5*7+4=8"
    )
    two, five = "2*7+4=8, 2*7=4, 4+4=8 (+) ", "5*7+4=8, 5*7=5, 5+4=9 (-) "
    assert backwards_data.appraise(ab) == ("A", f"Check: ?*7+4=8, {two}")
    assert backwards_data.appraise(ba) == ("B", f"Check: ?*7+4=8, {five}")
