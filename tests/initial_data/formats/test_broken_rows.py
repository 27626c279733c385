"""Twelve kinds of broken row, each hidden among 1,000 rows of every format."""

import functools
import json
import pathlib
import tempfile

import pytest

from stepjax.initial_data.formats import files, sources
from stepjax.prompts import Templates

TEMPLATES = Templates()
GROUP = {
    "completions": [{"text": "Add.", "rating": 1}, {"text": "Stop.", "rating": -1}],
    "chosen_completion": 0,
}


def prm800k(n):
    steps = {"steps": [json.loads(json.dumps(GROUP))]}
    return {"question": {"problem": f"{n} + 1?"}, "label": steps}


# (format, kind of record) → makes good row number n.
GOOD = {
    ("gsm8k", "worked"): lambda n: {"question": f"{n}?", "answer": f"Add.\n#### {n}"},
    ("math", "worked"): lambda n: {"problem": f"{n}?", "solution": f"\\boxed{{{n}}}"},
    ("numina", "worked"): lambda n: {
        "source": "olympiads",
        "problem": f"{n}?",
        "solution": "A proof.",
        "messages": [],
    },
    ("benchmark", "problem"): lambda n: {"id": f"{n}", "problem": "1?", "answer": "1"},
    ("word_problems", "solution"): lambda n: {
        "id": f"{n}",
        "problem": f"{n} and 1?",
        "equation": f"+ {n} 1",
        "answer": f"{n + 1}",
    },
    ("prm800k", "labels"): prm800k,
    ("prm800k", "preference"): prm800k,
    ("processbench", "labels"): lambda n: {
        "id": f"{n}",
        "problem": f"{n}?",
        "steps": ["a", "b"],
        "label": 1,
    },
    ("math_shepherd", "labels"): lambda n: {
        "input": f"{n}? Step 1: a ки\nStep 2: b ки",
        "label": f"{n}? Step 1: a +\nStep 2: b -",
        "task": "GSM8K",
    },
    ("stepwise", "labels"): lambda n: {
        "prompt": f"{n}?",
        "completions": ["a", "b"],
        "labels": [True, False],
    },
    ("step_dpo", "preference"): lambda n: {
        "prompt": f"{n}?",
        "initial_reason_steps": "Let's think step by step.\nStep 1: a\nStep 2:",
        "chosen": " b",
        "rejected": " c",
    },
    ("trl", "preference"): lambda n: {
        "prompt": f"{n}?",
        "chosen": "a",
        "rejected": "b",
    },
    ("jsonl", "solution"): lambda n: {
        "id": f"{n}",
        "problem": f"{n}?",
        "steps": ["Step 1: a"],
        "answer": "1",
    },
    ("jsonl", "labels"): lambda n: {
        "id": f"{n}",
        "problem": f"{n}?",
        "steps": ["Step 1: a"],
        "labels": [0.5],
    },
}


def changed(row, **changes):
    return json.dumps(row | changes).encode()


def wrong_type(row):
    """The first field that every format checks, as a number."""
    name = next(name for name in row if name not in ("source", "id"))
    return changed(row, **{name: 7})


def missing(row):
    name = next(name for name in row if name not in ("source", "id"))
    return json.dumps({key: row[key] for key in row if key != name}).encode()


def null(row):
    name = next(name for name in row if name not in ("source", "id"))
    return changed(row, **{name: None})


# Kind → makes the line of the broken row from a good row.
BROKEN = {
    "cut off": lambda row: json.dumps(row).encode()[:-3],
    "not UTF-8": lambda row: (
        json.dumps(row).encode().replace(b"?", b"\xe9?", 1)
        if b"?" in json.dumps(row).encode()
        else b"\xff"
    ),
    "no object": lambda row: json.dumps([row]).encode(),
    "NaN": lambda row: json.dumps(row | {"more": float("nan")}).encode(),
    "a name twice": lambda row: (
        b'{"task": 1, ' + b'"task": 2, ' + json.dumps(row).encode()[1:]
    ),
    "half a surrogate pair": lambda row: json.dumps(row | {"more": "\ud800"}).encode(),
    "two on a line": lambda row: json.dumps(row).encode() * 2,
    "missing field": missing,
    "wrong type": wrong_type,
    "null": null,
}

# Format, kind of record → what the twelfth broken row, of this format only, changes.
OWN = {
    ("gsm8k", "worked"): {"answer": "It is 1."},
    ("math", "worked"): {"solution": ""},
    ("numina", "worked"): {"answer": [7]},
    ("benchmark", "problem"): {"id": "3"},  # is there already
    ("word_problems", "solution"): {"answer": "3.1"},
    ("prm800k", "labels"): {"label": {"steps": [GROUP | {"chosen_completion": 2}]}},
    ("prm800k", "preference"): {"question": {"problem": ""}},
    ("processbench", "labels"): {"label": 2},
    ("math_shepherd", "labels"): {"label": "617? Step 1: a +\nStep 2: b"},
    ("stepwise", "labels"): {"labels": [True]},
    ("step_dpo", "preference"): {"rejected": "b "},  # the same as chosen
    ("trl", "preference"): {"chosen": "Step 1: "},
    ("jsonl", "solution"): {"steps": ["Step 2: a"]},
    ("jsonl", "labels"): {"labels": [1.5]},
}


@functools.cache
def good_lines(form, to):
    """1,000 good rows, as lines."""
    return [json.dumps(GOOD[form, to](n)).encode() for n in range(1000)]


@functools.cache
def all_good(form, to):
    """The records of 1,000 good rows, and how many each row makes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x.jsonl")
        path.write_bytes(b"\n".join(good_lines(form, to)))
        whole = sources.read(path, form, to, TEMPLATES)
    assert len(whole) in (1000, 2000)
    return whole, len(whole) // 1000


@pytest.mark.parametrize("kind", [*BROKEN, "of this format"])
@pytest.mark.parametrize(("form", "to"), GOOD)
def test_a_broken_row_is_found_at_its_line(tmp_path, form, to, kind):
    lines, row = list(good_lines(form, to)), GOOD[form, to](617)
    own = OWN[form, to]
    shown = (row | own).get("id") if kind == "of this format" else row.get("id")
    lines[617] = BROKEN[kind](row) if kind in BROKEN else changed(row, **own)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError) as caught:
        sources.read(path, form, to, TEMPLATES)
    place, _, reason = str(caught.value).partition(": ")
    # An object that could be read is named by its id, too.
    assert place in (f"{path}:618", f"{path}:618 (id {shown})")
    assert "expected" in reason
    rejects = files.Rejects()
    kept = sources.read(path, form, to, TEMPLATES, rejects)
    (row,) = rejects.rows
    assert reason == row["reason"]
    assert (row["file"], row["line"], rejects.read, rejects.kept) == (
        str(path),
        618,
        1000,
        999,
    )
    whole, per_row = all_good(form, to)
    assert kept == whole[: 617 * per_row] + whole[618 * per_row :]


def test_rows_that_are_all_bad_stop_also_with_rejects(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"problem": "1?"}\n' * 3)
    rejects = files.Rejects()
    words = r"x\.jsonl: all of the 3 rows are bad, the first because: missing field"
    with pytest.raises(ValueError, match=words):
        sources.read(tmp_path / "x.jsonl", "gsm8k", "worked", TEMPLATES, rejects)
    assert len(rejects.rows) == 3 and rejects.reasons == {"missing field 'question'": 3}


def test_one_bad_row_and_no_other_names_the_format(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"problem": "1?"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1: missing field 'question'"):
        sources.read(tmp_path / "x.jsonl", "gsm8k", "worked", TEMPLATES)
