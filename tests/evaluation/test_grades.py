"""What a benchmark states beside an answer, and limits of the grader that are named."""

import pathlib
import re
import threading

import pytest

from stepjax.evaluation import answers, limits
from stepjax.evaluation.answers import extract, grade

PAGE = pathlib.Path(__file__).parents[2] / "docs/evaluation.md"


@pytest.mark.parametrize(
    ("prediction", "gold", "tolerance", "right"),
    [
        ("4.3", "4.2", "1e-1", True),  # just as far as is allowed
        ("4.1", "$4.2$", "0.1", True),
        ("4.300001", "4.2", "0.1", False),
        ("4.2", "4.2", "0", True),
        ("4.3", "4.2", "", False),
        (r"\frac{43}{10}", "4.2", ".1", True),
        (r"\sqrt{17}", "4.2", "0.1", True),
        (r"\sqrt{19}", "4.2", "0.1", False),
        ("x = 4.25", "4.2", "0.1", True),
        # One for all answers, or one for each, in any order.
        ("5.05,4.1", "4.2,5", "0.1", True),
        ("5.05,4.1", "4.2,5", "0.1,0", False),
        ("5,4.1", "4.2,5", "0.1,0", True),
        ("5,4.1", "4.2,5", "0.1,", True),
        ("4.1", "4.2,5", "0.1", False),
        ("4.1,4.1", "4.2,5", "0.1", False),
        ("4.1,5,5", "4.2,5", "0.1", False),
        ("4.1,5", "4.2,5", "0.1,0,0", False),
        # What is no real number is compared exactly.
        ("i", "4.2", "100", False),
        ("a", "4.2", "100", False),
        (r"\infty", "4.2", "100", False),
        ("(1,2.05)", "(1,2)", "0.1", False),
        ("", "4.2", "100", False),
        (None, "4.2", "100", False),
    ],
)
def test_a_tolerance_is_the_largest_difference_that_is_right(
    prediction, gold, tolerance, right
):
    assert grade(prediction, gold, tolerance=tolerance).right == right
    if not tolerance:
        assert answers.equivalent(prediction, gold) == right


@pytest.mark.parametrize(
    ("prediction", "gold", "unit", "right"),
    [
        ("45", "45", "minutes", True),
        ("45 min", "45", "minutes", True),
        (r"45\text{ minutes}", "$45$", "minute", True),
        ("45 hours", "45", "minutes", False),
        (r"45\text{ hours}", "45", "minutes", False),
        ("45 hours", "45", "", True),  # nothing is known of the unit
        ("45 hours", "45", "parsec", True),  # nor of one that is not in the list
        (r"90^{\circ}", "90", r"^{\circ}", True),
        ("90 rad", "90", r"^{\circ}", False),
        (r"4.2\%", "4.2", "%", True),
        ("0.042", "4.2", "%", True),
        (r"85\text{ km/h}", "85", "km/h", True),
        (r"85\text{ km}", "85", "km/h", False),
    ],
)
def test_the_unit_of_a_benchmark(prediction, gold, unit, right):
    assert grade(prediction, gold, unit=unit).right == right


def test_a_number_in_another_unit_is_not_near():
    assert grade("4.25", "4.2", unit="km", tolerance="0.1").right
    assert grade("4.25 km", "4.2", unit="km", tolerance="0.1").right
    assert not grade("4.25 m", "4.2", unit="km", tolerance="0.1").right


