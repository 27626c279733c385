import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from stepjax.initial_data import cutter, ift
from stepjax.prompts import Templates, check_steps
from stepjax.records import Worked

TEMPLATES = Templates()
OTHER = Templates(step="({n}) ")


def worked(solution, answer="", name="p1"):
    return Worked(name, "What is it?", solution, answer)


def squeezed(text):
    return "".join(text.split())


def test_sentences_of_a_long_paragraph_become_steps():
    first = "Let $n$ and $q$ be the numbers of nickels and quarters that she has."
    second = "There are seven more nickels than quarters, so we know that $q=n-7.$"
    third = "In cents, the amount of money is $5n+25q=455$, so $n = \\boxed{21}$."
    assert cutter.cut(f"{first}  {second}\n {third}") == [f"{first} {second}", third]


def test_a_short_paragraph_stays_whole():
    text = "Since $h = 5.$ We get $r = 2.$ So it is $\\boxed{20}$."
    assert cutter.cut(text) == [text]


@pytest.mark.parametrize(
    "whole",
    [
        "costs 3.5 of it",
        "as in Fig. A and Eq. B",
        "by Dr. Smith of the U.S. Navy",
        "e.g. Two, i.e. Three, etc. Four",
        "$a. Then b$",
        "\\(a. Then b\\)",
        "\\textbf{One. Two}",
        "(it is one. Two is not)",
        "$x = \\text{one. Two is $y$. Three}$",
        "1, 2, ... The last one",
        "1, 2, … The last one",
        '[asy] draw(A). B; label("$A$ ("); [/asy]',
        "```a. B```",
        "\\[a. B\\]",
        "$$a. B$$",
        "\\begin{align*} a. B\n\n C. D \\end{align*}",
        "\\begin{equation}\\begin{cases}a. B\\end{cases} C. D\\end{equation}",
    ],
)
def test_nothing_is_cut_inside(whole):
    padding = "and this sentence is long enough to be a step of its own " * 2
    text = f"We say {whole} {padding}. It {padding} is $\\boxed{{1}}$."
    steps = cutter.cut(text)
    assert len(steps) == 2
    assert squeezed(whole) in squeezed(steps[0])


def test_a_price_is_no_formula():
    padding = "and this sentence is long enough to be a step of its own " * 2
    text = f"He has $5 {padding}. She has $7 {padding}. So $x$ is $\\boxed{{12}}$."
    assert [step[:9] for step in cutter.cut(text)] == [
        "He has $5",
        "She has $",
        "So $x$ is",
    ]
    text = f"He has $5 {padding} and $x. Y$ {padding}. So it is $\\boxed{{12}}$."
    assert cutter.cut(text)[0].endswith("of its own .")
    assert "$x. Y$" in cutter.cut(text)[0]


def test_a_displayed_formula_stays_with_the_sentence_that_leads_to_it():
    text = (
        "Squaring the equation $x + y + z = 5,$ we get\n"
        "\\[x^2 + y^2 + z^2 + 2(xy + xz + yz) = 25.\\]Then the sum of squares is "
        "$25 - 16 = 9$, and by Cauchy-Schwarz,\n\n$$2(y^2 + z^2) \\ge (y + z)^2,$$\n"
        "where equality holds for $y = z$.\n\nThus,\n\\begin{align*}\n"
        "2(9 - x^2) &\\ge (5 - x)^2,\n\nx &\\le \\boxed{\\frac{7}{3}}.\n\\end{align*}"
    )
    steps = cutter.cut(text)
    assert [step[:8] for step in steps] == ["Squaring", "Then the", "Thus, \\b"]
    assert steps[0].endswith("= 25.\\]")
    assert steps[1].endswith("for $y = z$.")
    assert ift.check_cut(text, steps) is None


def test_list_items_and_headings():
    text = (
        "## Solution\n\n### Part 1:\n1. We are given that:\n   \\[x + y = 50\\]\n"
        "2. Then $y = 50 - x$, which is\n   less than 50\n\n   - so $x > 0$.\n"
        "\n**Conclusion**\n\nThe answer is $\\boxed{25}$.\n"
    )
    assert cutter.cut(text) == [
        "## Solution ### Part 1: 1. We are given that: \\[x + y = 50\\]",
        "2. Then $y = 50 - x$, which is less than 50",
        "- so $x > 0$.",
        "**Conclusion** The answer is $\\boxed{25}$.",
    ]


