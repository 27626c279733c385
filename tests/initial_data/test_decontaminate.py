import json
import math
import os
from pathlib import Path

import pytest

from stepjax.initial_data import decontaminate
from stepjax.initial_data.decontaminate import Overlap, overlaps, words
from stepjax.records import Question

WORDS = [a + b for a in "abcdefghij" for b in "klmnopqrst"]


def question(name, *texts):
    return Question(name, " ".join(texts))


def run(first, count):
    return " ".join(WORDS[first : first + count])


def other(count):
    return " ".join(["x"] * count)


@pytest.mark.parametrize(
    "one, same",
    [
        ("What  is\n2+3?", "what is $2 + 3$"),
        (
            "\\(\\left( \\dfrac{1}{2} \\right)\\), \\textbf{Then} 1,000.",
            "frac 1 2 then 1000",
        ),
        ("Find $x_1^2\\;\\cdot\\!y$ \\[z\\]", "find x 1 ^ 2 cdot y z"),
        (
            "well-known 3.5 - 2 \\begin{cases}a\\end{cases}",
            "well known 3.5 - 2 cases a cases",
        ),
        ("求所有２个", "求 所 有 2 个"),
    ],
)
def test_spelling_does_not_count(one, same):
    assert words(one) == words(same) == same.replace("$", "").split()


def test_signs_and_decimals_do_count():
    texts = [
        "2+3",
        "2-3",
        "2*3",
        "2/3",
        "2<3",
        "2>3",
        "2=3",
        "2.3",
        "2 3",
        "23",
        "-2 3",
    ]
    assert len({tuple(words(text)) for text in texts}) == len(texts)


def test_the_same_text_is_exact_however_short():
    evaluations = {
        "a": [Question("a1", "What is $2 + 3$?"), Question("a2", "What is 2-3?")],
        "b": [Question("b1", "what is 2+3")],
    }
    found = overlaps([question("t1", "What is 2+3 ?")], evaluations)
    assert found == [
        Overlap("t1", "a", "a1", "exact", "what is 2 + 3"),
        Overlap("t1", "b", "b1", "exact", "what is 2 + 3"),
    ]
    assert overlaps([question("t2", "Say: what is 2+3?")], evaluations) == []


@pytest.mark.parametrize(
    "n, share, length, found",
    [
        (13, 0.5, 13, True),
        (13, 0.5, 12, False),
        (12, 0.5, 12, True),
        (13, 13 / 20, 13, True),
        (13, 14 / 20, 13, False),
        (13, 0, 13, True),
    ],
)
def test_a_run_of_n_words_that_covers_its_share(n, share, length, found):
    training = [question("t", other(30), run(0, length), other(5))]
    evaluation = question("e", "before", run(0, length), "y " * (19 - length))
    assert len(words(evaluation.problem)) == 20
    result = overlaps(training, {"a": [evaluation]}, n, share=share)
    expected = [Overlap("t", "a", "e", "n-gram", run(0, length))]
    assert result == (expected if found else [])


def test_shared_runs_add_up_and_the_longest_is_shown():
    training = [question("t", run(0, 4), other(9), run(10, 7), other(9), run(30, 5))]
    evaluation = question("e", run(0, 4), "y y y", run(10, 7), "y", run(30, 5))
    assert len(words(evaluation.problem)) == 20
    (found,) = overlaps(training, {"a": [evaluation]}, 4, share=16 / 20)
    assert found.text == run(10, 7)
    assert overlaps(training, {"a": [evaluation]}, 4, share=17 / 20) == []


def test_drawings_are_no_run_but_part_of_the_same_text():
    drawing = f"[asy]{run(0, 40)}[/asy]"
    training = [
        question("t1", "Find it. ", drawing),
        question("t2", "Say it.", drawing),
    ]
    found = overlaps(training, {"a": [question("e", "Find it.", drawing)]}, share=0)
    assert [(o.train_id, o.kind) for o in found] == [("t1", "exact")]


