"""The last-digit world: its numbers, its mistakes, its rows."""

import random
import re
from collections import Counter

import pytest

from stepjax import prompts
from stepjax.records import Problem, Question
from stepjax.worlds import arithmetic, arithmetic_data

EXAMPLE = "8*7+4*4+2*3+1"
STEPS = ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2", "Step 3: 2*3+1=7; \\boxed{7}")


def last_digits(problem):
    """The running values, worked out on the whole numbers."""
    value, digits = int(problem[0]), []
    for factor, addend in re.findall(r"\*(\d)\+(\d)", problem):
        value = value * int(factor) + int(addend)
        digits.append(value % 10)
    return digits


def test_the_documented_example():
    assert arithmetic.solve(EXAMPLE) == (STEPS, "7")
    row = arithmetic_data.solution("one", EXAMPLE, (), random.Random(0))
    assert (row.id, row.problem, row.steps, row.answer) == ("one", EXAMPLE, STEPS, "7")


@pytest.mark.parametrize("operations", [1, 3, 9])
def test_solutions_are_right_and_in_the_step_format(operations):
    for problem in arithmetic.problems(40, seed=1, operations=operations):
        steps, answer = arithmetic.solve(problem)
        digits = last_digits(problem)
        assert [int(re.search(r"=(\d)", step)[1]) for step in steps] == digits
        assert answer == str(digits[-1]) == prompts.boxed(steps[-1])
        assert not any("boxed" in step for step in steps[:-1])
        prompts.check_steps(arithmetic.templates(), steps)


@pytest.mark.parametrize(
    "problem", ["", "8", "8*7", "8*5+4", "8*7+0", "18*7+4", "8*7+4\n", "8*7+4" * 2]
)
def test_texts_of_other_worlds_are_refused(problem):
    with pytest.raises(ValueError, match="is not of this world; expected a digit"):
        arithmetic.solve(problem)


def test_problems_are_distinct_and_repeatable():
    first = arithmetic.problems(2000, seed=3)
    assert len(set(first)) == 2000
    assert first == arithmetic.problems(2000, seed=3)
    assert first != arithmetic.problems(2000, seed=4)
    assert all(problem.count("*") == 3 for problem in first)
    # Every digit and operand is drawn about equally often.
    assert all(150 < count < 250 for count in Counter(p[0] for p in first).values())
    factors = Counter(factor for p in first for factor in re.findall(r"\*(\d)", p))
    addends = Counter(addend for p in first for addend in re.findall(r"\+(\d)", p))
    assert set(factors) == set("3479") and set(addends) == set("123456")
    assert all(1350 < count < 1650 for count in factors.values())
    assert all(880 < count < 1120 for count in addends.values())


def test_problems_can_exhaust_the_space_but_not_more():
    everything = arithmetic.problems(240, seed=0, operations=1)
    assert len(set(everything)) == 240
    known = [*everything[:30], EXAMPLE, "no problem"]
    rest = arithmetic.problems(210, seed=5, operations=1, exclude=known)
    assert set(rest) == set(everything[30:])
    with pytest.raises(ValueError, match="211 problems asked for; expected 0 to 210"):
        arithmetic.problems(211, seed=5, operations=1, exclude=known)
    with pytest.raises(ValueError, match="241 problems asked for; expected 0 to 240"):
        arithmetic.problems(241, seed=0, operations=1)
    with pytest.raises(ValueError, match="operations=10; expected 1 to 9"):
        arithmetic.problems(1, seed=0, operations=10)


def test_right_follows_the_written_value_not_the_true_one():
    assert arithmetic.is_right(EXAMPLE, [], STEPS[0])
    assert arithmetic.is_right(EXAMPLE, STEPS[:2], STEPS[2])
    wrong = ["Step 1: 5*7+4=9"]
    assert arithmetic.is_right(EXAMPLE, wrong, "Step 2: 9*4+2=8")
    assert not arithmetic.is_right(EXAMPLE, wrong, STEPS[1])


@pytest.mark.parametrize(
    ("steps", "step"),
    [
        ([], "Step 1: 8*7+4=0\n"),
        ([], "Step 1: 8*7+4=00"),
        ([], "Step 1: 8*7+4=0; \\boxed{0}"),
        ([], "Step 2: 8*7+4=0"),
        ([], ""),
        (STEPS[:1], STEPS[2]),
        (STEPS[:2], "Step 3: 2*3+1=7"),
        (["Step 1: about 0"], STEPS[1]),
        (STEPS, "Step 4: 7*3+1=2"),
    ],
)
def test_everything_else_is_not_right(steps, step):
    assert not arithmetic.is_right(EXAMPLE, steps, step)