def test_own_markers_are_where_a_text_is_cut_and_do_not_stay():
    text = (
        "Let us go.\nStep 1: Add. Then add again.\n\n**Step 2:** Take 3.\n"
        "**Step 3: Halve.** Now.\n### Step 4\nIn Step 2 we took 3. Step 5: $\\boxed{1}$"
    )
    steps = cutter.cut(text)
    assert steps == [
        "Let us go. Add. Then add again.",
        "Take 3.",
        "**Halve.** Now.",
        "In Step 2 we took 3.",
        "$\\boxed{1}$",
    ]
    assert ift.check_cut(text, steps) is None
    (row,), _ = ift.solutions([worked(text)], TEMPLATES, [steps])
    assert row.steps[2] == "Step 3: **Halve.** Now."
    marked = [f"Step {n}: {step}" for n, step in enumerate(steps, 1)]
    (row,), _ = ift.solutions([worked(text)], TEMPLATES, [marked])
    assert row.steps[2] == "Step 3: **Halve.** Now."


def test_lines_of_gsm8k_are_steps_however_short():
    text = "2+3 = <<2+3=5>>5 clips\n5*2=<<5*2=10>>10\nSo 10.\n#### 10"
    assert cutter.cut(text) == text.split("\n")
    prices = "It cost 20*2=$40 an hour\nThat is 40*8=$320 a day\nx=320"
    assert cutter.cut(prices) == prices.split("\n")
    plain = "She sold 48/2 = 24 clips in May\nNatalia sold 48+24 = 72 clips in all."
    assert cutter.cut(plain) == plain.split("\n")


def test_chinese_sentences():
    text = (
        "设函数满足条件，其中数列的各项都是正整数。" * 8
        + "因此，\\[f(x) = 1。\\]从而\\(a。b\\)成立。所以答案是$\\boxed{1}$。"
    )
    steps = cutter.cut(text)
    assert len(steps) == 3
    assert all(step.endswith("。") for step in steps)
    assert "".join(steps) == text


def test_remarks_after_the_answer_join_the_last_step():
    text = "First $x = 2 + 2$.\n\nSo it is $\\boxed{4}$.\n\nNote: not 5.\n\nCheck it."
    assert cutter.cut(text) == [
        "First $x = 2 + 2$.",
        "So it is $\\boxed{4}$. Note: not 5. Check it.",
    ]
    text = "First $x = 2 + 2$.\n\nSo it is $\\boxed{4}$.\n\nThat is $\\boxed{4.0}$."
    assert cutter.cut(text)[1:] == ["So it is $\\boxed{4}$. That is $\\boxed{4.0}$."]


def test_most_steps_join_neighbours_of_similar_length():
    lines = [f"The number of line {n} is {n}." for n in range(10, 50)]
    text = "\n\n".join([*lines, "It is $\\boxed{49}$."])
    assert len(cutter.cut(text, most=100)) == 41
    assert len(cutter.cut(text)) == 20
    steps = cutter.cut(text, most=4)
    assert [step.count("line") for step in steps] == [10, 10, 11, 9]
    assert ift.check_cut(text, steps) is None
    with pytest.raises(ValueError, match="most is 0; expected 1"):
        cutter.cut(text, most=0)


@pytest.mark.parametrize(
    "steps, reason",
    [
        (["x = 1.", "So \\boxed{a b}."], None),
        (["x=1.\n", "\tSo \\boxed{ab} ."], None),
        (["Step 1: x = 1.", "**Step 2:** So \\boxed{a b}."], None),
        ([], "no steps"),
        (["", " "], "no steps"),
        (["x = 1."], "the boxed answer is gone"),
        (["x = 1.", "So \\boxed{b a}."], "the boxed answer is gone"),
        (["x = 2.", "So \\boxed{a b}."], "differ"),
        (["Here it is: x = 1.", "So \\boxed{a b}."], "differ"),
        (["So \\boxed{a b}.", "x = 1."], "differ"),
        (["x = 1. So \\boxed{a", "b}."], "the boxed answer is cut in two"),
        (["x = 1.", "So \\boxed{a b}", "."], "a step before the last one holds"),
        (["x = 1. So \\boxed{a b}."], None),
    ],
)
def test_why_a_cut_is_refused(steps, reason):
    found = ift.check_cut("x = 1.  So\n\\boxed{a b}.", steps)
    assert found == reason or (reason and reason in found)


@pytest.mark.parametrize("original", ["", "Proved.", "\\boxed{}", "\\boxed{1"])
def test_a_solution_without_a_boxed_answer_is_refused(original):
    assert ift.check_cut(original, [original]) == "no boxed answer"


