"""Records of every type as TFDS datasets, and back."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from stepjax import records, srlm
from stepjax.initial_data.formats import tfds, tfds_builder
from stepjax.pairs import Pair
from stepjax.records import (
    Comparison,
    Preference,
    Problem,
    Question,
    Solution,
    StepLabels,
    Worked,
)

pytest.importorskip("tensorflow_datasets")

ROOT = pathlib.Path(records.__file__).parent.parent

# What files of text get wrong: line ends, U+2028, NUL, a byte order mark, nothing.
TEXT = "é \u2028 a\r\nb\n\tc\0 \ufeff𝔸 \\boxed{1}\0\0"
PAIR = Pair(
    id="q/1",
    problem_id="q",
    problem=TEXT,
    step=1,
    steps=[TEXT, ""],
    context_ids=[61, 14],
    chosen_ids=[3, 60, 2**31],
    rejected_ids=[3],
    chosen="Step 1: 5",
    rejected="",
    scores=[0.1, None, 2.0],
    counts=[3, 1, 1],
    candidates=[TEXT, "", "b"],
    best=2,
    worst=0,
    verdicts=[[0, 1, "B", TEXT], [1, 0, None, ""]],
    chosen_logp=-2.6744444444444446,
    rejected_logp=-1e-300,
    model="M1",
    iteration=1,
    seed_path=[25, 1, 4265288517, 2, 0],
)
ROWS = {
    Question: [Question("z", TEXT), Question("a", ""), Question("m", "1+1?")],
    Problem: [Problem("z", TEXT, "7"), Problem("", "", "")],
    Worked: [Worked("z", "p", TEXT, "7"), Worked("a", "p", "s")],
    Solution: [Solution("z", "p", (TEXT, "", "c"), "7"), Solution("a", "p", (), "")],
    Comparison: [
        Comparison("z", "p", (), "x", TEXT, "B", "why"),
        Comparison("a", "p", ("s",), "x", "y", "A"),
    ],
    StepLabels: [
        StepLabels("z", "p", ("s", TEXT, "u"), (0.1, None, 1 / 3)),
        StepLabels("a", "p", ("s",), (1,)),
        StepLabels("b", "p", ("s", "t"), (None, 5e-324)),
    ],
    Preference: [
        Preference("z", "p", ("s",), TEXT, "y"),
        Preference("a", "", (), "", ""),
    ],
    Pair: [PAIR],
    srlm.Rating: [srlm.Rating("z", "p", (TEXT,), 4), srlm.Rating("a", "p", (), 0)],
}


@pytest.mark.parametrize("record_type", ROWS, ids=[kind.__name__ for kind in ROWS])
def test_every_type_of_record_comes_back_equal_and_in_order(record_type, tmp_path):
    rows = ROWS[record_type]
    splits = {"train": rows, "turned": rows[::-1], "none": []}
    folder = tfds_builder.write(splits, "mine", tmp_path, record_type=record_type)
    assert folder == tmp_path / "mine/1.0.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    for split, expected in splits.items():
        place = f"tfds:mine/{split}?data_dir={tmp_path}"
        assert tfds.read(place, record_type) == expected
    both = tfds.read(f"tfds:mine/train[:1]?data_dir={tmp_path}", record_type)
    assert both == rows[:1]


def test_order_and_count_hold_for_many_rows_with_ids_that_sort_otherwise(tmp_path):
    rows = [Question(f"{n * 619 % 1009}", "x" * (n % 97)) for n in range(1009)]
    tfds_builder.write({"train": iter(rows)}, "many", tmp_path, record_type=Question)
    assert tfds.read(f"tfds:many/train?data_dir={tmp_path}", Question) == rows


def test_tfds_alone_reads_what_was_written(tmp_path):
    import tensorflow_datasets as library

    folder = tfds_builder.write(
        {"train": ROWS[StepLabels]}, "labels", tmp_path, record_type=StepLabels
    )
    made = library.builder_from_directory(str(folder))
    assert made.info.splits["train"].num_examples == 3
    assert made.info.file_format.value == "array_record"
    assert made.info.disable_shuffling and "StepLabels" in made.info.description
    row = library.data_source("labels", split="train", data_dir=tmp_path)[0]
    assert row["steps"][1] == TEXT.encode() and row["labels"].dtype == np.float64
    np.testing.assert_array_equal(row["labels"], [0.1, np.nan, 1 / 3])


@pytest.mark.parametrize("form", ["parquet", "tfrecord", "riegeli"])
def test_another_file_format_is_refused(form, tmp_path):
    options = dict(name="mine", data_dir=tmp_path, record_type=Question)
    words = f"file_format='{form}'; expected 'array_record'"
    made = tfds_builder.builder({"train": ROWS[Question]}, **options)
    with pytest.raises(ValueError, match=words):
        made.download_and_prepare(file_format=form)
    assert list(tmp_path.rglob("*.json")) == []
    made.download_and_prepare()
    place = f"tfds:mine/train?data_dir={tmp_path}"
    assert tfds.read(place, Question) == ROWS[Question]


def test_the_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    tfds_builder.write({"a": ROWS[Question]}, "mine", tmp_path, record_type=Question)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds.read("tfds:mine:1.0.0/a", Question) == ROWS[Question]


def test_rows_that_cannot_be_stored_are_named_and_leave_nothing(tmp_path):
    good = [Question("a", "x"), Question("b", "y")]
    bad = {
        "3: 'text'; expected a Question": "text",
        "3: .*expected a Question": Problem("c", "x", "1"),
        "3: field 'problem' is 3, .*not a string": Question("c", 3),
        "3: field 'problem' is .*surrogates not allowed": Question("c", "\ud800"),
        "3: id 'b' is at train:2 already": Question("b", "z"),
    }
    for words, row in bad.items():
        with pytest.raises(ValueError, match=f"train:{words}"):
            tfds_builder.write(
                {"ok": good, "train": [*good, row]}, "m", tmp_path, record_type=Question
            )
        assert list(tmp_path.iterdir()) == []
    wrong = Solution("s", "p", ["a list"], "1")
    words = r"train:1: field 'steps' is \['a list'\] and reads back as \('a list',\)"
    with pytest.raises(ValueError, match=words):
        tfds_builder.write({"train": [wrong]}, "m", tmp_path, record_type=Solution)
    for name, value, words in (
        ("step", 2**63, "field 'step' is 9223372036854775808, which cannot be stored"),
        ("step", 1.5, "field 'step' is 1.5 and reads back as 1"),
        (
            "chosen_logp",
            float("nan"),
            "field 'chosen_logp' is nan and reads back as None",
        ),
        ("verdicts", [[{1}]], "field 'verdicts' .*set is not JSON serializable"),
    ):
        row = dataclasses.replace(PAIR, **{name: value})
        with pytest.raises(ValueError, match=f"train:1: {words}"):
            tfds_builder.write({"train": [row]}, "m", tmp_path, record_type=Pair)
    assert list(tmp_path.iterdir()) == []


def test_names_that_tfds_cannot_hold_are_refused(tmp_path):
    for name, split, version, words in [
        ("My-Set", "train", "1.0.0", "name is 'My-Set'; expected small letters"),
        ("../up", "train", "1.0.0", "name is '../up'; expected small letters"),
        ("m", "all", "1.0.0", "split 'all' is 'all'; expected"),
        ("m", "a/b", "1.0.0", "split 'a/b' is 'a/b'; expected"),
        ("m", "train", "1.0", "version='1.0'; expected the form '1.0.0'"),
    ]:
        with pytest.raises(ValueError, match=words):
            tfds_builder.write(
                {split: []}, name, tmp_path, record_type=Question, version=version
            )
    with pytest.raises(ValueError, match="'gs://b/c'; expected a local folder"):
        tfds_builder.write({"train": []}, "m", "gs://b/c", record_type=Question)


def test_a_dataset_is_never_written_over_and_never_kept_in_silence(tmp_path):
    first, second = ROWS[Question], ROWS[Question][:1]
    place = f"tfds:mine/train?data_dir={tmp_path}"
    tfds_builder.write({"train": first}, "mine", tmp_path, record_type=Question)
    with pytest.raises(ValueError, match="mine/1.0.0 exists; expected a new dataset"):
        tfds_builder.write({"train": second}, "mine", tmp_path, record_type=Question)
    assert tfds.read(place, Question) == first
    for version in ("1.0.9", "1.0.10"):
        tfds_builder.write(
            {"train": second}, "mine", tmp_path, record_type=Question, version=version
        )
        second = second * 0
    assert tfds.read(place, Question) == []  # 1.0.10 is the newest
    older = place.replace("mine", "mine:1.0.9", 1)
    assert tfds.read(older, Question) == first[:1]


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path):
    def rows():
        yield from ROWS[Question]
        raise RuntimeError("the source went away")

    place = f"tfds:mine/train?data_dir={tmp_path}"
    with pytest.raises(RuntimeError, match="went away"):
        tfds_builder.write({"train": rows()}, "mine", tmp_path, record_type=Question)
    assert list(tmp_path.iterdir()) == []
    made = tfds_builder.builder(
        {"train": rows()}, "mine", tmp_path, record_type=Question
    )
    with pytest.raises(RuntimeError, match="went away"):
        made.download_and_prepare()
    assert list(tmp_path.rglob("*.json")) == []  # TFDS leaves empty folders
    with pytest.raises(ValueError, match=r"no such config or version .* one of \[\]"):
        tfds.read(place, Question)


def test_a_write_that_is_killed_leaves_nothing_that_looks_finished(tmp_path):
    script = f"""
