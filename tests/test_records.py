import dataclasses
import json
import os

import pytest

from stepjax import records
from stepjax.records import Comparison, Problem, Question, Solution

QUESTIONS = [Question("q-0", "1+1?"), Question("q-1", "A line\u2028inside, and ½\n2?")]
PROBLEMS = [Problem("p-0", "1+1?", "2"), Problem("p-1", "", r"\frac{1}{2}")]
SOLUTIONS = [
    Solution("s-0", "1+1?", (r"Step 1: \boxed{2}",), "2"),
    Solution("s-1", "2+2+1?", ("Step 1: 2+2=4", r"Step 2: \boxed{5}"), "5"),
]
COMPARISONS = [
    Comparison("c-0", "1+1?", (), "Step 1: 2", "Step 1: 3", "A", "3 is wrong. "),
    Comparison("c-1", "1+1?", ("Step 1: x",), "Step 2: 3", "Step 2: 2", "B"),
]


def write_text(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def expect_error(path, record_type, *parts):
    with pytest.raises(ValueError) as caught:
        records.read_jsonl(path, record_type)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert "expected" in message


@pytest.mark.parametrize(
    "rows",
    [QUESTIONS, PROBLEMS, SOLUTIONS, COMPARISONS],
    ids=lambda r: type(r[0]).__name__,
)
def test_round_trip(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, rows)
    assert records.read_jsonl(path, type(rows[0])) == rows
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert len(lines) == 3 and lines[2] == ""
    names = [field.name for field in dataclasses.fields(rows[0])]
    rare = ["tolerance", "unit"] if rows is PROBLEMS else []
    assert list(json.loads(lines[0])) == [name for name in names if name not in rare]


def test_rare_fields_are_written_where_they_hold_something(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [Problem("a", "p", "1.5", tolerance="1e-1"), Problem("b", "p", "2")]
    records.write_jsonl(path, rows)
    assert path.read_text("utf-8").split("\n") == [
        '{"id": "a", "problem": "p", "answer": "1.5", "tolerance": "1e-1"}',
        '{"id": "b", "problem": "p", "answer": "2"}',
        "",
    ]
    assert records.read_jsonl(path, Problem) == rows


@pytest.mark.parametrize("text", ["-1", "0.1.", "nan", "inf", "1e999", "0.1;0.2", "a"])
def test_a_tolerance_is_a_number(text):
    with pytest.raises(ValueError, match="field 'tolerance' is .*; expected a number"):
        Problem("a", "p", "1", tolerance=text)


@pytest.mark.parametrize("text", ["", "0", "1e-1", ".05", "0.1,", ",0.2", "0.1, 1"])
def test_tolerances_of_several_answers(text):
    assert Problem("a", "p", "1,2", tolerance=text).tolerance == text


def test_lists_become_tuples_and_rows_are_frozen(tmp_path):
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, SOLUTIONS)
    row = records.read_jsonl(path, Solution)[1]
    assert row.steps == ("Step 1: 2+2=4", r"Step 2: \boxed{5}")
    assert isinstance(row.steps, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.answer = "6"


def test_exact_bytes(tmp_path):
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, [QUESTIONS[1], {"b": 1, "a": [0.5, None]}])
    expected = (
        '{"id": "q-1", "problem": "A line\u2028inside, and ½\\n2?"}\n'
        '{"b": 1, "a": [0.5, null]}\n'
    )
    assert path.read_bytes() == expected.encode("utf-8")


def test_only_newlines_end_lines(tmp_path):
    text = '{"id": "a", "problem": "x\u2028y\u2029z\x85"}\r\n{"id": "b", "problem": ""}'
    rows = records.read_jsonl(write_text(tmp_path / "rows.jsonl", text), Question)
    assert rows == [Question("a", "x\u2028y\u2029z\x85"), Question("b", "")]


def test_default_field_may_be_left_out(tmp_path):
    row = {"id": "c", "problem": "p", "steps": [], "a": "1", "b": "2", "verdict": "B"}
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, [row])
    assert records.read_jsonl(path, Comparison) == [
        Comparison("c", "p", (), "1", "2", "B", "")
    ]


