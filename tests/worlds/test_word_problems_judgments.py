"""Word problems: corrupted steps, explanations, comparisons, the world's teacher."""

import collections
import random
from fractions import Fraction

import pytest

from stepjax import prompts
from stepjax.initial_data import eft
from stepjax.initial_data.formats import word_problems as form
from stepjax.prompts import Templates
from stepjax.records import Preference
from stepjax.worlds import equations
from stepjax.worlds import word_problems as world
from stepjax.worlds import word_problems_judgments as judgments
from stepjax.worlds.equations import Equation

ONE = Equation("one", "Ann had 76 pens in 3 bags and lost 25.", "51", "- 76 25")
TWO = Equation("two", "Bob has 8 cups, gets 3, and 2 break.", "9", "- + 8 3 2")
FIRST = "Step 1: 8 + 3 = 11."
LAST = r"Step 2: 11 - 2 = 9. The answer is \boxed{9}."
RIGHT = r"Step 1: 76 - 25 = 51. The answer is \boxed{51}."


def corrupted(row, steps, count=2000):
    rng = random.Random(0)
    made = [judgments.corrupt(row, steps, rng) for _ in range(count)]
    return made, collections.Counter(world.mistake(row, steps, x) for x in made)


def test_the_kinds_of_mistakes_have_their_shares():
    made, kinds = corrupted(ONE, [])
    # One operation: it cannot end early, so the other shares grow to fill 0.925.
    possible = {k: v for k, v in judgments.SHARES.items() if k != world.ENDS_EARLY}
    assert sum(judgments.SHARES.values()) == pytest.approx(1)
    assert kinds.keys() == possible.keys()
    for kind, share in possible.items():
        expected = share / sum(possible.values())
        assert abs(kinds[kind] / len(made) - expected) < 0.05, kind
    # The first of two operations, which any two of the numbers may have: it cannot
    # go on, and neither operands nor their order can be wrong.
    _, kinds = corrupted(TWO, [])
    missing = {world.GOES_ON, world.ORDER, world.OPERANDS}
    assert kinds.keys() == judgments.SHARES.keys() - missing


def test_the_calculation_of_a_wrong_choice_is_true():
    made, _ = corrupted(ONE, [])
    kept = 0
    for text in made:
        kind, stated = world.mistake(ONE, [], text), world.read_step(text).calculation
        value = form.apply(stated.symbol, stated.left.value, stated.right.value)
        true = world.agrees(stated.result, value)
        if kind == world.ORDER:
            kept += not true
            assert true or stated.result.value == 51
        else:
            assert true == (kind != world.ARITHMETIC)
    swapped = sum(world.mistake(ONE, [], text) == world.ORDER for text in made)
    assert abs(kept / swapped - judgments.RESULT_KEPT) < 0.1


def test_wrong_operands_come_from_the_problem_and_the_steps():
    made, _ = corrupted(ONE, [])
    wrong = [x for x in made if world.mistake(ONE, [], x) == world.OPERANDS]
    # 3 - 25 is not taken, as its result is negative.
    assert {x.partition(" = ")[0] for x in wrong} == {"Step 1: 76 - 3"}
    made, _ = corrupted(TWO, [FIRST])
    wrong = [x for x in made if world.mistake(TWO, [FIRST], x) == world.OPERANDS]
    numbers = {8, 3, 2, 11}
    for text in wrong:
        stated = world.read_step(text).calculation
        assert {stated.left.value, stated.right.value} <= numbers


def test_a_wrong_last_step_boxes_its_own_result():
    made, _ = corrupted(TWO, [FIRST])
    for text in made:
        boxed, stated = prompts.boxed(text), world.read_step(text).calculation
        if world.mistake(TWO, [FIRST], text) == world.GOES_ON:
            assert boxed is None
        else:
            assert world.agrees(world.read_number(boxed), stated.result.value)