@pytest.mark.parametrize(
    ("prediction", "gold", "limit"),
    [
        ("7" * 401, "5", "an answer of more than 400 characters"),
        ("10^{10^{10}}", "5", "a power that is too large"),
        ("5", "10^{10^{10}}", "a power that is too large"),
        ("100000!", "5", "factorial of a number that is too large"),
        (r"\sin(10^6)", "5", "sin of a number that is too large"),
        (r"\sqrt[2000]{7}", "5", "the degree of a root that is too large"),
        (r"\sqrt{" * 50 + "6" + "}" * 50, "5", "a formula that is nested too deep"),
        (
            ",".join(map(str, range(1, 26))),
            ",".join(map(str, range(2, 27))),
            "a list of more than 24 items",
        ),
    ],
)
def test_a_limit_that_ended_a_comparison_is_named(prediction, gold, limit):
    for _ in range(2):  # the second time, what was read is remembered
        assert grade(prediction, gold) == (False, limit)
    assert not answers.equivalent(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("6", "5"),
        (None, "5"),
        ("10^{10^{10}}", "10^{10^{10}}"),  # right, so that no limit matters
        (",".join(map(str, range(30))), "5"),  # 30 items are not one
        ("(" * 20 + "6" + ")" * 20, "5"),
    ],
)
def test_other_answers_meet_no_limit(prediction, gold):
    assert grade(prediction, gold).limit == ""


def test_each_thread_has_limits_of_its_own():
    with limits.noted() as mine:
        other = threading.Thread(target=limits.met, args=("elsewhere",))
        other.start()
        other.join()
        limits.met("here")
        with limits.noted() as inner:
            limits.met("inside")
        assert inner == ["inside"]
    limits.met("nobody asks")
    assert mine == ["here"]


def outcome(solution, gold, strict):
    prediction = extract(solution, strict=strict)
    if prediction is None:
        return "no answer"
    return "right" if grade(prediction, gold, strict=strict).right else "wrong"


def test_both_ways_of_grading_are_those_of_the_docs():
    rows = re.findall(
        r"^\| `(.+)` \| `(.+)` \| ([\w ]+) \| ([\w ]+) \|$",
        PAGE.read_text("utf-8").split("## Lenient and strict")[1],
        re.MULTILINE,
    )
    assert len(rows) == 12
    for gold, solution, lenient, strict in rows:
        assert outcome(solution, gold, False) == lenient, solution
        assert outcome(solution, gold, True) == strict, solution


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("3", "3", True),
        ("3.0", "3", True),
        ("1 234", "1,234", True),
        ("x+1", "x + 1", True),
        (r"\left(1, 2\right)", "(1,2)", True),
        ("5 cm", "5 centimeters", True),
        ("even", "even", True),
        ("1, 2.0", "1 and 2", True),
        ("(1, 2.0)", "(1,2)", False),
        ("1+x", "x+1", False),
        ("5 cm", "5 m", False),
        ("50", r"50\%", False),
        ("1", "1, 2", False),
        ("1, 2, 2", "1, 2", False),
        ("11", "1011_2", False),
        ("", "", False),
        ("", "5", False),
        (None, "5", False),
        ("5" * 401, "5", False),
    ],
)
def test_strict_is_the_same_text_or_number(prediction, gold, right):
    assert grade(prediction, gold, strict=True).right == right


def test_strict_uses_no_tolerance_and_no_unit_of_the_benchmark():
    for strict in (False, True):
        stated = {"tolerance": "0.1", "unit": "minutes", "strict": strict}
        assert grade("4.2", "4.2", **stated).right
        assert grade("4.3", "4.2", **stated).right != strict
        assert grade("4.2 minutes", "4.2", **stated).right != strict


def test_strict_takes_the_last_closed_box():
    text = r"\boxed{1} then \boxed{} and \boxed{\frac{1}{2}} #### 7"
    assert extract(text, strict=True) == r"\frac{1}{2}"
    assert extract(r"\boxed{12", strict=True) is None


def test_a_long_answer_meets_a_limit_in_both_ways():
    for strict in (False, True):
        assert "400 characters" in grade("5" * 401, "5", strict=strict).limit


def test_the_number_of_the_grader_is_an_input_from_the_second_on(monkeypatch):
    monkeypatch.setattr(answers, "VERSION", 1)
    assert answers.inputs() == {}
    monkeypatch.setattr(answers, "VERSION", 2)
    assert answers.inputs() == {"grader": "2"}
