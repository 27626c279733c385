"""Any TFDS dataset as records: at once, and in a run."""

import json
import pathlib

import numpy as np
import pytest
from data_rows import numbered_solutions

from stepjax import config, records
from stepjax.initial_data.formats import files, sources, tfds, tfds_builder, tfds_files
from stepjax.records import (
    Comparison,
    Problem,
    Question,
    Solution,
)
from stepjax.run import data
from stepjax.settings import from_config
from stepjax.worlds import arithmetic

pytest.importorskip("tensorflow_datasets")

ROOT = pathlib.Path(records.__file__).parent.parent


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


# Datasets of others.


def test_fields_of_any_dataset_are_mapped(tmp_path):
    rows = [
        {
            "question": f"What is {n}+1? é\u2028",
            "answer": n + 1,
            "more": {"steps": [f"Step 1: \\boxed{{{n + 1}}}"], "note": "n"},
            "better": "AB"[n % 2],
            "marks": [1.0, float("nan")],
            "share": n + 0.5,
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
            "share": f.Scalar(np.float64),
            "grades": f.Sequence(f.ClassLabel(names=["A", "B"])),
        }

    foreign(tmp_path, rows, features)
    asked = tfds.read(
        f"tfds:math_words/train?problem=question&data_dir={tmp_path}", Question
    )
    assert asked == [
        Question(f"math_words-train-{n}", rows[n]["question"]) for n in range(4)
    ]
    path = f"?data_dir={tmp_path}&problem=question&answer=share"
    shares = tfds.read(f"tfds:math_words/train{path}", Problem)
    assert [row.answer for row in shares] == ["0.5", "1.5", "2.5", "3.5"]
    with pytest.raises(ValueError, match="train:1: field 'problem' is 0.5; expected"):
        tfds.read(f"tfds:math_words/train?data_dir={tmp_path}&problem=share", Question)
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
    rejects = files.Rejects()
    path = f"tfds:math_words/train?answer=better&data_dir={tmp_path}"
    place, plain = next(tfds.rows(path, rejects))
    assert place == ("tfds:math_words/train", 1, 1, "math_words-train-0")
    assert str(place) == "tfds:math_words/train:1" and rejects.read == 1
    assert plain == {
        "question": rows[0]["question"],
        "answer": "A",
        "more/steps": ["Step 1: \\boxed{1}"],
        "more/note": "n",
        "marks": [1.0, None],
        "share": 0.5,
        "grades": ["A"],
    }


def test_errors_say_what_is_there(tmp_path):
    def features(f):
        return {"question": f.Text(), "solution": f.Text(), "score": np.bool_}

    rows = [{"question": "q", "solution": "s", "score": True}]
    foreign(tmp_path, rows, features)
    for kind in ("main", "hard"):
        options = {"configs": ("main", "hard"), "config": kind, "version": "2.1.0"}
        foreign(tmp_path, rows, features, name="other", **options)
    one = [Question("q", "x")]
    tfds_builder.write({"test": one}, "mine", tmp_path, record_type=Question)
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
        "tfds:math_words/train?problem=score&": "train:1: field 'problem' is True; exp",
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
    place = f"tfds:math_words/train?x=nothing&data_dir={tmp_path}"
    with pytest.raises(ValueError, match="no field 'nothing' for x; its fields are"):
        next(tfds.rows(place, files.Rejects()))


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


def test_an_address_that_nothing_reads_is_refused_as_the_folder(monkeypatch):
    message = r"tfds:a/b: https://x/y is an address .*expected a folder, or object st"
    for option in ("?data_dir=https://x/y", ""):
        with pytest.raises(ValueError, match=message):
            tfds.read(f"tfds:a/b{option}", Question)
        monkeypatch.setenv("TFDS_DATA_DIR", "https://x/y")


@pytest.mark.parametrize(
    "text",
    ["tfds:", "tfds:a", "tfds:a/", "a/b", "tfds:/b", "tfds:hub:a/b", "tfds:a:1.0/b"],
)
def test_a_text_of_another_form_is_no_address(text):
    with pytest.raises(
        ValueError, match="is no address of TFDS; expected tfds:NAME/SPLIT"
    ):
        tfds_files.parse(text)


def test_an_address_is_taken_apart():
    address = tfds_files.parse("tfds:a/b:1.2.3/train[10%:]?id=x&data_dir=/d/e=f?g+h")
    assert address == ("a", "b", "1.2.3", "train[10%:]", {"id": "x"}, "/d/e=f?g+h")
    assert str(address) == "tfds:a/b:1.2.3/train[10%:]"
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
    rows = numbered_solutions(6)
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


def test_a_dataset_in_the_schema_of_a_public_data_set_needs_no_mapping(tmp_path):
    rows = [
        {"question": f"{n}+1?", "answer": f"It is <<{n}+1={n + 1}>>it.\n#### {n + 1}"}
        for n in range(12)
    ]
    rows[4]["answer"], rows[7]["question"] = "no answer", b"\xff"
    foreign(
        tmp_path, rows, lambda f: {"question": f.Text(), "answer": f.Text()}, "gsm8k"
    )
    place = f"tfds:gsm8k/train?data_dir={tmp_path}"
    texts = arithmetic.templates()
    rejects = files.Rejects()
    solved = sources.read(place, "gsm8k", "solution", texts, rejects)
    assert (rejects.read, rejects.kept, len(solved)) == (12, 10, 10)
    assert [(row["file"], row["line"]) for row in rejects.rows] == [
        ("tfds:gsm8k/train", 5),
        ("tfds:gsm8k/train", 8),
    ]
    assert "expected '#### N'" in rejects.rows[0]["reason"]
    assert (
        "field 'question' is b'\\xff', which is not UTF-8" in rejects.rows[1]["reason"]
    )
    assert solved[3] == Solution(
        "gsm8k-gsm8k-train-3",
        "3+1?",
        ("Step 1: It is it. The answer is \\boxed{4}.",),
        "4",
    )
    with pytest.raises(ValueError, match="tfds:gsm8k/train:5: .* expected .#### N"):
        sources.read(place, "gsm8k", "solution", texts)
    # Mapped to our own format, bad rows are listed as well.
    mapped = place.replace("?", "?problem=question&")
    rejects = files.Rejects()
    asked = sources.read(mapped, "jsonl", "problem", texts, rejects)
    assert asked[7] == Problem("gsm8k-train-8", "8+1?", "9")  # of "#### 9"
    assert [row["line"] for row in rejects.rows] == [8]
    with pytest.raises(
        ValueError, match="gsm8k/train: the dataset has no field 'steps'"
    ):
        sources.read(mapped, "jsonl", "solution", texts)
    tfds_builder.write({"none": []}, "m", tmp_path, record_type=Question)
    with pytest.raises(ValueError, match="m/none: no rows; expected"):
        sources.read(f"tfds:m/none?data_dir={tmp_path}", "jsonl", "question", texts)
