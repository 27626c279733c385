"""The command line, run in this process: what it refuses, and what it does."""

import importlib
import json

import fsspec
import jax
import numpy as np
import pytest
import transformers
from absl import flags
from runs import CONFIG, command, contents, copy_run, make_mesh
from tiny_config import get_config

import stepjax
from stepjax import main, records, sft
from stepjax.cli import config_files, config_table, help
from stepjax.lm import checkpoint, export, files, hf_config, sharding, train, weights
from stepjax.prompts import Templates
from stepjax.run import redo
from stepjax.run.run import Run

TINY = f"--config={CONFIG}"


def test_the_fixture_sees_a_compilation(no_compilation):
    for _ in range(2):
        jax.clear_caches()
        jax.jit(lambda x: x * 3 + 41)(np.float32(0.5))
    assert len(no_compilation) == 2
    no_compilation.clear()


def refused(capsys, status, arguments, *words):
    """Asserts exit status and words on standard error; returns what it says."""
    capsys.readouterr()
    assert command(*arguments) == status
    said = capsys.readouterr()
    for word in words:
        assert word in said.err
    assert "Traceback" not in said.err or "config file" in said.err
    assert not said.out
    return said.err


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["usage: stepjax COMMAND"]),
        (["train"], ["usage: stepjax COMMAND", "unknown command 'train'", "export"]),
        (["--workdir={}"], ["unknown command '--workdir="]),
        (["run", TINY], ["--workdir is missing; expected the run directory"]),
        (["run", "--workdir={}"], ["there is no such folder; exp", "needs --config"]),
        (
            ["run", "--workdir={}", "--config.search.width=4"],
            ["--config.search.width=4 changes one setting, and nothing gives the"],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.sft.phases.0.steps=4"],
            ["sft.phases is a list; expected", "--config.sft.phases[0].steps=100"],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.sft.phases[7].steps=4"],
            ["the number in [ ] is too large for the list of a setting"],
        ),
        (["run", f"{TINY}:x", "--workdir={}"], [":x: get_config() of this file takes"]),
        (
            ["run", TINY, "--workdir={}", "--mode=judge", "--out=x"],
            ["--mode, --out: `stepjax run` does not read this; expected only --config"],
        ),
        (
            ["run", TINY, "--workdir={}", "--redo=serch"],
            ["--redo=serch; expected one of prepare, policy, rollouts, prm, mcts, eft"],
        ),
        (
            ["eval", TINY, "--workdir={}", "--mode=unseen", "--benchmark=x.jsonl"],
            ["--mode=unseen does not read --benchmark; expected --mode=greedy, search"],
        ),
        (
            ["eval", TINY, "--workdir={}", "--benchmark=x.jsonl"],
            ["--benchmark=x.jsonl: no such file; expected 'test', files"],
        ),
        (
            ["eval", TINY, "--workdir={}", "--mode=training", "--model=M0"],
            ["--mode=training: M0 was not trained on pairs; expected a model that was"],
        ),
        (["run", TINY, "--workdir={}", "--hosts=0"], ["--hosts=0: "]),
        (["plan", TINY], ["--topology is missing; expected a TPU slice"]),
        (["run", TINY, "--workdir={}", "extra"], ["['extra']", "begin with --"]),
        (["run", TINY, "--workdir={}", "--widht=4"], ["flag 'widht'"]),
        (
            ["run", "--config=nowhere.py", "--workdir={}"],
            ["--config=nowhere.py: no such file (looked in ", "quickstart, qwen2_5"],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.serch.width=4"],
            ["unknown setting: 'serch'", 'Did you mean "search" instead of "serch"?'],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.search.widht=4"],
            ["unknown setting: 'widht'", 'Did you mean "width" instead of "widht"?'],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.search.width=four"],
            ["search.width='four'; expected a whole number from 2 to 1,000."],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.dpo.beta=abc"],
            ["stepjax: dpo.beta='abc'; expected a number above 0 and at most 1,000.\n"],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.dpo.batch_size", "2.5"],
            ["dpo.batch_size='2.5'; expected a whole number from 1 to 1,000,000.\n"],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.data.make_eft=maybe"],
            ["stepjax: data.make_eft='maybe'; expected True or False.\n"],
        ),
        (
            ["run", TINY, "--workdir={}", "--config.sft.phases[1].steps=x"],
            ["sft.phases[1].steps='x'; expected a whole number from 0 to 100,000,000."],
        ),
        (["ablate", TINY, "--workdir={}", "--seeds=1,x"], ["--seeds=1,x; expected "]),
        (
            ["eval", TINY, "--workdir={}", "--mode=all_of_it"],
            ["greedy|unseen|judge|search|training|all"],
        ),
    ],
)
def test_wrong_arguments(tmp_path, capsys, no_compilation, arguments, words):
    arguments = [text.replace("{}", str(tmp_path / "run")) for text in arguments]
    refused(capsys, 2, arguments, *words)
    assert not (tmp_path / "run").exists()


