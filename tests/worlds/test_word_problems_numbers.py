"""Word problems with other numbers."""

import random

import pytest

from stepjax.prompts import Templates
from stepjax.worlds import word_problems as world
from stepjax.worlds import word_problems_numbers as numbers
from stepjax.worlds.equations import Equation, read_equation

BOOKS = Equation(
    "b", "Bryan has 56 books in each of his 9 bookshelves. How many?", "504", "* 56 9"
)


def varied(problem, equation, answer, seeds=range(20)):
    row = Equation("a", problem, answer, equation)
    made = [numbers.with_other_numbers(row, random.Random(seed)) for seed in seeds]
    return [row for row in made if row]


def test_numbers_change_together_in_text_and_equation_and_keep_their_digits():
    row = numbers.with_other_numbers(BOOKS, random.Random(0))
    _, left, right = row.equation.split()
    assert row.problem == (
        f"Bryan has {left} books in each of his {right} bookshelves. How many?"
    )
    assert row.answer == str(int(left) * int(right))
    assert (len(left), len(right)) == (2, 1)
    assert row.equation != BOOKS.equation and row.id == BOOKS.id


def test_the_same_seed_draws_the_same_numbers():
    one, two = (numbers.with_other_numbers(BOOKS, random.Random(3)) for _ in range(2))
    assert one == two


def test_every_result_stays_a_whole_number_above_0():
    text = "He had 12 pens, gave 5 away, and put the rest into 7 boxes of how many?"
    made = varied(text, "/ - 12 5 7", "1")
    assert len(made) == 20
    for row in made:
        values = [operation.value for operation in read_equation(row.equation)[1]]
        assert all(value > 0 and value.denominator == 1 for value in values)
        assert row.answer == str(values[-1])


def test_numbers_that_stand_twice_or_only_in_the_text_stay():
    made = varied(
        "In 3 weeks of 5 days he ran 8 miles on 5 days, 2 others.", "* 3 8", "24"
    )
    assert made
    for row in made:
        assert " of 5 days" in row.problem and " on 5 days, 2 others" in row.problem
        drawn = row.equation.split()[1:]
        assert len({*drawn, "5", "2"}) == 4


def test_constants_of_the_equation_stay():
    for row in varied("How many days are 4 weeks?", "* 4 7", "28"):
        assert row.equation.endswith(" 7") and "7 weeks" not in row.problem


@pytest.mark.parametrize(
    ("problem", "equation", "answer"),
    [
        ("It costs $2.50 and $4.25.", "+ 2.5 4.25", "6.75"),  # no whole number
        ("A third, 1/3, of 1 hour.", "/ 1 3", "0.33333"),  # parts of a fraction, and 1
        ("At 10:30 and 5-6.", "+ 10 5", "15"),  # a time, and a range
        ("He has 4 and 4 more.", "+ 4 4", "8"),  # twice
        ("He has four and two.", "+ 4 2", "6"),  # words
        ("He has 5 of 7.", "/ 5 7", "0.71429"),  # the result is not whole
    ],
)
def test_problems_without_numbers_that_can_change_are_left_alone(
    problem, equation, answer
):
    assert varied(problem, equation, answer) == []


def test_amounts_of_money_change_behind_their_sign():
    for row in varied("He had $20 and paid $8.", "- 20 8", "12"):
        left, right = row.equation.split()[1:]
        assert row.problem == f"He had ${left} and paid ${right}."


def test_a_drill_asks_for_six_calculations_and_answers_with_the_last():
    rng = random.Random(0)
    templates = Templates(step="Step {n}: ")
    symbols = set()
    for number in range(50):
        row = numbers.drill(f"drill-{number}", rng, templates)
        assert row.problem.startswith("Work out ") and len(row.steps) == 6
        for step, text in enumerate(row.steps, 1):
            assert text.startswith(f"Step {step}: ")
            symbol, left, right, result, _ = world.read_step(text).calculation
            exact = {
                "+": left.value + right.value,
                "-": left.value - right.value,
                "*": left.value * right.value,
                "/": left.value / (right.value or 1),
            }[symbol]
            assert result.value == exact >= 0
            assert f"{left.value} {symbol} {right.value}" in row.problem
            symbols.add(symbol)
        assert world.read_step(row.steps[-1]).boxed == row.answer == str(exact)
        assert all(world.read_step(text).boxed is None for text in row.steps[:-1])
    assert symbols == set("+-*/")
