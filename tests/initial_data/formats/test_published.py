"""Each public benchmark in the layout in which it is published, with made-up rows."""

import json

import pytest
from data_rows import TEMPLATES

from stepjax.initial_data.formats import own, sources
from stepjax.records import Problem, Question

OLYMPIAD = {
    "id": 1606,
    "context": None,
    "question": "What share of the tiles is red?",
    "solution": ["Of 24 tiles one is red."],
    "final_answer": ["$4.2$"],
    "is_multiple_answer": False,
    "unit": "%",
    "answer_type": "Numerical",
    "error": "1e-1",
    "subfield": "Number Theory",
}
LAYOUTS = {
    "gsm8k": (
        {
            "question": "How many?",
            "answer": "1000+234=<<1000+234=1234>>1234\n#### 1,234",
        },
        Problem("x-0", "How many?", "1234"),
    ),
    "MATH": (
        {
            "problem": "Find $x$.",
            "level": "Level 1",
            "type": "Algebra",
            "solution": r"First \boxed{2}? No: \boxed{\frac{1}{2}}.",
        },
        Problem("x-0", "Find $x$.", r"\frac{1}{2}"),
    ),
    "MATH-500": (
        {
            "problem": "Find $x$.",
            "solution": r"\boxed{3}",
            "answer": "3",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        },
        Problem("test/algebra/1.json", "Find $x$.", "3"),
    ),
    "Gaokao2023En": (
        {"id": 0, "question": "Find $M$.", "answer": r"$\{x|x<1\}$", "source": "s"},
        Problem("0", "Find $M$.", r"$\{x|x<1\}$"),
    ),
    "OlympiadBench": (
        OLYMPIAD,
        Problem("1606", OLYMPIAD["question"], "$4.2$", tolerance="1e-1", unit="%"),
    ),
    "OlympiadBench, several answers": (
        OLYMPIAD
        | {"final_answer": ["1,3"], "is_multiple_answer": True}
        | {"unit": None, "error": None},
        Problem("1606", OLYMPIAD["question"], "1,3"),
    ),
    "OlympiadBench, tuples are exact": (
        OLYMPIAD | {"final_answer": ["(1,2)"], "answer_type": "Tuple", "unit": None},
        Problem("1606", OLYMPIAD["question"], "(1,2)"),
    ),
    "OlympiadBench, physics": (
        OLYMPIAD | {"context": "A ball falls.\n", "unit": "m/s", "error": 0.5},
        Problem(
            "1606",
            f"A ball falls.\n{OLYMPIAD['question']}",
            "$4.2$",
            tolerance="0.5",
            unit="m/s",
        ),
    ),
    "AIME 2024": (
        {"ID": "2024-I-1", "Problem": "Find $n$.", "Solution": "s", "Answer": 33},
        Problem("2024-I-1", "Find $n$.", "33"),
    ),
    "AMC 2023": (
        {"id": 0, "problem": "Find $n$.", "answer": 27.0, "url": "u"},
        Problem("0", "Find $n$.", "27"),
    ),
    "SVAMP": (
        {
            "ID": "chal-1",
            "Body": "A pack costs 76 dollars",
            "Question": "What do 2 packs cost?",
            "Equation": "( 76.0 * 2.0 )",
            "Answer": 152.0,
            "Type": "Multiplication",
        },
        Problem("chal-1", "A pack costs 76 dollars. What do 2 packs cost?", "152"),
    ),
}


def read(folder, row, to="problem"):
    (folder / "x.jsonl").write_text(json.dumps(row), "utf-8")
    return sources.read(folder / "x.jsonl", "benchmark", to, TEMPLATES)


@pytest.mark.parametrize(("row", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_benchmark_is_read_as_it_is_published(tmp_path, row, expected):
    assert read(tmp_path, row) == [expected]
    asked = Question(expected.id, expected.problem)
    assert read(tmp_path, row, "question") == [asked]


def test_a_story_that_ends_like_a_sentence_gets_no_second_full_stop(tmp_path):
    row = {"Body": "He has 3 pens.", "Question": "How many?", "Answer": 3.0}
    (made,) = read(tmp_path, row)
    assert made.problem == "He has 3 pens. How many?"


def test_names_that_other_data_use_otherwise_are_no_tolerance(tmp_path):
    row = {"problem": "p", "answer": "1", "error": "timeout", "context": "c"}
    assert read(tmp_path, row) == [Problem("x-0", "p", "1")]
    row = {"problem": "p", "answer": "1", "tolerance": 0.25, "unit": "m"}
    assert read(tmp_path, row) == [Problem("x-0", "p", "1", "0.25", "m")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"error": "about 1"}, r":1 \(id 1606\): field 'tolerance' is 'about 1'; exp"),
        ({"error": [1]}, r":1 \(id 1606\): field 'error' is \[1\]; expected"),
        ({"answer_type": 3}, r":1 \(id 1606\): field 'answer_type' is 3; expected"),
    ],
)
def test_a_tolerance_that_cannot_be_read_names_its_row(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, OLYMPIAD | change)


def test_what_says_how_an_answer_is_graded_counts_as_read():
    unread = own.unread(OLYMPIAD | {"Body": "b", "tolerance": "1"}, Problem)
    assert unread == {"subfield"}