def test_help_is_no_error(capsys):
    assert command("help") == command("--help") == 0
    said = capsys.readouterr()
    assert said.out.count("usage: stepjax COMMAND") == 2 and not said.err
    for name in main.COMMANDS:
        assert f"\n  {name:10}" in said.out


@pytest.mark.parametrize("name", [n for n in main.COMMANDS if n != "init-data"])
def test_help_of_a_command_names_its_options(capsys, name):
    assert command(name, "--help") == command("help", name) == 0
    said = capsys.readouterr()
    assert not said.err and said.out.count(f"usage: stepjax {name}") == 2
    assert max(map(len, said.out.splitlines())) <= 80
    for option in help.OPTIONS:
        expected = option in help.COMMANDS[name].options
        value = help.OPTIONS[option][0]
        line = f"  --{option}" if value is None else f"  --{option}={value}"
        assert (line in said.out.splitlines()) == expected


def test_every_option_is_a_flag_and_is_explained():
    defined = flags.FLAGS.flags_by_module_dict()["stepjax.cli.options"]
    assert {flag.name for flag in defined} == set(help.OPTIONS)
    read = {option for c in help.COMMANDS.values() for option in c.options}
    assert read == set(help.OPTIONS)
    assert ", ".join(redo.DEPENDS) in help.OPTIONS["redo"][1]


def test_version(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"stepjax {stepjax.__version__}\n"


def test_config_lists_every_setting_and_marks_those_of_the_file(capsys):
    assert command("config", TINY, "--config.search.width=7") == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("* search.width = 7  [2 to 1,000; default 6]")
    assert lines[at + 1] == "      candidates per step, w (paper)"
    assert "  judge.mode = 'generate'  [one of ('generate', 'logprob')]" in lines
    assert "* sft.phases[1].steps = 60  [0 to 100,000,000]" in lines
    name = "* sft.phases[0].optimizer.learning_rate = 0.01  [above 0 and at most 10; "
    name += "default 1e-06]"
    assert lines[lines.index(name) + 1] == "      peak."
    assert command("config") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("*")]
    names = [line.split(" = ")[0].strip() for line in lines if not line[:6].isspace()]
    assert len(names) > 130 and len(set(names)) == len(names)
    assert names[:4] == ["seed", "iterations", "improve_by", "model.init"]


def test_every_setting_is_explained_somewhere():
    known = config_table.comments()
    sections = ("model", "data", "search", "judge", "dpo", "train", "mcts", "teacher")
    for section in sections:
        for name in get_config()[section]:
            assert f"{section}.{name}" in known, name
    for owner, made in (("phase", sft.Phase), ("optimizer", train.OptimizerOptions)):
        assert {f"{owner}.{name}" for name in made.__annotations__} <= known.keys()


