"""Records as TFDS datasets and back, any TFDS dataset as records, and streams of it."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stepjax import config, records, srlm
from stepjax.initial_data import tfds, tfds_builder, tfds_files
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
from stepjax.run import data
from stepjax.settings import from_config
from stepjax.worlds import arithmetic

pytest.importorskip("tensorflow_datasets")

# What files of text get wrong: line ends, U+2028, NUL, a byte order mark, nothing.
TEXT = "é \u2028 a\r\nb\n\tc\0 \ufeff𝔸 \\boxed{1}\0\0"
PAIR = Pair(
    id="q/1",
    problem_id="q",
    problem=TEXT,
    step=1,
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


def solutions(count, prefix="s"):
    return [
        Solution(f"{prefix}{n}", f"{prefix} {n}?", (f"Step 1: \\boxed{{{n}}}",), str(n))
        for n in range(count)
    ]


def foreign(folder, rows, features, name="math_words", **kinds):
    """Makes a dataset as anybody's own builder makes it, with TFDS alone."""
    import tensorflow_datasets as library

    class Foreign(library.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = library.core.Version(kinds.get("version", "1.0.0"))
        code_path = None
        BUILDER_CONFIGS = [
            library.core.BuilderConfig(name=config)
            for config in kinds.get("configs", ())
        ]

        def _info(self):
            return library.core.DatasetInfo(
                builder=self,
                features=library.features.FeaturesDict(features(library.features)),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(rows)

    Foreign.name = name
    chosen = {"config": kinds["config"]} if "config" in kinds else {}
    form = kinds.get("file_format", "array_record")
    made = Foreign(data_dir=folder, file_format=form, **chosen)
    made.download_and_prepare()


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
    rows = [Question(f"{n * 7919 % 5003}", "x" * (n % 97)) for n in range(5003)]
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
    with pytest.raises(ValueError, match=words):
        tfds_builder.builder({"train": []}, file_format=form, **options)
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
from stepjax.initial_data import tfds, tfds_builder
from stepjax.records import Question
def stop(*arguments):  # all is written, and not yet compared
    os.kill(os.getpid(), signal.SIGKILL)
tfds.read_place = stop
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


# Datasets of others.


def test_fields_of_any_dataset_are_mapped(tmp_path):
    rows = [
        {
            "question": f"What is {n}+1? é\u2028",
            "answer": n + 1,
            "more": {"steps": [f"Step 1: \\boxed{{{n + 1}}}"], "note": "n"},
            "better": "AB"[n % 2],
            "marks": [1.0, float("nan")],
            "grades": [["A"], []][n % 2],
        }
        for n in range(4)
    ]

    def features(f):
        return {
            "question": f.Text(),
            "answer": f.Scalar(np.int64),
            "more": {"steps": f.Sequence(f.Text()), "note": f.Text()},
            "better": f.ClassLabel(names=["A", "B"]),
            "marks": f.Sequence(np.float32),
            "grades": f.Sequence(f.ClassLabel(names=["A", "B"])),
        }

    foreign(tmp_path, rows, features)
    asked = tfds.read(
        f"tfds:math_words/train?problem=question&data_dir={tmp_path}", Question
    )
    assert asked == [
        Question(f"math_words-train-{n}", rows[n]["question"]) for n in range(4)
    ]
    path = f"?data_dir={tmp_path}&problem=question&steps=more/steps"
    solved = tfds.read(f"tfds:math_words:1.0.0/train[1:3]{path}", Solution)
    assert solved == [
        Solution(
            f"math_words-train[1:3]-{n - 1}", rows[n]["question"], steps, str(n + 1)
        )
        for n, steps in ((1, ("Step 1: \\boxed{2}",)), (2, ("Step 1: \\boxed{3}",)))
    ]
    judged = tfds.read(
        f"tfds:math_words/train{path}&a=question&b=more/note&verdict=better", Comparison
    )
    assert [row.verdict for row in judged] == ["A", "B", "A", "B"]
    assert (
        judged[0].explanation == ""
    )  # the default, where the dataset has no such field
    place, plain = next(
        tfds.rows(f"tfds:math_words/train?answer=better&data_dir={tmp_path}")
    )
    assert place == "tfds:math_words/train:1"
    assert plain == {
        "question": rows[0]["question"],
        "answer": "A",
        "more/steps": ["Step 1: \\boxed{1}"],
        "more/note": "n",
        "marks": [1.0, None],
        "grades": ["A"],
    }


def test_errors_say_what_is_there(tmp_path):
    def features(f):
        return {"question": f.Text(), "solution": f.Text(), "score": np.float32}

    rows = [{"question": "q", "solution": "s", "score": 0.5}]
    foreign(tmp_path, rows, features)
    for kind in ("main", "hard"):
        options = {"configs": ("main", "hard"), "config": kind, "version": "2.1.0"}
        foreign(tmp_path, rows, features, name="other", **options)
    tfds_builder.write({"test": ROWS[Question]}, "mine", tmp_path, record_type=Question)
    for place, words in {
        "tfds:gsm8k/train?": r"no dataset 'gsm8k' .* \['math_words', 'mine', 'other'\]",
        "tfds:math_words:3.0.0/train?": r"expected one of \['math_words:1.0.0'\]",
        "tfds:math_words/easy/train?": r"expected one of \['math_words:1.0.0'\]",
        "tfds:other/train?": r"one of \['other/hard:2.1.0', 'other/main:2.1.0'\]",
        "tfds:other/main:1.0.0/train?": r"one of \['other/hard:2.1.0', 'other/main",
        "tfds:math_words/test?": r"(?s)this split .*expected one of \['train'\]",
        "tfds:mine/train?": r"(?s)this split .*expected one of \['test'\]",
        "tfds:mine/test[:x]?": r"(?s)this split .*expected one of \['test'\]",
        "tfds:math_words/train?": r"no field 'problem' for 'problem' of Question; its "
        r"fields are \['question', 'score', 'solution'\].*\?problem=NAME",
        "tfds:math_words/train?problem=text&": r"no field 'text' for 'problem'",
        "tfds:math_words/train?question=problem&": r"question=problem names no field "
        r"of Question; expected one of \['id', 'problem'\]",
        "tfds:math_words/train?problem=score&": "train:1: field 'problem' is 0.5; exp",
    }.items():
        with pytest.raises(ValueError, match=words):
            tfds.read(f"{place}data_dir={tmp_path}", Question)
    place = f"tfds:other/main/train?problem=question&data_dir={tmp_path}"
    assert tfds.read(place, Question) == [Question("other-train-0", "q")]
    solved = "tfds:math_words/train?problem=question&steps=solution&answer=solution&"
    with pytest.raises(
        ValueError, match="train:1: field 'steps' is 's'; expected a list"
    ):
        tfds.read(f"{solved}data_dir={tmp_path}", Solution)
    with pytest.raises(ValueError, match=r"no dataset .*nowhere; there are \[\]"):
        tfds.read(f"tfds:mine/test?data_dir={tmp_path}/nowhere", Question)
    with pytest.raises(ValueError, match="no field 'nothing'; its fields are"):
        next(tfds.rows(f"tfds:math_words/train?x=nothing&data_dir={tmp_path}"))


def test_text_that_is_not_utf8_is_refused_at_its_row(tmp_path):
    rows = [{"id": "a", "problem": "x"}, {"id": "b", "problem": b"caf\xe9"}]
    foreign(tmp_path, rows, lambda f: {"id": f.Text(), "problem": f.Text()})
    place = f"tfds:math_words/train?data_dir={tmp_path}"
    words = r"math_words/train:2: field 'problem' is b'caf\\xe9', which is not UTF-8"
    with pytest.raises(ValueError, match=words):
        tfds.read(place, Question)
    ready = iter(tfds.stream(place, Question))
    assert next(ready) == Question("a", "x")
    with pytest.raises(ValueError, match=words):
        next(ready)


def test_an_id_twice_is_refused(tmp_path):
    rows = [{"id": "a", "problem": "x"}, {"id": "a", "problem": "y"}]
    foreign(tmp_path, rows, lambda f: {"id": f.Text(), "problem": f.Text()})
    with pytest.raises(
        ValueError, match="train:2: id 'a' is at tfds:math_words/train:1 already"
    ):
        tfds.read(f"tfds:math_words/train?data_dir={tmp_path}", Question)


def test_a_dataset_in_parquet_is_refused(tmp_path):
    rows = [{"problem": "x"}]
    foreign(tmp_path, rows, lambda f: {"problem": f.Text()}, file_format="parquet")
    with pytest.raises(
        ValueError, match="'parquet'.* expected a whole dataset in the for"
    ):
        tfds.read(f"tfds:math_words/train?data_dir={tmp_path}", Question)


@pytest.mark.parametrize(
    "text",
    ["tfds:", "tfds:a", "tfds:a/", "a/b", "tfds:/b", "tfds:hub:a/b", "tfds:a:1.0/b"],
)
def test_a_text_of_another_form_is_no_place(text):
    with pytest.raises(
        ValueError, match="is no place of TFDS; expected tfds:NAME/SPLIT"
    ):
        tfds_files.parse(text)


def test_a_place_is_taken_apart():
    place = tfds_files.parse("tfds:a/b:1.2.3/train[10%:]?id=x&data_dir=/d/e=f?g+h")
    assert place == ("a", "b", "1.2.3", "train[10%:]", {"id": "x"}, "/d/e=f?g+h")
    assert str(place) == "tfds:a/b:1.2.3/train[10%:]"
    assert tfds_files.parse("tfds:a-b.c/test+train")[:4] == (
        "a-b.c",
        "",
        "",
        "test+train",
    )
    for text in (
        "tfds:a/b?problem",
        "tfds:a/b?=x",
        "tfds:a/b?p=x&p=y",
        "tfds:a/b?p=x&",
    ):
        with pytest.raises(ValueError, match="expected FIELD=NAME, once per field"):
            tfds_files.parse(text)


def test_a_run_takes_its_data_from_tfds(tmp_path, monkeypatch):
    texts = arithmetic.templates()
    rows = solutions(6)
    eft = [
        Comparison(f"e{n}", f"e {n}?", (), "Step 1: a", "Step 1: b", "AB"[n % 2], "why")
        for n in range(4)
    ]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tfds_builder.write({"train": rows}, "ift", tmp_path, record_type=Solution)
    tfds_builder.write({"train": eft}, "eft", tmp_path, record_type=Comparison)
    asked = [{"question": f"q {n}?", "gold": n} for n in range(9)]
    foreign(tmp_path, asked, lambda f: {"question": f.Text(), "gold": np.int64})
    c = config.default()
    c.iterations, c.data.questions, c.data.heldout_count = 2, (4, 2), 1
    c.data.ift, c.data.eft = "tfds:ift/train", "tfds:eft/train"
    c.data.question_file = "tfds:math_words/train[3:]?problem=question"
    c.data.test = "tfds:math_words/train[:3]?problem=question&answer=gold"
    settings = from_config(config.from_dict(json.loads(json.dumps(config.to_dict(c)))))
    counts = data.make_data(settings, texts, tmp_path / "data")
    expected = {"ift": 6, "eft": 3, "heldout": 1, "test": 3}
    assert counts == expected | {"questions_1": 4, "questions_2": 2}
    assert records.read_jsonl(tmp_path / "data/ift.jsonl", Solution) == rows
    tests = records.read_jsonl(tmp_path / "data/test.jsonl", Problem)
    assert tests[2] == Problem("math_words-train[:3]-2", "q 2?", "2")
    found = records.read_jsonl(tmp_path / "data/questions_2.jsonl", Question)
    assert [row.problem for row in found] == ["q 7?", "q 8?"]
    c.data.ift_format = "gsm8k"
    with pytest.raises(
        ValueError, match="data.ift_format='gsm8k'; expected 'jsonl' for"
    ):
        data.make_data(from_config(c), texts, tmp_path / "data")


# Streams.

ROOT = pathlib.Path(records.__file__).parent.parent


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Place of 23 solutions s0, s1, ..."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds_builder.write({"train": solutions(23)}, "mine", folder, record_type=Solution)
    return f"tfds:mine/train?data_dir={folder}"


def ids(stream):
    return [row.id for row in stream]


def test_a_stream_without_a_seed_has_the_order_of_the_dataset(many):
    rows = list(tfds.stream(many, Solution, epochs=2))
    assert rows == 2 * solutions(23)
    batches = list(tfds.stream(many, Solution, epochs=2, batch_size=8))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 6]
    assert [row for batch in batches for row in batch] == rows


def test_a_seed_gives_every_row_once_per_epoch_in_an_order_of_its_own(many):
    whole = {f"s{n}" for n in range(23)}
    orders = [
        ids(tfds.stream(many, Solution, seed=seed, epochs=2)) for seed in (3, 3, 4)
    ]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        first, second = order[:23], order[23:]
        assert set(first) == set(second) == whole and first != second
        assert first != [f"s{n}" for n in range(23)]


@pytest.mark.parametrize("hosts", [2, 3, 50])
def test_hosts_in_turns_give_the_rows_of_one_host(many, hosts):
    one = ids(tfds.stream(many, Solution, seed=5, epochs=3))
    shares = [
        ids(tfds.stream(many, Solution, seed=5, epochs=3, host=host, hosts=hosts))
        for host in range(hosts)
    ]
    assert [shares[n % hosts][n // hosts] for n in range(69)] == one
    assert sum(map(len, shares)) == 69
    assert {len(share) for share in shares} <= {69 // hosts, 69 // hosts + 1}


def test_an_iterator_goes_on_after_any_row(many):
    options = dict(seed=1, epochs=2, batch_size=4, host=1, hosts=2)
    whole = list(tfds.stream(many, Solution, **options))
    assert len(whole) == 6
    for stop in range(7):
        iterator = iter(tfds.stream(many, Solution, **options))
        done = [next(iterator) for _ in range(stop)]
        state = json.loads(json.dumps(iterator.get_state()))
        again = iter(tfds.stream(many, Solution, **options))
        again.set_state(state)
        assert done + list(again) == whole


def test_numbers_out_of_range_are_refused(many, tmp_path):
    for options in (
        {"epochs": 0},
        {"host": 2, "hosts": 2},
        {"host": -1},
        {"hosts": 0},
        {"batch_size": -1},
    ):
        with pytest.raises(ValueError, match="expected at least 1 epoch"):
            tfds.stream(many, Solution, **options)
    with pytest.raises(ValueError, match="[Ss]eed"):
        tfds.stream(many, Solution, seed=-1)
    tfds_builder.write({"none": []}, "empty", tmp_path, record_type=Question)
    with pytest.raises(ValueError, match="empty/none: no rows; expected at least one"):
        tfds.stream(f"tfds:empty/none?data_dir={tmp_path}", Question)


def start(place, path, options, pause):
    program = ROOT / "tests/tfds_program.py"
    command = [sys.executable, program, place, path, json.dumps(options), str(pause)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def seen(path):
    if not path.exists():
        return []
    return [name for batch in json.loads(path.read_text())["seen"] for name in batch]


@pytest.mark.parametrize("hosts", [1, 2])
def test_processes_killed_in_the_middle_of_an_epoch_miss_and_repeat_nothing(
    many, hosts, tmp_path
):
    shared = dict(seed=9, epochs=2, hosts=hosts, batch_size=2)
    one = ids(tfds.stream(many, Solution, seed=9, epochs=2))
    paths = [tmp_path / f"host{host}.json" for host in range(hosts)]
    options = [shared | {"host": host} for host in range(hosts)]
    pairs = list(zip(paths, options, strict=True))
    running = [start(many, path, these, 0.3) for path, these in pairs]
    try:
        deadline = time.monotonic() + 60
        while any(len(seen(path)) < 4 for path in paths):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.wait()
    before = [seen(path) for path in paths]
    assert all(4 <= len(rows) < 23 // hosts for rows in before)  # in the first epoch
    running = [start(many, path, these, 0) for path, these in pairs]
    for process in running:
        printed, noise = process.communicate(timeout=120)
        assert process.returncode == 0, noise
        assert printed == "[]\n"  # neither TensorFlow nor torch
        assert noise == ""
    shares = [seen(path) for path in paths]
    assert all(
        now[: len(then)] == then for now, then in zip(shares, before, strict=True)
    )
    assert [shares[n % hosts][n // hosts] for n in range(46)] == one
    assert sum(map(len, shares)) == 46


# What is imported, printed and asked for.


def test_nothing_is_printed_nothing_asked_of_the_network_and_no_tensorflow(tmp_path):
    script = f"""
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"the network was asked: {{arguments}}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from stepjax.initial_data import tfds, tfds_builder
from stepjax.records import Question
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
rows = [Question(str(n), "x") for n in range(50)]
splits = {{"train": rows, "none": []}}
tfds_builder.write(splits, "mine", {str(tmp_path)!r}, record_type=Question)
place = "tfds:mine/train?data_dir={tmp_path}"
assert tfds.read(place, Question) == rows == list(tfds.stream(place, Question))
assert tfds.read(place.replace("train", "none"), Question) == []
try:
    tfds.read(place.replace("mine", "gsm8k"), Question)
except ValueError as error:
    assert "no dataset 'gsm8k'" in str(error)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"tensorflow", "torch"}}, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "array_record", "grain"])
def test_a_missing_library_is_named_with_the_remedy(missing, many, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"{missing}.*pip install -e \"\.\[data\]\""):
        tfds.stream(many, Solution)


def test_moved_datasets_are_read_where_they_are(many, tmp_path):
    folder = pathlib.Path(many.partition("data_dir=")[2])
    shutil.copytree(folder / "mine", tmp_path / "renamed dir/mine")
    place = f"tfds:mine/train?data_dir={tmp_path}/renamed dir"
    assert tfds.read(place, Solution) == solutions(23)