def test_empty_file_has_no_rows(tmp_path):
    assert records.read_jsonl(write_text(tmp_path / "rows.jsonl", ""), Question) == []


GOOD = '{"id": "a", "problem": "p"}\n'


def test_blank_lines_are_passed_over(tmp_path):
    path = write_text(tmp_path / "rows.jsonl", f"\n{GOOD} \n\n{GOOD}")
    expect_error(path, Question, f"{path}:5: id 'a' is at {path}:2 already")


@pytest.mark.parametrize(
    "second, reason",
    [
        ('{"id": "b", "probl', "broken JSON"),
        ("[" * 100_000 + "\n", "broken JSON"),
        ("[1, 2]\n", "[1, 2] is no JSON object"),
        ('{"problem": 5}\n', "missing field 'id'"),
        ('{"id": 7, "problem": "p"}\n', "field 'id' is 7"),
        ('{"id": "a", "problem": "other"}\n', "id 'a' is at"),
    ],
)
def test_bad_second_line(tmp_path, second, reason):
    path = write_text(tmp_path / "rows.jsonl", GOOD + second)
    expect_error(path, Question, f"{path}:2: {reason}")


@pytest.mark.parametrize(
    "second, reason",
    [
        ('{"id": "b"}\n', "missing field 'problem'"),
        ('{"id": "b", "problem": "p", "answer": "2"}\n', "unknown field 'answer'"),
        ('{"id": "b", "problem": null}\n', "field 'problem' is None"),
    ],
)
def test_a_bad_row_is_named_by_its_id_too(tmp_path, second, reason):
    path = write_text(tmp_path / "rows.jsonl", GOOD + second)
    expect_error(path, Question, f"{path}:2 (id b): {reason}")


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + b'{"id": "b", "problem": "\xff"}\n')
    expect_error(path, Question, f"{path}:2: broken JSON")


def test_missing_file(tmp_path):
    path = tmp_path / "none.jsonl"
    expect_error(path, Question, f"{path}: cannot be read", "No such file")


@pytest.mark.parametrize("steps", ['"Step 1: x"', '["Step 1: x", 2]', "null"])
def test_steps_must_be_a_list_of_strings(tmp_path, steps):
    text = f'{{"id": "a", "problem": "p", "steps": {steps}, "answer": "2"}}'
    path = write_text(tmp_path / "rows.jsonl", text)
    expect_error(
        path, Solution, f"{path}:1 (id a): field 'steps' is", "list of strings"
    )


@pytest.mark.parametrize("verdict", ["D", "a", "", None, ["A"]])
def test_bad_verdict(tmp_path, verdict):
    row = {"id": "c", "problem": "p", "steps": [], "a": "1", "b": "2"}
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, [row | {"verdict": verdict}])
    expect_error(path, Comparison, f"{path}:1 (id c): field 'verdict' is", "'A' or 'B'")
    with pytest.raises(ValueError, match="expected 'A' or 'B'"):
        Comparison("c", "p", (), "1", "2", verdict)


def test_read_objects_gives_places(tmp_path):
    path = write_text(tmp_path / "rows.jsonl", GOOD + '{"x": [1]}\n')
    assert list(records.read_objects(path)) == [
        (f"{path}:1", {"id": "a", "problem": "p"}),
        (f"{path}:2", {"x": [1]}),
    ]


@pytest.mark.parametrize(
    "bad", [{"x": float("nan")}, {"x": "\ud800"}, {"x": {1, 2}}, {"x": b"bytes"}]
)
def test_failed_write_leaves_the_old_file(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, QUESTIONS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: row cannot be written"):
        records.write_jsonl(path, [{"x": 1}, bad])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_interrupted_rows_leave_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, PROBLEMS)

    def rows():
        yield PROBLEMS[0]
        assert len(os.listdir(tmp_path)) == 2  # the new file is a separate one
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_jsonl(path, rows())
    assert records.read_jsonl(path, Problem) == PROBLEMS
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_write_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))
    )
    records.write_jsonl(tmp_path / "rows.jsonl", QUESTIONS)
    assert calls == ["fsync", "replace", "fsync"]  # the last one: of the folder