def test_shipped_configs_are_found_by_name(capsys):
    assert set(config_files.shipped()) >= {"quickstart", "qwen2_5_math_7b"}
    assert command("config", "--config=quickstart") == 0
    assert "* search.slots = 128  [" in capsys.readouterr().out
    assert command("config", "--config=gsm8k_cpu:here") == 0
    assert "* data.ift = 'here/gsm8k/train.jsonl'  [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.search.widht = 4", ["no setting 'widht'", '(did you mean "width"?)']),
        (
            "c.search.width = '4'",
            ["'width' cannot be 4 (a text); expected a whole num"],
        ),
        ("c.dpo.beta = 'x'", ["'beta' cannot be x (a text); expected a number."]),
        ("c.sft.phases[0].epocs = 1", ["no setting 'epocs'", 'mean "epochs"']),
        ("c.sft.phases = c.sft.phases[0]", ["'phases' cannot be ", "expected a tuple"]),
        ("config.phase(stepz=3)", ["argument 'stepz'; expected only name, ift, eft,"]),
        ("1 / 0", ["ZeroDivisionError: division by zero; expected a file whose get_"]),
        (
            "raise SystemExit",
            ["SystemExit; expected a file whose get_config() changes"],
        ),
        (
            "import no_such_library",
            ["imports 'no_such_library'", "pip install no_such"],
        ),
    ],
)
def test_a_wrong_line_in_a_config_file(tmp_path, capsys, no_compilation, line, words):
    path = write_config(tmp_path, line)
    arguments = ["run", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    said = refused(capsys, 2, arguments, f"stepjax: {path}, line 6: ", *words)
    assert len(said.splitlines()) == 2 and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c = 1\ndef get_config(:\n", ", line 2: this is no Python (invalid syn"),
        ("import no_such.part\n", ", line 1: imports 'no_such', and there is no such"),
        ("c = 1\n", " has no function get_config(); expected a file whose"),
        (
            "get_config = 3\n",
            ": get_config is a whole number and no function; expected",
        ),
        (
            "def get_config(x):\n  return x\n",
            ", line 1: get_config() of this file needs ",
        ),
        (
            "def get_config():\n  return {}\n",
            ", line 1: get_config() returns a dict; exp",
        ),
        (
            "def get_config():\n  return 3\n",
            "get_config() returns a whole number; expect",
        ),
        (
            "def get_config():\n  pass\n",
            "returns None (is `return c` missing?); expected",
        ),
        (
            "import ml_collections\ndef get_config():\n"
            "  return ml_collections.ConfigDict({'sed': 0})\n",
            "expected all that stepjax.config.default() gives; an unknown setting sed; "
            'expected only known ones (did you mean "seed"?).',
        ),
        (
            "from tiny_config import get_config as tiny\ndef get_config():\n"
            "  c = tiny()\n  c.sft.phases = (3,)\n  return c\n",
            "returns sft.phases[0]=3; expected what stepjax.config.phase() gives.",
        ),
        (
            "from tiny_config import get_config as tiny\ndef get_config():\n"
            "  c = tiny().unlock()\n  del c.dpo.beta\n  return c\n",
            "returns settings without dpo.beta; expected all that",
        ),
    ],
)
def test_a_config_file_that_gives_no_settings(
    tmp_path, capsys, no_compilation, text, words
):
    path = tmp_path / "settings.py"
    path.write_text(text, encoding="utf-8")
    for name in ("run", "config"):
        arguments = [name, f"--config={path}"]
        arguments += [f"--workdir={tmp_path / 'run'}"] * (name == "run")
        said = refused(capsys, 2, arguments, f"stepjax: {path}", words)
        assert len(said.splitlines()) == 2 and "Traceback" not in said
    assert {item.name for item in tmp_path.iterdir()} == {"settings.py"}


def write_config(folder, *lines):
    text = "\n    ".join(["c = tiny()", *lines, "return c"])
    head = "from tiny_config import get_config as tiny\nfrom stepjax import config\n\n"
    path = folder / "settings.py"
    path.write_text(f"{head}def get_config():\n    {text}\n", encoding="utf-8")
    return path


# Settings and data that cannot work: one of each place that refuses them. Every rule
# is tested in run/test_data.py, every file of data in run/test_bad_input.py.


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.eft_count=0", "eft rows and there are none; expected at least one. Set"),
        ("model.vocab_size=100", "131 ids and the model's vocabulary 100; expected"),
        ("mesh.tensor=2", "'kv_heads' of size 1 does not divide by mesh.tensor=2"),
        ("search.context_tokens=14", "at most search.context_tokens=14. Raise it or"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    tmp_path, capsys, no_compilation, monkeypatch, setting, words
):
    monkeypatch.setattr(sharding, "make_mesh", make_mesh)  # all devices
    run = ["run", TINY, f"--workdir={tmp_path / 'run'}", f"--config.{setting}"]
    said = refused(capsys, 1, run, words)
    lines = said.splitlines()  # what begins, and then the error, in one line
    command_line = f"stepjax {stepjax.__version__}: {' '.join(run)}"
    assert lines[:2] == [command_line, "starting JAX"]
    assert [line for line in lines if line.startswith("stepjax: ")] == lines[-1:]
    assert not (tmp_path / "run").exists()


def test_values_out_of_range_are_refused_all_at_once_before_jax(tmp_path, capsys):
    run = ["run", TINY, f"--workdir={tmp_path / 'run'}", "--config.tokenizer=nowhere"]
    run += ["--config.search.on_tie=forward", "--config.dpo.beta=nan"]
    said = refused(capsys, 2, [*run, "--config.sft.phases[0].epochs=3"])
    assert said.splitlines()[1:] == [
        "stepjax: search.on_tie='forward'; expected one of ('back', 'append').",
        "stepjax: dpo.beta=nan; expected above 0 and at most 1,000.",
        "stepjax: sft.phases[0].epochs, sft.phases[0].steps=(3, 40); expected exactly "
        "one of them above 0.",
        "stepjax: tokenizer='nowhere': no such file; expected a folder or "
        "tokenizer.json.",
    ]
    assert not (tmp_path / "run").exists()


def test_files_that_are_missing_or_malformed(
    tmp_path, capsys, no_compilation, tokenizer_folder
):
    name = "ift"
    arguments = ["run", TINY, f"--workdir={tmp_path / 'run'}", "--config.data.world="]
    arguments.append(f"--config.tokenizer={tokenizer_folder}")
    for each in ("ift", "eft", "question_file", "test"):
        (tmp_path / each).touch()
        arguments.append(f"--config.data.{each}={tmp_path / each}")
    (tmp_path / name).write_text('{"id": "a", "problem": 5}\n')
    place = f"{tmp_path / name}:1 (id a): "
    words = "field 'problem' is 5; expected the field 'problem' to hold a string"
    refused(capsys, 1, arguments, place, words)
    (tmp_path / name).unlink()
    words = f"data.ift='{tmp_path / name}': no such file; expected a file of solutions"
    refused(capsys, 2, arguments, words)
    assert not (tmp_path / "run").exists()


def test_errors_that_are_not_about_input_keep_their_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("stepjax.run.run.Run", lambda *a, **k: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        command("sft", TINY, f"--workdir={tmp_path / 'run'}")


# Run directories.


def test_settings_of_an_existing_run(tmp_path, capsys, no_compilation):
    folder = tmp_path / "run"
    Run(get_config(), folder)
    before = contents(folder)
    change = ["sft", f"--workdir={folder}", "--config.data.test_count=9"]
    words = f"{folder}: data.test_count was 24, now 9. the data would no longer be what"
    refused(capsys, 1, change, words, "Add --redo=prepare to delete the data and make")
    assert contents(folder) == before
    # Nothing depends on the width yet, so the run goes on with another one.
    change = ["eval", f"--workdir={folder}", "--config.search.width=4", "--model=M1"]
    refused(capsys, 2, change, "M1/manifest.json is missing; expected a finished model")
    change = ["dpo", f"--workdir={folder}", "--config.search.width=4", "--model=M0"]
    refused(capsys, 2, change, "--model=M0; expected M1 to M2 for `stepjax dpo`")
    assert contents(folder) == before


def test_folders_that_are_no_runs(tmp_path, capsys, no_compilation):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("run", "file"):
        arguments = ["run", TINY, f"--workdir={tmp_path / name}"]
        refused(capsys, 1, arguments, f"{name} is not empty and has no config.json")
    assert set(contents(tmp_path)) == {"run/thesis.tex", "file"}
    (tmp_path / "empty").mkdir()
    arguments = ["run", TINY, f"--workdir={tmp_path / 'empty'}", "--config.seed=-1"]
    refused(capsys, 2, arguments, "seed=-1")
    assert not list(tmp_path.glob("empty/*"))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "eval",
            ["--model=M9"],
            "--model=M9; expected M0 to M3 for `stepjax eval` with",
        ),
        ("eval", ["--model=foo"], "--model='foo'; expected M0, M1, ... or 0, 1, ..."),
        ("eval", ["--model=M-1"], "--model='M-1'; expected M0, M1, ... or 0, 1, ..."),
        ("eval", ["--model=M\u0663"], "expected M0, M1, ... or 0, 1, ..."),
        ("show", ["--model=1"], "run: there is no such folder; expected the --workdir"),
        ("export", ["--model=9", "--out=x"], "--model=M9; expected M0 to M3 for"),
        (
            "search",
            ["--model=M0"],
            "--model=M0; expected M1 to M2 for `stepjax search`",
        ),
        ("dpo", ["--model=M3"], "--model=M3; expected M1 to M2 for `stepjax dpo` with"),
        (
            "eval",
            ["--model=M3"],
            "M3/manifest.json is missing; expected a finished model",
        ),
        (
            "dpo",
            ["--model=M1"],
            "M1/manifest.json is missing; expected a finished model",
        ),
        ("export", ["--model=M0"], "--out is missing; expected the folder to write"),
        (
            "eval",
            ["--model=M1"],
            "There is no folder",
        ),
    ],
)
def test_models_that_are_not_there(
    tmp_path, capsys, no_compilation, name, arguments, words
):
    arguments = [name, TINY, f"--workdir={tmp_path / 'run'}", *arguments]
    refused(capsys, 2, arguments, words)
    assert not (tmp_path / "run").exists()


