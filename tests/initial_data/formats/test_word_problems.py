"""Solutions by rule of word problems with an equation."""

from fractions import Fraction

import pytest

from stepjax import prompts
from stepjax.initial_data.formats import word_problems
from stepjax.prompts import Templates

TEMPLATES = Templates()


def solve(equation, answer, templates=TEMPLATES):
    row = {"problem": "p", "equation": equation, "answer": answer}
    (made,) = word_problems.solution(row, "x", templates)
    assert (made.id, made.problem, made.answer) == ("x", "p", answer.strip())
    prompts.check_steps(templates, made.steps)
    assert prompts.boxed(made.steps[-1]) == made.answer
    return made.steps


@pytest.mark.parametrize(
    ("equation", "answer", "steps"),
    [
        ("- + 8 3 2", "9", ["8 + 3 = 11.", r"11 - 2 = 9. The answer is \boxed{9}."]),
        ("* 70 2.5", "175", [r"70 * 2.5 = 175. The answer is \boxed{175}."]),
        ("* 3 0.01", "0.03", [r"3 * 0.01 = 0.03. The answer is \boxed{0.03}."]),
        ("/ 1 8", "0.125", [r"1 / 8 = 0.125. The answer is \boxed{0.125}."]),
        (
            "/ 10 3",
            "3.33333",
            [r"10 / 3 = 10/3, about 3.33333. The answer is \boxed{3.33333}."],
        ),
        (
            "* / 8 6 3",
            "4",
            ["8 / 6 = 4/3.", r"(4/3) * 3 = 4. The answer is \boxed{4}."],
        ),
        ("- 5 - 3 7", "9", ["3 - 7 = -4.", r"5 - (-4) = 9. The answer is \boxed{9}."]),
        ("+ - 3 7 5.0", "1", ["3 - 7 = -4.", r"-4 + 5 = 1. The answer is \boxed{1}."]),
        ("7", "7", [r"The answer is \boxed{7}."]),
        (
            "+ * 1 2 * 3 4",
            "14",
            ["1 * 2 = 2.", "3 * 4 = 12.", r"2 + 12 = 14. The answer is \boxed{14}."],
        ),
        (
            "- 99999999999999999999999 1",
            "99999999999999999999998",
            [
                "99999999999999999999999 - 1 = 99999999999999999999998. "
                r"The answer is \boxed{99999999999999999999998}."
            ],
        ),
    ],
)
def test_one_operation_is_one_step(equation, answer, steps):
    made = solve(equation, answer)
    assert made == tuple(f"Step {n}: {text}" for n, text in enumerate(steps, 1))


def test_steps_with_another_marker():
    assert solve("+ 1 2", "3", Templates(step="<{n}> "))[0].startswith("<1> 1 + 2")


@pytest.mark.parametrize(
    ("equation", "answer", "words"),
    [
        ("+ 1 2", "4", r"the equation '\+ 1 2' gives 3 and the answer is 4"),
        ("/ 10 3", "3.3", "gives 10/3 and the answer is 3.3"),
        ("/ 10 0", "1", "divides by 0"),
        ("+ 1", "1", r"the equation is '\+ 1'; expected"),
        ("1 + 2", "1", "expected .* before their two numbers"),
        ("+ 1 2 3", "3", "the equation is"),
        ("^ 1 2", "1", "the equation is"),
        ("+ 1 x", "1", "the equation is"),
        ("+ 1e9 1", "1", "the equation is"),
        ("+ 1 " * 99 + "1", "100", "at most 99 of them"),
        ("+ ١ 2", "3", "the equation is"),
        ("+ 1 2", "three", "field 'answer' is 'three'; expected a number"),
        ("+ 1 2", "9" * 41, "expected a number"),
        ("+ 1 2", "nan", "expected a number"),
        (" ", "1", "field 'equation'"),
    ],
)
def test_equations_that_cannot_be_used(equation, answer, words):
    with pytest.raises(ValueError, match=words):
        solve(equation, answer)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(-7, 2), "-3.5"),
        (Fraction(1, 1024), "0.0009765625"),
        (Fraction(-1, 3), "-1/3"),
        (Fraction(10**30), "1" + "0" * 30),
        (Fraction(-1, 20), "-0.05"),
        (Fraction(100, 8), "12.5"),
    ],
)
def test_numbers_in_full(value, text):
    assert word_problems.written(value) == text
    assert Fraction(text) == value