def test_slips_by_hand():
    assert {10, 18, 19, 21, 22, 30, 2, 90} <= set(map(int, judgments.slips(20)))
    assert 20 not in judgments.slips(Fraction(20))
    assert {Fraction(24, 10), Fraction(52, 10)} <= set(judgments.slips(Fraction("2.5")))
    assert all(value < 0 for value in judgments.slips(Fraction(-51)))
    assert Fraction(11, 3) in judgments.slips(Fraction(10, 3))


def test_a_corruption_needs_a_due_calculation():
    for steps in ([FIRST, LAST], ["Step 1: 8 + 3 = 12."]):
        with pytest.raises(ValueError, match="'two' has no calculation after"):
            judgments.corrupt(TWO, steps, random.Random(0))


@pytest.mark.parametrize(
    ("row", "steps", "a", "b", "expected"),
    [
        (
            *(ONE, [], r"Step 1: 76 / 25 = 3.04. \boxed{3.04}", RIGHT),
            "The last calculation is 76 - 25 = 51. A: 76 / 25 = 3.04, ends, wrong. "
            "B: 76 - 25 = 51, ends, right. ",
        ),
        (
            *(ONE, [], RIGHT, r"Step 1: 76 - 25 = 41. \boxed{41}"),
            "The last calculation is 76 - 25 = 51. A: 76 - 25 = 51, ends, right. "
            "B: 76 - 25 = 41, ends, wrong. ",
        ),
        (
            *(TWO, [], r"Step 1: 8 + 3 = 11. \boxed{11}", "Step 1: many"),
            "The next calculation is 8 + 3 = 11. A: 8 + 3 = 11, ends, wrong. "
            "B: no clear calculation, wrong. ",
        ),
        (  # the right candidate's own order is taken
            *(TWO, [], "Step 1: 8 - 2 = 6.", "Step 1: 8 * 3 = 24."),
            "The next calculation is 8 - 2 = 6. A: 8 - 2 = 6, right. "
            "B: 8 * 3 = 24, wrong. ",
        ),
        (
            *(TWO, [], "Step 1: 8 + 3 = 11.", "Step 1: 8 - 2 = 5."),
            "The next calculation is 8 + 3 = 11. A: 8 + 3 = 11, right. "
            "B: 8 - 2 = 5, wrong. ",
        ),
        (
            *(TWO, [FIRST], "Step 2: 11 - 2 = 9.", r"Step 2: 11 - 2 = 9. \boxed{8}"),
            "The last calculation is 11 - 2 = 9. A: 11 - 2 = 9, wrong. "
            "B: 11 - 2 = 9, answers 8, wrong. ",
        ),
        (
            *(TWO, [FIRST, "Step 2: 11 - 2 = 9."], "Step 3: 9 + 2 = 11.", LAST),
            "All calculations are done. A: 9 + 2 = 11, wrong. "
            "B: 11 - 2 = 9, ends, wrong. ",
        ),
    ],
)
def test_explanations_by_hand(row, steps, a, b, expected):
    assert judgments.explanation(row, steps, a, b) == expected


@pytest.mark.parametrize(
    ("calculation", "expected"),
    [
        (("-", 76, 25), "76 - 25. 76 - 20 = 56, 56 - 5 = 51"),
        (("+", 34, 109), "34 + 109. 34 + 100 = 134, 134 + 9 = 143"),
        (("*", 56, 9), "56 * 9. 9 * 50 = 450, 9 * 6 = 54, 450 + 54 = 504"),
        (("*", 27, 16), "27 * 16. 27 * 10 = 270, 27 * 6 = 162, 270 + 162 = 432"),
        (("/", 504, 9), "504 / 9. 9 * 56 = 504, so 56"),
        (("+", 8, 3), ""),
        (("+", 76, 5), ""),
        (("*", 30, 4), ""),
        (("-", 25, 76), ""),
        (("/", 10, 4), ""),
    ],
)
def test_calculations_are_worked_off_digit_by_digit(calculation, expected):
    symbol, left, right = calculation
    left, right = Fraction(left), Fraction(right)
    value = form.apply(symbol, left, right)
    assert judgments.worked(equations.Operation(symbol, left, right, value)) == expected