# Commands on a finished run.


def test_run_and_eval_of_a_finished_run(finished, capsys):
    before = contents(finished)
    assert command("run", f"--workdir={finished}") == 0  # its own config.json
    assert command("run", TINY, f"--workdir={finished}") == 0
    assert command("sft", f"--workdir={finished}") == 0
    said = capsys.readouterr()
    assert len([line for line in said.out.splitlines() if line[:5] == "│ M2 "]) == 12
    for name in ("M1: done already, updates of SFT: first 40, second 60\n",) * 3:
        assert said.err.count(name) == 3
    counts = files.read_json(finished / "M2/search.json")["counts"]
    words = f"M2 search: done already, {counts['pairs']} pairs from 24 questions in "
    assert words in said.err
    greedy = files.read_json(finished / "eval/M3_test_greedy.json")["metrics"]
    words = f"M3 eval: done already: greedy {100 * greedy['accuracy']:.1f} %, judge "
    assert words in said.err
    assert contents(finished) == before


def test_eval_of_a_finished_run_takes_the_newest_model(finished, capsys):
    before = contents(finished)
    assert command("eval", f"--workdir={finished}", "--mode=judge") == 0
    said = capsys.readouterr()
    assert "M3 judge " in said.out and " the run's own data " in said.out
    metrics = files.read_json(finished / "eval/M3_heldout_judge.json")["metrics"]
    shown = dict(
        line.strip("│ ").split(" │ ", 1)
        for line in said.out.splitlines()
        if line.startswith("│ ")
    )
    shown = {name.strip(): value.strip(" │") for name, value in shown.items()}
    assert shown.keys() == metrics.keys()
    assert shown["accuracy"] == f"{metrics['accuracy']:.4f}"
    assert command("eval", f"--workdir={finished}", "--model=M1") == 0
    said = capsys.readouterr()
    assert "M1 unseen: does not apply to this run or model" in said.err
    assert "M1 training: does not apply to this run or model" in said.err
    unseen = ["eval", f"--workdir={finished}", "--mode=unseen"]
    refused(capsys, 2, unseen, "have no problems of unseen steps")
    assert contents(finished) == before


