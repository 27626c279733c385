"""Bad input is refused with a clear error, before anything is compiled."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

import stepjax
from stepjax import config, records
from stepjax.run.run import Run
from stepjax.worlds import arithmetic

STEPS = ["Step 1: 8*7+4=0", "Step 2: 0*4+2=2; \\boxed{2}"]
ROWS = {
    "ift": [{"id": "i1", "problem": "8*7+4*4+2", "steps": STEPS, "answer": "2"}],
    "eft": [
        {
            "id": f"e{i}",
            "problem": f"{i}*7+4*4+2",
            "steps": [],
            "a": f"Step 1: {i}*7+4={(i * 7 + 4) % 10}",
            "b": f"Step 1: {i}*7+4={(i * 7 + 5) % 10}",
            "verdict": "A",
        }
        for i in range(3)
    ],
    "questions": [{"id": f"q{i}", "problem": f"{i}*9+1*4+2"} for i in range(4)],
    "test": [{"id": "t1", "problem": "3*3+3*3+3", "answer": "9"}],
}


pytestmark = pytest.mark.usefixtures("no_compilation")


def test_the_listener_notices_a_compilation(no_compilation):
    jax.jit(lambda x: x * 3 + 41)(1.0)
    assert no_compilation
    no_compilation.clear()


@pytest.fixture
def settings(tokenizer_folder, tmp_path):
    """Settings of a run over small files, all valid."""
    for name, rows in ROWS.items():
        write(tmp_path, name, rows)
    c = config.default()
    c.iterations = 1
    c.tokenizer = str(tokenizer_folder)
    c.prompts.solve, c.prompts.judge = arithmetic.SOLVE, arithmetic.JUDGE
    c.data.questions = (4,)
    c.data.heldout_count = 1
    c.data.ift = str(tmp_path / "ift.jsonl")
    c.data.eft = str(tmp_path / "eft.jsonl")
    c.data.question_file = str(tmp_path / "questions.jsonl")
    c.data.test = str(tmp_path / "test.jsonl")
    c.search.max_step_tokens = 16
    c.search.context_tokens = 64
    c.judge.context_tokens = 64
    return c


def write(folder, name, rows):
    text = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def refused(c, tmp_path, *words):
    """Asserts that a run is refused with these words and leaves no folder behind."""
    with pytest.raises(ValueError) as caught:
        Run(c, tmp_path / "run")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_valid_settings_pass(settings, tmp_path):
    run = Run(settings, tmp_path / "run")
    assert len(run.dir.read("questions_1", records.Question)) == 4


@pytest.mark.parametrize("name", ["ift", "eft", "questions", "test"])
def test_malformed_rows_are_named_by_line(settings, tmp_path, name):
    write(tmp_path, name, [*ROWS[name], '{"id": "x"}\n'])
    place = f"{name}.jsonl:{len(ROWS[name]) + 1} (id x): "
    refused(settings, tmp_path, place, "missing field 'problem'", "expected")


def test_a_tie_in_the_eft_rows_is_refused_by_name(settings, tmp_path):
    rows = [row | {"verdict": "C"} for row in ROWS["eft"]]
    write(tmp_path, "eft", rows)
    place = f"eft.jsonl: EFT row {rows[0]['id']!r} has the verdict 'C'"
    refused(settings, tmp_path, place, "expected 'A' or 'B'", "judge.tie=True")
    settings.judge.tie = True
    Run(settings, tmp_path / "run")


@pytest.mark.parametrize("key", ["ift", "eft", "question_file", "test"])
def test_missing_files(settings, tmp_path, key):
    settings.data[key] = str(tmp_path / "nowhere.jsonl")
    refused(settings, tmp_path, "nowhere.jsonl", "cannot be read")
    settings.data[key] = ""
    refused(settings, tmp_path, f"data.{key} is empty")


def test_a_marker_that_the_template_does_not_produce(settings, tmp_path):
    row = ROWS["ift"][0] | {"steps": ["Stage 1: 8*7+4=0; \\boxed{0}"]}
    write(tmp_path, "ift", [row])
    refused(settings, tmp_path, "ift.jsonl:1 (id i1): ", "Stage 1", "Step 1: ")


def test_budgets_smaller_than_a_prompt(settings, tmp_path):
    settings.search.context_tokens = 20
    refused(settings, tmp_path, "'q0'", "search.context_tokens=20", "Raise")
    settings.search.context_tokens, settings.judge.context_tokens = 64, 5
    refused(settings, tmp_path, "judge.context_tokens=5", "Raise")
    settings.judge.context_tokens, settings.train.row_length = 64, 12
    refused(settings, tmp_path, "train.row_length=12", "Raise train.row_length")


@pytest.mark.parametrize(
    ("name", "shown"), [("ift", "ift"), ("questions", "questions_1"), ("test", "test")]
)
def test_characters_that_the_tokenizer_does_not_know(settings, tmp_path, name, shown):
    rows = [row | {"problem": f"{row['problem']}\u00e9"} for row in ROWS[name]]
    write(tmp_path, name, rows)
    words = f"{shown}: {len(rows)} of {len(rows)} problems hold characters that the"
    refused(
        settings, tmp_path, words, "know: '\u00e9'. The first", "; expected problems"
    )


def test_a_question_with_an_unknown_character_is_named(settings, tmp_path, capsys):
    rows = [*ROWS["questions"][:3], {"id": "odd", "problem": "3\u00d79+1*4+2"}]
    write(tmp_path, "questions", rows)
    Run(settings, tmp_path / "run")
    said = " questions_1: 1 of 4 problems hold characters that the tokenizer does not "
    (line,) = (x for x in capsys.readouterr().err.splitlines() if said in x)
    assert "know: '\u00d7'. The first of these problems is 'odd'." in line


def test_a_problem_in_two_splits_and_too_few_questions(settings, tmp_path):
    write(tmp_path, "test", [ROWS["ift"][0] | {"id": "t"}])
    settings.data.strict = True
    refused(settings, tmp_path, "test.jsonl:1 (id t): unknown field 'steps'")
    settings.data.strict = False
    leak = {"id": "t", "problem": ROWS["ift"][0]["problem"], "answer": "2"}
    write(tmp_path, "test", [leak])
    refused(settings, tmp_path, "M1 training", "test", "one split")
    write(tmp_path, "test", ROWS["test"])
    settings.data.questions = (5,)
    refused(settings, tmp_path, "has 4 questions", "at least 5")


# One of each place that refuses: the settings, the data, the model, the devices.
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("search.on_tie", "forward", "('back', 'append')"),
        ("data.ift_format", "csv", "('jsonl', 'gsm8k', 'word_problems', 'math'"),
        ("model.dtype", "int8", "one of ('float32', 'bfloat16')"),
        ("mesh.tensor", 3, "8 devices"),
    ],
)
def test_unknown_choices(settings, tmp_path, key, value, words):
    settings.update_from_flattened_dict({key: value})
    refused(settings, tmp_path, repr(value), words)


def test_the_command_line(tmp_path):
    arguments, words = ["--config.serch.width=4"], "Did you mean"
    quickstart = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
    command = [sys.executable, "-m", "stepjax", "run", f"--config={quickstart}"]
    command += [f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    first, error, *_ = done.stderr.splitlines()
    assert first == " ".join([f"stepjax {stepjax.__version__}:", *command[3:]])
    assert error.startswith("stepjax: ") and words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_config_file():
    c = config.default()
    with pytest.raises(AttributeError, match="width"):
        c.search.widht = 4
    with pytest.raises(TypeError):
        c.search.width = "four"
    with pytest.raises(TypeError, match="leraning_rate"):
        config.optimizer(leraning_rate=1.0)
