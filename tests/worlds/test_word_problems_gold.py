"""Word problems: which next steps are right by the equation, and what is wrong."""

import pytest

from stepjax import prompts
from stepjax.initial_data.formats import word_problems as form
from stepjax.prompts import Templates
from stepjax.worlds import word_problems as world
from stepjax.worlds.equations import Equation

MARKER = Templates().step


def row(equation, answer, problem="A problem."):
    return Equation("row", problem, answer, equation)


MORE = row("- + 8 3 2", "9")  # (8 + 3) - 2
FIRST = "Step 1: 8 + 3 = 11."
LAST = r"Step 2: 11 - 2 = 9. The answer is \boxed{9}."


def mistake(equation, steps, candidate, answer):
    return world.mistake(row(equation, answer), steps, candidate)


def test_the_steps_of_a_solution_by_rule_are_right():
    written = {"problem": "A problem.", "equation": "- + 8 3 2", "answer": "9"}
    (solution,) = form.solution(written, "row", Templates())
    assert solution.steps == (FIRST, LAST)
    assert world.is_right(MORE, [], FIRST) and world.is_right(MORE, [FIRST], LAST)
    assert world.right_step(MORE, [], MARKER) == FIRST
    assert world.right_step(MORE, [FIRST], MARKER) == LAST
    closing = r"Step 3: The answer is \boxed{9}."
    assert world.right_step(MORE, [FIRST, LAST], MARKER) == closing


@pytest.mark.parametrize(
    ("equation", "answer", "steps"),
    [
        ("- + 8 3 2", "9", ["3 + 8 = 11.", "11 - 2 = 9"]),
        ("- + 8 3 2", "9", ["8 - 2 = 6", "6 + 3 = 9"]),
        ("- + 8 3 2", "9", ["3 - 2 = 1", "8 + 1 = 9"]),
        ("- - 8 3 2", "3", ["3 + 2 = 5", "8 - 5 = 3"]),
        ("- 8 + 3 2", "3", ["8 - 2 = 6", "6 - 3 = 3"]),
        ("/ * 6 4 3", "8", ["6 / 3 = 2", "4 * 2 = 8"]),
        ("* / 12 6 2", "4", ["6 / 2 = 3", "12 / 3 = 4"]),
        ("/ / 24 3 4", "2", ["3 * 4 = 12", "24 / 12 = 2"]),
        ("* + 8 3 2", "22", ["8 + 3 = 11", "2 * 11 = 22"]),
        ("+ * 2 3 * 2 3", "12", ["2 * 3 = 6", "2 * 3 = 6", "6 + 6 = 12"]),
        ("- 12 - 10 3", "5", ["10 - 3 = 7", "12 - 7 = 5"]),
        ("+ - 12 10 3", "5", ["10 - 3 = 7", "12 - 7 = 5"]),  # 12 + 3 - 10
    ],
)
def test_a_sum_or_product_may_be_worked_off_in_any_order(equation, answer, steps):
    own = [f"Step {n}: {text}" for n, text in enumerate(steps, 1)]
    own[-1] += rf". The answer is \boxed{{{answer}}}."
    for n, text in enumerate(own):
        assert mistake(equation, own[:n], text, answer) is None, text
    # The rule goes on rightly from any of these places.
    problem = row(equation, answer)
    for n in range(len(own)):
        step = world.right_step(problem, own[:n], MARKER)
        assert world.is_right(problem, own[:n], step)


@pytest.mark.parametrize(
    ("equation", "answer", "candidate", "expected"),
    [
        ("- 76 25", "51", r"76 / 25 = 3.04. \boxed{3.04}", "operation"),
        ("- 76 25", "51", r"25 + 76 = 101. \boxed{101}", "operation"),
        ("- 4 3", "1", r"3 - 4 = 1. \boxed{1}", "order"),
        ("- + 8 3 2", "9", "2 - 8 = -6.", "order"),
        ("* / 12 6 2", "4", "6 / 12 = 0.5.", "order"),
        ("/ 8 2", "4", r"2 / 8 = 0.25. \boxed{0.25}", "order"),
        ("- 76 25", "51", r"76 - 26 = 50. \boxed{50}", "operands"),
        ("- 76 25", "51", r"76 - 25 = 41. \boxed{41}", "arithmetic"),
        ("- 76 25", "51", r"76 - 25 = 51. \boxed{52}", "box"),
        ("- 76 25", "51", r"76 - 25 = 51. \boxed{a few}", "box"),
        ("- 76 25", "51", "76 - 25 = 51.", "goes on"),
        ("- + 8 3 2", "9", r"8 + 3 = 11. \boxed{11}", "ends early"),
        ("- + 8 3 2", "9", r"The answer is \boxed{9}.", "ends early"),
        ("- + 8 3 2", "9", "He has many.", "form"),
        ("- + 8 3 2", "9", "8 + 3 - 2 = 9.", "form"),
        ("- + 8 3 2", "9", "8 + 3 = 11 - 2.", "form"),
        ("- + 8 3 2", "9", "8 + 3 = 11. 11 - 2 = 9.", "form"),
        ("- + 8 3 2", "9", "8 + 3 =", "form"),
        ("/ 36 4", "9", r"36 / 4 = 18 / 2. \boxed{9}", "form"),
        ("* 2 2", "4", r"2 + 2 = 4. \boxed{4}", "operation"),  # the right number
        ("* + 8 3 2", "22", "8 * 2 = 16.", "operands"),  # multiplied out
    ],
)
def test_each_kind_of_mistake(equation, answer, candidate, expected):
    found = mistake(equation, [], f"Step 1: {candidate}", answer)
    assert found == expected and expected in world.MISTAKES


