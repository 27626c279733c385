"""Paths of people: ~ is the home folder, object storage is named where it fails."""

import pathlib

import pytest
import tiny_config
import tiny_eft_config
from runs import CONFIG, command

from stepjax import ablate, config
from stepjax.cli import config_files
from stepjax.lm import addresses
from stepjax.run import paths, ranges
from stepjax.run.missing_files import missing_files
from stepjax.run.run import Run

BUCKET = "gs://bucket/x"
EFT = f"--config={tiny_eft_config.__file__}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_in_every_setting_that_names_a_file(home):
    c = config.default()
    c.data.ift, c.tokenizer, c.model.init = "~/ift.jsonl", "~/t", "hf:~/m"
    c.teacher.model, c.prm.labels, c.data.test = "hf:~/t", "gold", "tfds:gsm8k/test"
    found = paths.expanded(c)
    assert found.data.ift == f"{home}/ift.jsonl" and found.tokenizer == f"{home}/t"
    assert (found.model.init, found.teacher.model) == (f"hf:{home}/m", f"hf:{home}/t")
    assert (found.prm.labels, found.data.test) == ("gold", "tfds:gsm8k/test")
    assert c.data.ift == "~/ift.jsonl" and found.is_locked
    assert paths.expanded(found) == found
    plain = config.default()
    assert paths.expanded(plain).to_dict() == plain.to_dict()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workdir=~/a"], ["--workdir={}/a"]),
        (["-workdir", "~/a"], ["-workdir", "{}/a"]),
        (["--out=~", "--n=3"], ["--out={}", "--n=3"]),
        (["--benchmark=~/a,b,~/c"], ["--benchmark={}/a,b,{}/c"]),
        (["--workdir=a~,~/b"], ["--workdir=a~,~/b"]),  # a name with a comma
        (["--problem=~/a", "--verify", "~"], ["--problem=~/a", "--verify", "~"]),
    ],
)
def test_home_in_every_option_that_names_a_file(home, words, expected):
    assert config_files.arguments(words) == [
        word.format(home, home) for word in expected
    ]


def test_home_in_the_name_and_the_text_of_a_config_file(home):
    (home / "c.py").touch()
    found = config_files.arguments(["--config=~/c.py:~/model,~/data"])
    assert found == [f"--config={home}/c.py:{home}/model,{home}/data"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["run", f"--config={CONFIG}", f"--workdir={BUCKET}"], "--workdir"),
        (["show", f"--workdir={BUCKET}"], "--workdir"),
        (["init-data", "mcts", f"--workdir={BUCKET}"], "--workdir"),
        (["run", f"--config={BUCKET}", "--workdir=a"], "--config"),
        (
            ["eval", f"--config={CONFIG}", "--workdir=a", f"--benchmark={BUCKET}"],
            "--benchmark",
        ),
        (
            *(["init-data", "convert", f"--input={BUCKET}", "--format=gsm8k"],),
            "--input",
        ),
        (
            ["init-data", "prm", EFT, "--workdir=a", f"--processbench={BUCKET}"],
            "--processbench",
        ),
    ],
)
def test_object_storage_is_refused_where_it_is_not_read(
    tmp_path, monkeypatch, capsys, words, name
):
    monkeypatch.chdir(tmp_path)
    if name == "--input":
        words = [*words, "--to=question", "--output=out.jsonl"]
    assert command(*words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"stepjax: {name}={BUCKET}: this is an address and no path;")
    assert "expected a" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place", [BUCKET, pathlib.Path(BUCKET), "GS://b/x", "C://x", "a://", "hf:https://x"]
)
def test_a_run_directory_at_an_address_is_refused_in_a_program(
    tmp_path, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    settings = tiny_config.get_config()
    for begin in (Run, lambda c, at: ablate.ablate(c, at, [0], ["self"])):
        with pytest.raises(ValueError, match=f"workdir={place}: this is an address"):
            begin(settings, place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["a/gs://b", "C:/x", "c.py:/data", "gs", "~/x", ""])
def test_no_address(path):
    assert not addresses.is_address(path) and not addresses.is_unreachable(path)


@pytest.mark.parametrize("name", ["a[1]", "a\\b"])
def test_a_path_at_which_orbax_loses_arrays_is_refused(
    tmp_path, monkeypatch, capsys, name
):
    place = tmp_path / name
    assert command("run", f"--config={CONFIG}", f"--workdir={place}/r") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"stepjax: --workdir={place}/r: there is a ")
    assert "expected a path without" in said and not place.exists()
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match="workdir=r: there is a"):
        Run(config.default(), "r")
    assert not list(place.iterdir())


def test_settings_on_object_storage_are_named_where_files_are_read():
    c = config.default()
    c.data.ift, c.data.test, c.tokenizer = BUCKET, "https://x/y", "gs://b/tokenizer"
    c.data.make_eft, c.mcts.question_file, c.prm.labels = True, BUCKET, "gold"
    named = [s.partition("=")[0] for s in missing_files(c) if "an address" in s]
    assert named == ["data.ift", "data.test", "mcts.question_file"]


DISK = "'gguf:' and a file on a disk of this computer (copy it here first), because"
STORAGE = "a path on this computer (download it first), or on object storage, which"


@pytest.mark.parametrize("name", ["model.init", "teacher.model", "tokenizer"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hf:gs://b/m", ""),  # weights and tokenizers are read from there
        ("hf:s3://b/m", ""),
        ("hf:hf://org/m", STORAGE),
        ("hf:gs:/b/m", STORAGE),
        ("hf:https://huggingface.co/m", STORAGE),
        ("hf:file:///m", STORAGE),
        ("gguf:m.gguf", ""),
        ("gguf:gs://b/m.gguf", DISK),
        ("gguf:https://x/m.gguf", DISK),
    ],
)
def test_addresses_of_models_are_ones_that_can_be_read(name, value, expected):
    c = tiny_eft_config.changed(teacher__backend="local")
    if name == "tokenizer":  # has no kind in front
        value, expected = value.partition(":")[2], expected and STORAGE
        expected = "" if value.startswith("gs://") else expected
    c.update_from_flattened_dict({name: value})
    wrong = f"{name}={value!r}; expected {expected}"
    assert [s[: len(wrong)] for s in ranges.wrong(c)] == [wrong] * bool(expected)


def test_no_run_is_inside_of_another_one(tmp_path):
    for name in ("run/config.json", "run/data/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("run/M1", "run/seed_0/self"):
        assert paths.no_run("--workdir", f"{tmp_path}/{name}") == (
            f"--workdir={tmp_path}/{name}: this is inside of the run directory "
            f"{tmp_path}/run; expected that directory, or one outside of it."
        )
    for name in ("run", "other", "run_2/M1"):
        assert paths.no_run("--workdir", f"{tmp_path}/{name}") == ""