def test_one_stage_at_a_time_makes_the_same(finished, tmp_path):
    folder = tmp_path / "run"
    copy_run(folder, "M2/search*", "M2/pairs*", "M3", "eval/M3*")
    arguments = [f"--workdir={folder}", "--model=M2"]
    assert command("dpo", *arguments) == 1  # M2 has not searched
    assert command("search", *arguments) == 0
    assert command("dpo", *arguments) == 0
    assert command("eval", f"--workdir={folder}", "--model=M3", "--mode=greedy") == 0
    for name in ("M2/search.jsonl", "M2/pairs.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    for name, key in (("M3/manifest", "arrays"), ("eval/M3_test_greedy", "items")):
        a, b = (files.read_json(f / f"{name}.json") for f in (folder, finished))
        assert a[key] == b[key] and len(a[key]) > 10


def test_a_benchmark_of_ones_own(finished, tmp_path, capsys):
    folder, path = tmp_path / "run", tmp_path / "mine.jsonl"
    copy_run(folder)
    problems = records.read_jsonl(finished / "data/test.jsonl", records.Problem)[2:5]
    records.write_jsonl(path, problems)
    arguments = ["eval", f"--workdir={folder}", "--model=M3", f"--benchmark={path}"]
    assert command(*arguments, "--mode=greedy") == 0
    digest = contents(tmp_path)["mine.jsonl"][:8]
    made = files.read_json(folder / f"eval/M3_mine-{digest}_greedy.json")
    whole = files.read_json(finished / "eval/M3_test_greedy.json")
    assert made["items"] == whole["items"][2:5] and made["metrics"]["count"] == 3
    # A file of the same name as the run's own, and then an edited one.
    (tmp_path / "test.jsonl").write_bytes(path.read_bytes())
    before = contents(folder)
    arguments[-1] = f"--benchmark={tmp_path / 'test.jsonl'}"
    assert command(*arguments, "--mode=greedy") == 0
    assert (folder / f"eval/M3_test-{digest}_greedy.json").exists()
    records.write_jsonl(tmp_path / "test.jsonl", problems[:2])
    assert command(*arguments, "--mode=greedy") == 0
    digest = contents(tmp_path)["test.jsonl"][:8]
    made = files.read_json(folder / f"eval/M3_test-{digest}_greedy.json")
    assert made["metrics"]["count"] == 2
    now = contents(folder)
    changing = ("log.txt", "metrics.jsonl", "tensorboard")
    for name in before:
        assert now[name] == before[name] or name.startswith(changing), name
    assert "M3 greedy " in capsys.readouterr().out
    (tmp_path / "test.jsonl").write_text('{"id": "a"}\n')
    refused(capsys, 1, arguments, "test.jsonl:1 (id a): missing field 'problem'")
    # As public files are: other fields, other names, a number as the answer, a table.
    public = tmp_path / "public.csv"
    rows = [f"{p.problem},{p.answer},easy\n" for p in problems]
    public.write_text("".join(["question,answer,level\n", *rows]), "utf-8")
    arguments[-1] = f"--benchmark={public}"
    assert command(*arguments, "--mode=greedy") == 0
    digest = contents(tmp_path)["public.csv"][:8]
    again = files.read_json(folder / f"eval/M3_public-{digest}_greedy.json")
    texts = [item["text"] for item in whole["items"][2:5]]
    assert [item["text"] for item in again["items"]] == texts


# Export.


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "M2"
    assert command("export", f"--workdir={finished}", "--model=M2", f"--out={out}") == 0
    return out


def test_an_export_says_what_it_wrote_and_takes_the_newest_model(
    finished, tmp_path, capsys
):
    out = tmp_path / "new"
    assert command("export", f"--workdir={finished}", f"--out={out}") == 0
    said = capsys.readouterr().err.splitlines()[-1]
    size = sum(path.stat().st_size for path in out.iterdir())
    prompt = r"prompt: '{problem}\n'"
    assert said == f"M3 → {out}, {size / 1000:.0f} kB, float32, {prompt}"
    (tmp_path / "file").touch()
    arguments = ["export", f"--workdir={finished}", f"--out={tmp_path / 'file/below'}"]
    said = refused(capsys, 2, arguments, "file/below", "Not a directory")
    assert "Traceback" not in said


def test_an_export_loads_back(finished, exported, capsys):
    run = Run(get_config(), finished)
    params = jax.tree.map(np.asarray, run.params(2))
    loaded = weights.load_hf(exported, hf_config.config_from_hf(exported))
    digests = checkpoint.array_digests(loaded)
    assert digests == checkpoint.array_digests(params)
    assert digests == files.read_json(finished / "M2/manifest.json")["arrays"]
    # A random model has no context length of its own: the longest one of the run.
    data = files.read_json(exported / "config.json")
    assert data["max_position_embeddings"] == 88
    before = contents(exported)
    arguments = ["export", f"--workdir={finished}", "--model=M1", f"--out={exported}"]
    refused(capsys, 2, arguments, "exists and is not empty; expected a new or an empty")
    assert contents(exported) == before
    arguments[-1] = "--out=https://example.org/m"
    refused(capsys, 2, arguments, "expected a folder, or object storage: gs://, s3://")


def test_no_size_is_told_of_an_export_to_object_storage(finished, monkeypatch, capsys):
    monkeypatch.setattr(export, "save_hf", lambda *_, **__: None)
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda name: name)
    assert command("export", f"--workdir={finished}", "--out=gs://bucket/m") == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == r"M3 → gs://bucket/m, float32, prompt: '{problem}\n'"