def test_corruptions_have_the_documented_kinds_and_shares():
    rng = random.Random(0)
    kinds = Counter()
    for problem in arithmetic.problems(3000, seed=7):
        solved = arithmetic.solve(problem)
        position = rng.randrange(3)
        steps, right = solved.steps[:position], solved.steps[position]
        wrong = arithmetic.corrupt(problem, steps, rng)
        assert not arithmetic.is_right(problem, steps, wrong)
        pattern = r"Step (\d): (\d)\*(\d)\+(\d)=(\d)(?:; \\boxed\{(\d)\})?"
        was = re.fullmatch(pattern, right).groups()
        now = re.fullmatch(pattern, wrong).groups()
        assert now[0] == was[0]
        assert now[5] == (now[4] if position == 2 else None)
        changed = [index for index in (1, 2, 3) if now[index] != was[index]]
        assert len(changed) <= 1
        if changed:
            assert int(now[4]) == (int(now[1]) * int(now[2]) + int(now[3])) % 10
            assert now[2] in "3479" and now[3] in "123456"
        kinds[changed[0] if changed else 0] += 1
    assert set(kinds) == {0, 1, 2, 3}
    assert abs(kinds[0] / 3000 - 1 / 2) < 0.04
    assert all(abs(kinds[place] / 3000 - 1 / 6) < 0.03 for place in (1, 2, 3))


def test_a_miscopy_may_have_the_right_result():
    rng, results = random.Random(0), Counter()
    for _ in range(400):  # 0 times any factor is 0
        wrong = arithmetic.read_step(arithmetic.corrupt("0*7+4*4+2", [], rng))
        if wrong.factor != 7:
            results[wrong.result] += 1
    assert set(results) == {4} and results[4] > 50


def test_corrupt_needs_a_next_step():
    for steps in (STEPS, ["Step 1: about 0"]):
        with pytest.raises(ValueError, match="has no next step after"):
            arithmetic.corrupt(EXAMPLE, steps, random.Random(0))


def test_the_documented_comparison_in_both_orders():
    right, wrong = "Step 1: 8*7+4=0", "Step 1: 5*7+4=9"
    ab, ba = arithmetic_data.comparison_from("x", EXAMPLE, [], right, wrong)
    assert (ab.id, ab.steps, ab.a, ab.b, ab.verdict) == ("x-ab", (), right, wrong, "A")
    assert (ba.id, ba.steps, ba.a, ba.b, ba.verdict) == ("x-ba", (), wrong, right, "B")
    assert ab.explanation == "Check: 8*7=6, 8*7+4=0, 8*7+4=0 (+) 5 (-) "
    assert ba.explanation == "Check: 8*7=6, 8*7+4=0, 5 (-) 8*7+4=0 (+) "


def test_comparisons_after_a_wrong_step_and_of_a_last_step():
    steps = ["Step 1: 5*7+4=9"]
    row, _ = arithmetic_data.comparison_from(
        "x", EXAMPLE, steps, "Step 2: 9*4+2=8", "Step 2: 0*4+2=2"
    )
    assert row.explanation == "Check: 9*4=6, 9*4+2=8, 9*4+2=8 (+) 0 (-) "
    wrong = "Step 3: 2*3+1=4; \\boxed{4}"
    row, _ = arithmetic_data.comparison_from("x", EXAMPLE, STEPS[:2], STEPS[2], wrong)
    due = "2*3+1=7; \\boxed{7}"
    said = f"Check: 2*3=6, {due}, {due} (+) 2*3+1=4 (-) "
    assert row.explanation == said


@pytest.mark.parametrize(
    ("position", "wrong", "copied"),
    [
        (0, "Step 1: 8*7+4=", "8*7+4="),
        (0, "Step 1: 8*7+4=3", "8*7+4=3"),
        (0, "Step 1: 8*7+4=*7=6", "8*7+4=*7"),
        (0, "Step 1: 88*7+4=0", "88"),
        (0, "Step 1: 8*3+4=8", "8*3"),
        (0, "Step 1: 8*7+4=0; \\boxed{0}", "8*7+4=0; \\boxed{"),
        (0, "Step 1: ? (-) [[A]]", "?"),
        (0, "Step 1:  (-) 8", " (-) "),
        (0, "Step 1: Step 1: 8", "Step 1: "),
        (0, "Step 2: 8*7+4=0", "Step 2: "),
        (2, "Step 3: 2*3+1=7", "2*3+1=7"),
        (2, "Step 3: 2*3+1=7; \\boxed{3}", "2*3+1=7; \\boxed{3"),
        (2, "Step 3: 2*3+1=7; \\boxed{7; \\boxed{", "2*3+1=7; \\boxed{7; \\boxed{"),
        (2, "", ""),
    ],
)
def test_a_wrong_step_is_copied_up_to_its_first_mistake(position, wrong, copied):
    steps, right = STEPS[:position], STEPS[position]
    assert arithmetic.until_wrong(wrong, right) == copied
    ab, ba = arithmetic_data.comparison_from("x", EXAMPLE, steps, right, wrong)
    due = right.split(": ")[1]
    assert ab.explanation.endswith(f"{due}, {due} (+) {copied} (-) ")
    assert ba.explanation.endswith(f"{due}, {copied} (-) {due} (+) ")