def test_a_worked_explanation_replaces_the_calculation():
    found = judgments.explanation(ONE, [], "Step 1: 76 + 25 = 101.", RIGHT, "worked")
    assert found == (
        "The last calculation is 76 - 25. 76 - 20 = 56, 56 - 5 = 51. "
        "A: 76 + 25 = 101, wrong. B: 76 - 25 = 51, ends, right. "
    )
    small = judgments.explanation(TWO, [], FIRST, "Step 1: 8 * 3 = 24.", "worked")
    assert small.startswith(
        "The next calculation is 8 + 3 = 11. A: 8 + 3 = 11, right. "
    )


def test_comparisons_show_one_right_step_in_both_orders():
    rng = random.Random(1)
    places = set()
    for number in range(50):
        first, second = judgments.comparisons(f"c{number}", TWO, rng)
        assert (first.id, second.id) == (f"c{number}-ab", f"c{number}-ba")
        assert (first.a, first.b) == (second.b, second.a)
        assert (first.verdict, second.verdict) == ("A", "B")
        assert world.is_right(TWO, first.steps, first.a)
        assert not world.is_right(TWO, first.steps, first.b)
        places.add(len(first.steps))
    assert places == {0, 1}
    bare, _ = judgments.comparisons("c", TWO, rng, style="none")
    assert bare.explanation == ""
    assert judgments.comparisons("c", Equation("n", "5?", "5", "5"), rng) == []


def test_two_wrong_steps_have_the_first_one_as_their_verdict():
    rng = random.Random(1)
    made = [judgments.comparisons("c", TWO, rng, undecided=0.4) for _ in range(200)]
    both = [rows for rows in made if rows[1].verdict == "A"]
    assert abs(len(both) / len(made) - 0.4) < 0.1
    for one, other in both:
        assert one.verdict == "A" and (one.a, one.b) == (other.b, other.a)
        assert one.a != one.b
        assert not any(world.is_right(TWO, one.steps, x) for x in (one.a, one.b))
    # Neither of two right steps is better than the other.
    texts = "Step 1: 8 + 3 = 11.", "Step 1: 3 + 8 = 11."
    rows = judgments.comparison_from("c", TWO, [], *texts)
    assert [row.verdict for row in rows] == ["A", "A"]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="expected two different ones"):
        judgments.comparison_from("c", ONE, [], RIGHT, RIGHT)
    with pytest.raises(ValueError, match="steps that are all right"):
        judgments.comparison_from("c", TWO, ["Step 1: 8 + 3 = 1."], LAST, "Step 2: x")


def test_the_world_answers_as_a_teacher():
    wrong = r"Step 1: 76 + 25 = 101. The answer is \boxed{101}."
    other = r"Step 1: 76 - 25 = 50. The answer is \boxed{50}."
    pairs = [
        Preference("p1", ONE.problem, (), RIGHT, wrong),
        Preference("p2", ONE.problem, (), other, wrong),
        Preference("p3", ONE.problem, (), RIGHT, RIGHT),
        Preference("p4", "Unknown?", (), RIGHT, wrong),
        Preference("p5", TWO.problem, ("Step 1: 8 + 3 = 12.",), LAST, "Step 2: x"),
    ]
    rows = [ONE, ONE, ONE, None, TWO]
    templates = Templates()
    answers = judgments.answers(pairs, rows, templates)
    assert [a["prompt"] for a in answers] == eft.requests(pairs, templates)
    texts = [answer["text"] for answer in answers]
    assert texts[0].endswith("ends, right. B: 76 + 25 = 101, ends, wrong. [[A]]")
    assert texts[1].endswith(
        "A: 76 + 25 = 101, ends, wrong. B: 76 - 25 = 51, ends, right. [[B]]"
    )
    assert texts[2].endswith(
        "76 - 25 = 50, ends, wrong. B: 76 + 25 = 101, ends, wrong. [[A]]"
    )
    assert texts[3].endswith("[[A]]")
    assert not any("[[" in text for text in texts[4:])
    bare = judgments.answers(pairs[:1], rows[:1], templates, style="none")
    assert [answer["text"] for answer in bare] == ["[[A]]", "[[B]]"]