def test_a_teacher_is_asked_and_its_answer_read():
    row = worked("Braces {solution} stay. So\n$\\boxed{4}$.")
    prompt = ift.teacher_prompt(TEMPLATES, row)
    assert "What is it?" in prompt and row.solution in prompt
    assert '"Step 1: "' in prompt and '"(2) "' in ift.teacher_prompt(OTHER, row)
    steps = ["Braces {solution} stay.", "So $\\boxed{4}$."]
    for answer in (
        "Step 1: Braces {solution} stay.\nStep 2: So\n$\\boxed{4}$.\n",
        "```\r\nStep 1: Braces {solution} stay.\r\n\r\nStep 2: So $\\boxed{4}$.\n```",
        "**Step 1:** Braces {solution} stay.\n**Step 2**: So $\\boxed{4}$.",
    ):
        assert ift.read_teacher_cut(answer, TEMPLATES) == steps
        assert ift.check_cut(row.solution, steps) is None
    answer = "(1) Braces {solution} stay.\n(2) So $\\boxed{4}$."
    assert ift.read_teacher_cut(answer, OTHER) == steps
    assert ift.read_teacher_cut("I cannot do that.", TEMPLATES) == []
    assert ift.read_teacher_cut("", TEMPLATES) == []
    preamble = ift.read_teacher_cut(f"Here you are:\n{answer}", OTHER)
    assert preamble == ["Here you are:", *steps]
    assert "differ" in ift.check_cut(row.solution, preamble)


def test_counts_of_kept_and_rejected_add_up():
    rows = [
        worked("One.\n\nSo $\\boxed{ 4 }$.", name="a"),
        worked("One.\n\nSo $\\boxed{4}$.", "four", "b"),
        worked("Proved.", name="c"),
        worked("Proved.", "5", "d"),
        worked("So $\\boxed{4}$.", name="e"),
    ]
    cuts = [*(cutter.cut(row.solution) for row in rows[:4]), []]
    kept, rejected = ift.solutions(rows, OTHER, cuts)
    assert [(row.id, row.answer) for row in kept] == [("a", "4"), ("b", "four")]
    assert kept[0].steps == ("(1) One. So $\\boxed{ 4 }$.",)
    assert rejected == [
        ift.Rejected("c", "no boxed answer"),
        ift.Rejected("d", "no boxed answer"),
        ift.Rejected("e", "no steps"),
    ]
    text = ift.summary(kept, rejected)
    assert text.startswith("5 worked solutions\n2 kept, 1.0 steps per solution and 25 ")
    assert "2 rejected: no boxed answer\n1 rejected: no steps\n" in text
    assert ift.summary([], []) == "0 worked solutions\n0 kept\n"
    with pytest.raises(ValueError, match="4 cuts for 5 solutions"):
        ift.solutions(rows, OTHER, cuts[:4])


def test_an_answer_that_is_stated_closes_a_solution_only_when_asked():
    rows = [worked("He has 5*2=10.\nThen 11.", "11"), worked("Then 3.", "{", "p2")]
    cuts = [["He has 5*2=10.", "Then 11."], ["Then 3."]]
    kept, rejected = ift.solutions(rows, TEMPLATES, cuts, close=True)
    assert kept[0].steps == (
        "Step 1: He has 5*2=10.",
        "Step 2: Then 11. The answer is \\boxed{11}.",
    )
    assert rejected == [ift.Rejected("p2", "no boxed answer")]
    assert ift.solutions(rows, TEMPLATES, cuts)[0] == []


def test_steps_hold_no_line_that_begins_another_step():
    text = (
        "So\n\\begin{align}\nStep 3 &= 1\n\\end{align}\u2028Step 9 gives $\\boxed{1}$."
    )
    steps = cutter.cut(text)
    assert len(steps) == 2
    for cut in (steps, [text]):
        (row,), _ = ift.solutions([worked(text)], TEMPLATES, [cut])
        check_steps(TEMPLATES, row.steps)


DATA = os.environ.get("STEPJAX_DATA")


@pytest.mark.skipif(not DATA, reason="STEPJAX_DATA names no folder of public data")
def test_public_solutions_are_kept_or_rejected_for_a_known_reason():
    counts = {}
    for name, field in (("math/train_part", "answer"), ("numinamath/sample", "")):
        lines = Path(DATA, f"{name}.jsonl").read_text("utf-8").strip().split("\n")
        rows = [
            Worked(str(n), row["problem"], row["solution"], row.get(field, ""))
            for n, row in enumerate(map(json.loads, lines))
        ]
        cuts = [cutter.cut(row.solution) for row in rows]
        kept, rejected = ift.solutions(rows, TEMPLATES, cuts)
        for row in kept:
            check_steps(TEMPLATES, row.steps)
            assert len(row.steps) <= cutter.MOST_STEPS
            text = "".join(re.sub(r"^Step \d+: ", "", step) for step in row.steps)
            assert squeezed(text) == squeezed(rows[int(row.id)].solution)
        reasons = Counter(dataclasses.astuple(row)[1] for row in rejected)
        counts[name] = (len(rows), len(kept), reasons["no boxed answer"])
        assert len(kept) + len(rejected) == len(rows)
    assert counts["math/train_part"] == (3605, 3579, 0)
    assert counts["numinamath/sample"][0] == 105