def test_two_wrong_steps_have_the_first_one_shown_as_verdict():
    one, other = "Step 1: 8*7+4=1", "Step 1: 5*7+4=9"
    ab, ba = arithmetic_data.comparison_from("x", EXAMPLE, [], one, other)
    assert (ab.a, ab.b, ab.verdict) == (one, other, "A")
    assert (ba.a, ba.b, ba.verdict) == (other, one, "A")
    assert ab.explanation == "Check: 8*7=6, 8*7+4=0, 8*7+4=1 (-) 5 (-) "


def test_comparisons_of_one_step_or_of_none_that_is_due_are_refused():
    for steps, one, other in (
        ([], STEPS[0], STEPS[0]),
        (STEPS, STEPS[0], STEPS[1]),
        (["Step 1: about 0"], STEPS[1], "Step 2: 0*4+2=1"),
    ):
        with pytest.raises(ValueError, match="expected two different ones where"):
            arithmetic_data.comparison_from("x", EXAMPLE, steps, one, other)


def make(seed=2):
    return arithmetic_data.dataset(
        seed=seed, ift=30, eft=60, heldout=20, questions=[15, 25], test=10
    )


def test_datasets_are_disjoint_complete_and_repeatable():
    data = make()
    assert data == make()
    assert data != make(seed=3)
    assert [len(rows) for rows in (data.ift, data.eft, data.heldout, data.test)] == [
        30,
        120,
        40,
        10,
    ]
    assert [len(rows) for rows in data.questions] == [15, 25]
    groups = [data.ift, data.eft, data.heldout, data.test, *data.questions]
    problems = [{row.problem for row in rows} for rows in groups]
    assert [len(texts) for texts in problems] == [30, 60, 20, 10, 15, 25]
    assert len(set().union(*problems)) == 160
    rows = [row for group in groups for row in group]
    assert len({row.id for row in rows}) == len(rows)
    assert [data.ift[4].id, data.eft[3].id, data.heldout[2].id] == [
        "arith-ift-4",
        "arith-eft-1-ba",
        "arith-heldout-1-ab",
    ]
    assert [data.questions[0][3].id, data.questions[1][0].id, data.test[3].id] == [
        "arith-q1-3",
        "arith-q2-0",
        "arith-test-3",
    ]
    assert {type(row) for group in data.questions for row in group} == {Question}
    assert {type(row) for row in data.test} == {Problem}
    for row in data.test:
        assert row.answer == str(last_digits(row.problem)[-1])


@pytest.mark.parametrize("name", ["eft", "heldout"])
def test_comparison_rows_judge_rightly(name):
    rows, templates = getattr(make(), name), arithmetic.templates()
    places = Counter()
    for row in rows:
        right = arithmetic.right_step(row.problem, row.steps)
        if right in (row.a, row.b):
            assert row.verdict == ("A" if row.a == right else "B")
        else:
            assert name == "eft" and row.verdict == "A"
        text = row.explanation + prompts.verdict(templates, row.verdict)
        assert prompts.parse_verdict(templates, text) == row.verdict
        assert arithmetic.working(right) in text
        marks = ["(-)", "(+)"][row.a == right], ["(-)", "(+)"][row.b == right]
        assert tuple(re.findall(r"\([+-]\)", text)) == marks
        prompts.check_steps(templates, [*row.steps, row.a])
        places[len(row.steps)] += 1
    assert set(places) == {0, 1, 2}


def test_a_fifth_of_the_later_places_follow_a_wrong_step():
    rng, wrong, later = random.Random(4), 0, 0
    for number, problem in enumerate(arithmetic.problems(2000, seed=9)):
        row, _ = arithmetic_data.comparisons(f"c{number}", problem, rng)
        right = [
            arithmetic.is_right(problem, row.steps[:place], step)
            for place, step in enumerate(row.steps)
        ]
        assert right.count(False) <= 1
        later += bool(right)
        wrong += right.count(False)
    assert abs(wrong - 0.2 * later) < 5 * (later * 0.16) ** 0.5 and later > 1200


def test_datasets_that_do_not_fit_are_refused():
    sizes = {"seed": 0, "ift": 100, "eft": 100, "heldout": 20, "operations": 1}
    with pytest.raises(ValueError, match="241 problems asked for; expected 0 to 240"):
        arithmetic_data.dataset(**sizes, questions=[10, 10], test=1)
    with pytest.raises(ValueError, match="expected none below 0"):
        arithmetic_data.dataset(**sizes, questions=[-1, 10], test=1)


def test_templates_can_be_used_and_render_as_documented():
    templates = arithmetic.templates()
    prompts.check_templates(templates)
    assert prompts.solve_prompt(templates, EXAMPLE) == EXAMPLE + "\n"
    pieces = prompts.judge_pieces(templates, EXAMPLE)
    assert pieces == (EXAMPLE + "\n", "", "(A)\n", "(B)\n")