def test_object_storage_without_its_package_is_refused_before_a_model_is_loaded(
    finished, monkeypatch, capsys
):
    def missing(name):
        try:
            importlib.import_module("adlfs_that_is_not_installed")
        except ModuleNotFoundError as error:
            raise ImportError(f"Install adlfs to access {name}") from error

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    monkeypatch.setattr("stepjax.run.run.Run", None)  # nothing is loaded
    out = "--out=az://bucket/m"
    refused(capsys, 1, ["export", f"--workdir={finished}", out], "access az", "adlfs")


def test_an_export_brings_its_prompts(finished, exported):
    codec = Run(get_config(), finished).codec
    kept = files.read_json(exported / "stepjax_prompts.json")
    assert Templates(**kept) == codec.templates
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for problem in ("1+2", 'a {problem} "\\n'):
        message = [{"role": "user", "content": problem}]
        made = tokenizer.apply_chat_template(message, add_generation_prompt=True)
        assert tuple(made["input_ids"]) == codec.solve_prompt(problem)


def test_transformers_loads_an_export(finished, exported):
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    greedy = files.read_json(finished / "eval/M2_test_greedy.json")["items"]
    problems = records.read_jsonl(finished / "data/test.jsonl", records.Problem)
    for problem, item in list(zip(problems, greedy, strict=True))[:6]:
        message = [{"role": "user", "content": problem.problem}]
        ids = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=32, do_sample=False)
        new = made[0, ids.shape[1] :].tolist()
        assert tokenizer.decode(new, skip_special_tokens=True) == item["text"]
        assert len(new) == item["tokens"] > 5
        assert item["finished"] == (new[-1] == tokenizer.eos_token_id)


def test_a_run_starts_from_an_export(finished, exported, tmp_path):
    arguments = [TINY, f"--workdir={tmp_path / 'run'}", "--model=M0"]
    arguments += [f"--config.model.init=hf:{exported}", "--mode=greedy"]
    assert command("eval", *arguments) == 0
    path = "eval/M{}_test_greedy.json"
    found = files.read_json(tmp_path / "run" / path.format(0))
    expected = files.read_json(finished / path.format(2))
    assert found["items"] == expected["items"] and len(found["items"]) == 24
    assert found["metrics"] == expected["metrics"]
