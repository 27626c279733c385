"""Rows that have the right fields and mean nothing: refused by file, line and id."""

import gzip
import json
import os

import pytest

from stepjax import srlm
from stepjax.initial_data.formats import files, sources
from stepjax.prompts import Templates
from stepjax.run import kind

TEMPLATES = Templates()
SOLVED = {"problem": "2+2?", "steps": ["Step 1: a", "Step 2: \\boxed{4}"]}
PAIR = {"problem": "2+2?", "steps": [], "a": "Step 1: x", "b": "Step 1: y"}
ROWS = {
    "solution": SOLVED | {"answer": "4"},
    "comparison": PAIR | {"verdict": "A", "explanation": "so"},
    "problem": {"problem": "2+2?", "answer": "4"},
    "preference": {"problem": "q", "steps": [], "chosen": "a", "rejected": "b"},
}


def parsed(folder, to, changes, **options):
    row = {"id": "r1"} | ROWS[to] | changes
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return sources.read(path, "jsonl", to, TEMPLATES, **options)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("to", "changes", "words"),
    [
        ("solution", {"steps": []}, "field 'steps' is []; expected one step at least."),
        (
            "solution",
            {"answer": "5"},
            "field 'answer' is '5', and the last step holds \\boxed{4}; expected the",
        ),
        (
            "solution",
            {"steps": ["Step 1: \\boxed{3}", "Step 2: \\boxed{4}"]},
            "step 1 holds \\boxed{3} and another step follows; expected it in the last",
        ),
        (
            "solution",
            {"steps": ["Step 1: \\boxed{ }"]},
            "the last step is 'Step 1: \\\\boxed{ }', without an answer in \\boxed{};",
        ),
        (
            "solution",
            {"steps": ["Step 1: [[B]]", "Step 2: \\boxed{4}"]},
            "field 'steps' holds the verdict '[[B]]' in 'Step 1: [[B]]'; expected no",
        ),
        ("problem", {"problem": "a\0"}, "field 'problem' holds the character NUL;"),
        (
            "problem",
            {"problem": "\u200b"},
            "field 'problem' is '\\u200b'; expected some",
        ),
        ("problem", {"problem": "x" * 1_000_001}, "has 1,000,001 characters; expected"),
        ("comparison", {"b": "Step 1:  x"}, "'a' and 'b' are the same step, 'Step 1:"),
        (
            "comparison",
            {"a": "Step 1: [[A]] is right"},
            "field 'a' holds the verdict '[[A]]'; expected it nowhere in what is",
        ),
        (
            "comparison",
            {"problem": "say [[B]]"},
            "field 'problem' holds the verdict '[[B]]'; expected it nowhere in what",
        ),
        (
            "comparison",
            {"explanation": "x [[B]] y"},
            "field 'explanation' is 'x [[B]] y",
        ),
        (
            "comparison",
            {
                "steps": ["Step 1: \\boxed{4}"],
                "a": "Step 2: x",
                "b": "Step 2: y",
            },
            "step 1 holds \\boxed{4} and another step follows; expected it in the last",
        ),
    ],
)
def test_rows_that_mean_nothing(tmp_path, strict, to, changes, words):
    with pytest.raises(ValueError) as error:
        parsed(tmp_path, to, changes, strict=strict)
    place = f"{tmp_path / 'rows.jsonl'}:1 (id r1): "
    assert str(error.value).startswith(place) and words in str(error.value)


def test_what_only_strict_files_must_have(tmp_path):
    for to, changes, words in [
        ("solution", {"steps": ["Step 1: a"]}, "without an answer in \\boxed{}"),
        (
            "comparison",
            {"explanation": "\n\nBoth"},
            "begins with '\\n\\nBoth'; expected",
        ),
        ("problem", {"answer": " "}, "field 'answer' is ' '; expected some text."),
    ]:
        with pytest.raises(ValueError) as error:
            parsed(tmp_path, to, changes, strict=True)
        assert words in str(error.value)
    (row,) = parsed(tmp_path, "solution", {"steps": ["Step 1: a"]})
    assert row.steps == ("Step 1: a The answer is \\boxed{4}.",)
    (row,) = parsed(tmp_path, "comparison", {"explanation": "\n\nBoth"})
    assert row.explanation == "Both\n"


def test_the_same_answer_in_another_notation_is_no_contradiction(tmp_path):
    steps = ["Step 1: \\boxed{\\frac{1}{2}}"]
    (row,) = parsed(tmp_path, "solution", {"steps": steps, "answer": "0.5"})
    assert row.answer == "0.5"


def test_a_verdict_of_one_letter_may_stand_in_a_step(tmp_path):
    bare = Templates(verdict="{side}")
    path = tmp_path / "rows.jsonl"
    row = {"id": "r"} | ROWS["comparison"] | {"a": "Step 1: Is A"}
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="field 'a' holds the verdict 'Is A'; expecte"):
        sources.read(path, "jsonl", "comparison", Templates(verdict="Is {side}"))
    (read,) = sources.read(path, "jsonl", "comparison", bare)
    assert read.a == "Step 1: Is A"


def test_problems_without_an_answer_are_named_unless_none_has_one(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [
        {"id": f"t{n}", "problem": f"p{n}", "answer": a} for n, a in enumerate("1 2")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    rejects = files.Rejects(collect=False, say=said.append)
    assert len(sources.read(path, "jsonl", "problem", TEMPLATES, rejects)) == 3
    assert said == [
        f"{path}:2 (id t1): this problem has no answer, as have 1 of 3 in all; "
        "whatever a model says to them counts as wrong."
    ]
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(ValueError, match="none of the 1 problems has an answer; expe"):
        sources.read(path, "jsonl", "problem", TEMPLATES)


def test_rated_solutions_are_read_like_other_rows(tmp_path):
    path = tmp_path / "rated.jsonl"
    good = {"id": "s", "problem": "q", "steps": ["Step 1: a"], "score": 3}
    path.write_text(json.dumps(good) + "\n")
    reader = kind.rows_of(srlm.Rating)
    assert reader(str(path), TEMPLATES) == [srlm.Rating("s", "q", ("Step 1: a",), 3)]
    for changes, words in [
        ({"steps": []}, r":1 \(id s\): field 'steps' is \[\]; expected one step"),
        ({"steps": ["a"]}, r":1 \(id s\): field 'steps': step 1 begins with 'a'"),
        ({"score": 10}, r":1 \(id s\): field 'score' is 10; expected 0 to 9."),
    ]:
        path.write_text(json.dumps(good | changes) + "\n")
        with pytest.raises(ValueError, match=words):
            reader(str(path), TEMPLATES)


def test_a_row_that_would_take_all_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LINE_BYTES", 1000)
    monkeypatch.setattr(files, "_TEXT_BYTES", 1000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"problem": "' + b"x" * 2000))
    with pytest.raises(ValueError, match=r"gz:1: the row has more than 1,000 bytes; e"):
        sources.read(path, "jsonl", "question", TEMPLATES)
    path = tmp_path / "bomb.csv"
    path.write_text("problem\n" + "x" * 2000)
    with pytest.raises(ValueError, match="csv: the file holds more than 1,000 bytes;"):
        sources.read(path, "jsonl", "question", TEMPLATES)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="rows.jsonl: this is a pipe; expected an ord"):
        sources.read(tmp_path / "rows.jsonl", "jsonl", "question", TEMPLATES)
    with pytest.raises(ValueError, match="/dev/zero: this is a device; expected an or"):
        sources.read("/dev/zero", "jsonl", "question", TEMPLATES)