import os, signal
from stepjax.initial_data.formats import tfds, tfds_builder
from stepjax.records import Question
def stop(*arguments):  # all is written, and not yet compared
    os.kill(os.getpid(), signal.SIGKILL)
tfds.read_address = stop
rows = [Question(str(n), "x") for n in range(50)]
tfds_builder.write({{"train": rows}}, "mine", {str(tmp_path)!r}, record_type=Question)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("dataset_info.json"))) == 1  # in a hidden folder
    place = f"tfds:mine/train?data_dir={tmp_path}"
    with pytest.raises(ValueError, match=r"no dataset 'mine' .*; there are \[\]"):
        tfds.read(place, Question)
    tfds_builder.write(
        {"train": ROWS[Question]}, "mine", tmp_path, record_type=Question
    )
    assert tfds.read(place, Question) == ROWS[Question]


def test_rows_that_the_library_loses_are_seen(tmp_path, monkeypatch):
    from array_record.python import array_record_module

    class Losing(array_record_module.ArrayRecordWriter):
        def write(self, row):
            if b"two" not in row:
                super().write(row)

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Losing)
    rows = [Question("a", "one"), Question("b", "two"), Question("c", "three")]
    with pytest.raises(ValueError, match="has 2 whole rows; expected 3"):
        tfds_builder.write({"train": rows}, "mine", tmp_path, record_type=Question)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path):
    rows = [Question(f"q{n}", f"{n * 'x'}") for n in range(300)]
    folder = tfds_builder.write({"train": rows}, "mine", tmp_path, record_type=Question)
    place = f"tfds:mine/train?data_dir={tmp_path}"
    (path,) = folder.glob("*array_record*")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-10], whole[: len(whole) // 2], b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="has 0 whole rows; expected 300"):
            tfds.read(place, Question)
    flipped = bytearray(whole)
    flipped[len(whole) // 16] ^= 255
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match=r"mine/train:\d+: cannot be read"):
        tfds.read(place, Question)
    path.unlink()
    with pytest.raises(ValueError, match="has 0 whole rows; expected 300"):
        tfds.stream(place, Question)
    path.write_bytes(whole)
    assert tfds.read(place, Question) == rows
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="TFDS cannot read .*mine/1.0.0"):
        tfds.read(place, Question)