def test_nothing_is_right_after_a_wrong_step_and_only_the_answer_at_the_end():
    wrong = "Step 1: 8 + 3 = 12."
    assert world.mistake(MORE, [wrong], LAST) == world.CONTEXT
    assert world.right_step(MORE, [wrong], MARKER) is None
    unboxed = "Step 2: 11 - 2 = 9."
    assert world.mistake(MORE, [FIRST], unboxed) == world.GOES_ON
    done, more = [FIRST, unboxed], "Step 3: 9 + 2 = 11."
    assert world.mistake(MORE, done, more) == world.GOES_ON
    assert world.mistake(MORE, done, r"Step 3: So it is \boxed{9}.") is None
    assert world.mistake(MORE, done, r"Step 3: So it is \boxed{8}.") == world.BOX


@pytest.mark.parametrize(
    ("equation", "answer", "candidate"),
    [
        ("+ 1200 34", "1234", r"1,200 + 34 = 1,234. \boxed{1,234}"),
        ("+ 1200 34", "1234", r"So she has $1200 + $34 = $1234. \boxed{1234.0}"),
        ("* 2.5 4", "10", r"2.50 * 4 = 10. \boxed{10}"),
        ("* 3 4", "12", r"3 × 4 = 12. \boxed{12}"),  # noqa: RUF001
        ("- 3 8", "-5", r"3 − 8 = -5. \boxed{-5}"),  # noqa: RUF001
        ("/ 10 3", "3.33333", r"10 / 3 = 10/3, about 3.33333. \boxed{3.33333}"),
        ("/ 10 3", "3.33333", r"10/3 = 3.33. \boxed{3.33}"),
        ("/ 200 28", "7.142857142857142", r"200 / 28 = 50/7. \boxed{50/7}"),
        ("/ 8 -2", "-4", r"8 / (-2) = -4. \boxed{-4}"),
    ],
)
def test_numbers_are_read_as_people_write_them(equation, answer, candidate):
    assert mistake(equation, [], f"Step 1: {candidate}", answer) is None


@pytest.mark.parametrize(
    ("equation", "answer", "candidate"),
    [
        ("/ 10 3", "3.33333", r"10 / 3 = 3.3. \boxed{3.3}"),
        ("/ 10 3", "3.33333", r"10 / 3 = 10/3, about 3.43. \boxed{3.33333}"),
        ("/ 10 4", "2.5", r"10 / 4 = 2.49. \boxed{2.49}"),
        ("+ 1200 34", "1234", r"1200 + 34 = 1235. \boxed{1234}"),
    ],
)
def test_a_result_must_be_true(equation, answer, candidate):
    found = mistake(equation, [], f"Step 1: {candidate}", answer)
    assert found == world.ARITHMETIC


def test_a_rounded_result_can_be_used_further():
    steps = ["Step 1: 10 / 3 = 3.33."]
    last = r"Step 2: 3.33 + 1 = 4.33. The answer is \boxed{4.33}."
    assert mistake("+ / 10 3 1", steps, last, "4.33333") is None


def test_hostile_texts_are_wrong_and_quickly_read():
    for text in (
        r"\boxed{1e999999999}",
        rf"\boxed{{{'9' * 5000}}}",
        "1 + " * 2000 + "1 = 2",
        "8 + 3 = 1/0",
        "٣ + ٤ = ٧",
    ):
        assert not world.is_right(MORE, [], f"Step 1: {text}")


def test_the_templates_are_short_and_can_be_used():
    prompts.check_templates(world.templates())
    assert len(world.SOLVE.split()) <= 16 and len(world.JUDGE.split()) <= 45