def test_a_set_phrase_alone_is_no_overlap_but_copies_make_none():
    training = [question("t", run(0, 13))]
    many = [question(f"e{n}", run(0, 13), f"y{n}") for n in range(100)]
    assert len(overlaps(training, {"a": many[:99]})) == 99
    assert overlaps(training, {"a": many}) == []
    copies = [question(f"e{n}", run(0, 13), "y") for n in range(100)]
    assert len(overlaps(training, {"a": copies})) == 100


def test_overlapping_rows_are_removed_and_reported():
    evaluations = {"a": [question("e1", run(0, 20)), question("e2", "No.")], "b": []}
    training = [
        question("t1", run(0, 20)),
        question("t2", "Another one."),
        *(question(f"t{n}", run(1, 14 + n)) for n in range(3, 6)),
    ]
    found = overlaps(training, evaluations)
    kinds = {overlap.train_id: overlap.kind for overlap in found}
    assert kinds == {"t1": "exact"} | dict.fromkeys(("t3", "t4", "t5"), "n-gram")
    assert decontaminate.remove(training, found) == [training[1]]
    assert decontaminate.remove(training, []) == training
    text = decontaminate.report(found, evaluations)
    numbers = {
        line.split("│")[1].strip(): [int(cell) for cell in line.split("│")[2:-1]]
        for line in text.split("\n")
        if "│" in line
    }
    assert numbers == {"a": [2, 1, 4, 1, 3], "b": [0, 0, 0, 0, 0]}
    assert f"t1 and a e1 (exact): {run(0, 20)}\n" in text
    assert "t4 and a e1 (n-gram): " in text and "t5 and a" not in text
    assert decontaminate.report([], {}).startswith("No evaluation was given")


@pytest.mark.parametrize("n, share", [(0, 0.5), (13, -0.1), (13, 1.1), (13, math.nan)])
def test_values_out_of_range_are_refused(n, share):
    with pytest.raises(ValueError, match=f"n is {n} and share is {share}; expected"):
        overlaps([], {}, n, share=share)


def test_no_texts_overlap_with_nothing():
    assert overlaps([], {"a": [question("e", "")]}) == []
    assert overlaps([question("t", "?!")], {"a": [question("e", "...")]}) == []


def test_prm800k_and_a_math_evaluation_give_a_warning():
    names = ["eval/math.jsonl", "MATH/test.jsonl", "gsm8k", "my_math/aime.jsonl", "own"]
    said = decontaminate.warnings("prm800k", names)
    assert [name for name in names if any(f"'{name}'" in line for line in said)] == [
        "eval/math.jsonl",
        "MATH/test.jsonl",
    ]
    assert "4,500 of the 5,000" in said[0] and "its name says MATH" in said[0]
    found = [Overlap("t", "own", "e", "exact", "x")] * 2
    (own,) = decontaminate.warnings("prm800k", ["own", "gsm8k"], found)
    assert "'own'" in own and "overlaps with the training data 2 times" in own
    assert decontaminate.warnings("gsm8k", names, found) == []


DATA = os.environ.get("STEPJAX_DATA")


@pytest.mark.skipif(not DATA, reason="STEPJAX_DATA names no folder of public data")
def test_prm800k_test_part_is_in_math_and_its_train_part_is_not():
    def questions(name, problem):
        lines = Path(DATA, name).read_text("utf-8").strip().split("\n")
        rows = enumerate(map(json.loads, lines))
        return [Question(f"{name}-{n}", problem(row)) for n, row in rows]

    evaluations = {"math": questions("eval/math.jsonl", lambda row: row["problem"])}
    hits = {}
    for part, rows in (("test", 80), ("train", 745)):
        name = f"prm800k/phase1_{part}_rebuilt.jsonl"
        training = questions(name, lambda row: row["question"]["problem"])
        assert len(training) == rows
        found = overlaps(training, evaluations)
        hits[part] = len({o.train_id for o in found if o.kind == "exact"})
    assert hits == {"test": 80, "train": 0}
