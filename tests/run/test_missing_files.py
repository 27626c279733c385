"""Files that a run would read: all that are not there are named at once."""

import pytest
import tiny_config

from stepjax import config
from stepjax.run.missing_files import missing_files


def test_files_that_are_missing_are_all_named(tmp_path):
    c = tiny_config.get_config()
    c.data.world, c.data.eft, c.data.ift = "", str(tmp_path), "no.jsonl"
    c.model.init = "hf:HuggingFaceTB/SmolLM2-135M"
    c.data.test = "tfds:gsm8k/test"  # is looked for later
    first, *others = missing_files(c)
    assert "no such folder; expected 'hf:' and a folder on this computer" in first
    assert "`hf download HuggingFaceTB/SmolLM2-135M --local-dir DIR`" in first
    assert others == [
        "data.ift='no.jsonl': no such file; expected a file of solutions (or set "
        "data.world).",
        "data.question_file is empty; expected a file of questions.",
    ]
    assert missing_files(tiny_config.get_config()) == []


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("", "teacher.file is empty; expected a file of a teacher's answers."),
        ("no.jsonl", "teacher.file='no.jsonl': no such file; expected a file of a"),
        ("gs://b/x", "teacher.file=gs://b/x: this is an address and no path; expec"),
    ],
)
def test_answers_of_a_teacher_that_are_not_there(file, words):
    c = tiny_config.get_config()
    c.teacher.backend, c.teacher.file = "replay", file
    assert missing_files(c) == []
    c.data.make_eft = True
    (said,) = missing_files(c)
    assert said.startswith(words)


def test_a_tokenizer_that_is_named_nowhere_is_asked_for_by_its_name():
    (said,) = [s for s in missing_files(config.default()) if "tokenizer" in s]
    assert said.startswith("tokenizer is empty; expected a folder or a tokenizer.json")


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("hf:", ""),  # `ranges` says what is wrong with it
        ("gguf:", ""),
        ("own_model:x", ""),
        (
            "hf:/no/such",
            "no such folder; expected 'hf:' and a folder on this computer. ",
        ),
        ("hf:../Qwen", "`hf download NAME --local-dir DIR` fetches a model of the hub"),
        (
            "hf:{}",
            "this is a file; expected 'hf:' and a folder on this computer. For a",
        ),
        ("gguf:no.gguf", "no such file; expected 'gguf:' and a file."),
    ],
)
def test_a_model_that_is_not_there(tmp_path, init, words):
    (tmp_path / "a.gguf").touch()
    c = tiny_config.get_config()
    c.model.init = init.format(tmp_path / "a.gguf")
    found = missing_files(c)
    assert len(found) == bool(words)
    for said in found:
        assert said.startswith(f"model.init={c.model.init!r}: ") and words in said
    c.data.make_eft, c.teacher.backend, c.teacher.model = True, "local", c.model.init
    c.model.init = "random"
    as_teacher = [said.replace("model.init", "teacher.model", 1) for said in found]
    assert missing_files(c) == as_teacher
    c.teacher.backend = "http"  # there it is a name that the server knows
    assert missing_files(c) == []
