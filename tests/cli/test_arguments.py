"""What a person types, and what is said where a slip is in it."""

import re

import pytest
from ml_collections.config_flags import tuple_parser
from runs import CONFIG, command, contents, copy_run

from stepjax import ablate, own_files
from stepjax.cli import config_files, help
from stepjax.evaluation import dry_run

TINY = f"--config={CONFIG}"


def said(capsys, *arguments, status=2):
    """Returns what a command that is refused says, line by line."""
    capsys.readouterr()
    assert command(*arguments) == status
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("stepjax: ")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rnu"], "unknown command 'rnu'; expected one of run, sft, .*mean \"run\""),
        (["help", "evla"], "unknown command 'evla'; .*mean \"eval\""),
        (["init-data", "convrt"], "unknown action 'convrt'; .*mean \"convert\""),
        (
            ["run", "--config=quikstart", "--workdir=x"],
            '--config=quikstart: no such file .*mean "quickstart"',
        ),
        (
            ["run", TINY, "--workdir=x", "--redo=serch"],
            '--redo=serch; expected one of prepare, .*mean "search"',
        ),
    ],
)
def test_a_mistyped_word_is_answered_with_the_one_that_was_meant(capsys, words, line):
    assert re.search(line, said(capsys, *words)[-1])


def test_a_word_like_no_other_has_no_suggestion():
    assert own_files.did_you_mean("xyzzy", help.COMMANDS) == ""
    assert own_files.did_you_mean("WIDHT", ["width"], "search.") == (
        ' (did you mean "search.width"?)'
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--workdir=a", "--workdir=b"], "--workdir=a and --workdir=b are both given;"),
        (
            ["--benchmark=a", "--benchmark=b"],
            "both given; expected --benchmark once. Write both in one, with a comma",
        ),
        (["--against=a", "--against=b"], "a comma: --against=A,B."),
        (["--workdir", "a", "-workdir=b"], "--workdir a and -workdir=b are both given"),
        (["--workdir=a", f"{TINY}:x"], f"{TINY} and {TINY}:x are both given; expected"),
        (
            ["--workdir=a", "--config.seed", "-1", "--config.seed=2"],
            "--config.seed -1 and --config.seed=2 are both given; expected --config.s",
        ),
        (
            ["--wrong", "--nowrong"],
            "--wrong and --nowrong are both given; expected --w",
        ),
    ],
)
def test_an_option_that_is_given_twice_is_refused(capsys, words, line):
    (found,) = said(capsys, "run", TINY, *words)
    assert line in found


def test_options_that_are_given_once_are_taken():
    words = [TINY, "--config.mesh.fsdp", "-1", "--config.mesh.tensor", "-1"]
    words += ["--config.data.ift=--a", "--config.data.eft=--a", "--wrong", "extra"]
    assert config_files.arguments(words)[1:] == words[1:]


def test_a_folder_is_no_config_file(capsys, finished, tmp_path):
    (line,) = said(capsys, "run", f"--config={tmp_path}", f"--workdir={tmp_path / 'a'}")
    assert f"--config={tmp_path}: this is a folder; expected a Python file, or" in line
    (line,) = said(capsys, "run", f"--config={finished}", f"--workdir={tmp_path / 'a'}")
    assert "this is a run directory; expected a Python file, or one of" in line
    assert line.endswith(f"taken with --workdir={finished} and no --config.")


def test_an_empty_name_is_no_folder(capsys, tmp_path):
    (line,) = said(capsys, "run", "--config=", f"--workdir={tmp_path / 'a'}")
    assert line.startswith("stepjax: --config=: no such file (looked in ")


def test_the_arms_of_the_help_are_those_that_there_are():
    assert help.OPTIONS["arms"][0] == ",".join(ablate.ARMS)


def test_all_options_and_settings_that_are_wrong_are_named_at_once(capsys):
    words = ["--arms=self,foo,orcale", "--seeds=1.5", "--config.dpo.beta=nan"]
    arms, *others = said(capsys, "ablate", TINY, "--workdir=x", *words)
    known = ",".join((*ablate.ARMS, *ablate.FURTHER))
    assert arms == (
        f"stepjax: --arms=self,foo,orcale; expected one or more of {known}, all "
        'different (did you mean "oracle"?).'
    )
    for arms in ("", "self,self"):
        (line,) = said(capsys, "ablate", TINY, "--workdir=x", f"--arms={arms}")
        assert line == (
            f"stepjax: --arms={arms}; expected one or more of {known}, all different."
        )
    assert others == [
        "stepjax: --seeds=1.5; expected whole numbers from 0, all different, with "
        "commas between them.",
        "stepjax: dpo.beta=nan; expected above 0 and at most 1,000.",
    ]
    (line,) = said(capsys, "ablate", TINY, "--workdir=x", "--seeds=2,02")
    assert "--seeds=2,02; expected whole numbers from 0, all different" in line
    (line,) = said(capsys, "plan", TINY, "--topology=v5p-16", "--utilisation=nan")
    assert "--utilisation=nan; expected above 0 and at most 1" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3", "mcts, eft, sft, search, dpo, or a model such as M1"),
        ("eval", "delete its file in the folder eval of --workdir and run `stepjax e"),
        ("M0", "--redo=M0; expected one of prepare, policy"),
    ],
)
def test_what_is_no_stage_is_answered_with_what_to_do(capsys, name, words):
    (line,) = said(capsys, "run", TINY, "--workdir=x", f"--redo={name}")
    assert words in line and "expected one of prepare, policy, rollouts, prm" in line


def test_wrong_values_are_listed_and_then_named(capsys):
    assert command("config", TINY, "--config.dpo.beta=nan") == 2
    found = capsys.readouterr()
    assert "* dpo.beta = nan  [above 0 and at most 1,000; default 0.1]" in found.out
    wrong = "stepjax: dpo.beta=nan; expected above 0 and at most 1,000."
    assert found.err.splitlines()[1:] == [wrong]


@pytest.mark.parametrize("name", ["run", "sft", "search", "dpo", "eval", "export"])
def test_the_help_shows_that_a_new_run_needs_settings(name):
    first, second, *_ = help.of(name).splitlines()
    assert first.startswith(f"usage: stepjax {name} --config=FILE --workdir=DIR ")
    assert second.startswith(f"       stepjax {name} --workdir=DIR ")


def test_show_says_that_a_folder_holds_no_run(capsys, finished, tmp_path):
    place = f"--workdir={tmp_path / 'none'}"
    for words in ([place], [place, TINY]):
        (line,) = said(capsys, "show", *words)
        assert f"{place}: there is no such folder; expected the --workdir of" in line
    (line,) = said(capsys, "show", f"--workdir={tmp_path}")
    assert "this folder holds no run, because there is no config.json in it" in line
    (line,) = said(capsys, "show", f"--workdir={finished.parent}")
    assert finished.name in line.partition("Runs in it: ")[2]
    (tmp_path / "M2").mkdir()
    (tmp_path / "M2" / "manifest.json").touch()
    (line,) = said(capsys, "show", f"--workdir={tmp_path}")
    assert f"{tmp_path}: its config.json is gone; expected the settings" in line


@pytest.mark.parametrize("name", ["run", "search", "eval", "export"])
def test_a_new_run_needs_settings(capsys, tmp_path, name):
    out = ["--out=x"] if name == "export" else []
    (line,) = said(capsys, name, f"--workdir={tmp_path}/nothing", *out)
    assert "nothing: there is no such folder; expected the --workdir of a run" in line
    assert line.endswith("A new run needs --config=FILE.")


@pytest.mark.parametrize("folder", ["/proc/x", "/proc/x/y", "FILE/x"])
def test_an_export_that_cannot_be_written_is_refused_at_once(
    capsys, finished, tmp_path, folder
):
    (tmp_path / "file").write_text("a file")
    out = folder.replace("FILE", str(tmp_path / "file"))
    (line,) = said(capsys, "export", f"--workdir={finished}", f"--out={out}")
    assert line.startswith(f"stepjax: --out={out}: nothing can be written in ")
    assert line.endswith("; expected a folder in which files can be made.")


def test_a_model_is_named_by_its_number_too(capsys, finished):
    shown = []
    for name in ("M2", "2", "m2", "02"):
        assert command("show", f"--workdir={finished}", f"--model={name}") == 0
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith("M2: ") and len(set(shown)) == 1


def test_a_dry_run_says_what_would_be_deleted(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    copy_run(folder)
    before = contents(folder)
    monkeypatch.setattr(dry_run, "dry_run", "of {}\n".format)
    words = [f"--workdir={folder}", "--config.dpo.beta=0.7", "--redo=dpo", "--dry-run"]
    assert command("run", *words) == 0
    found = capsys.readouterr().err
    assert "would be deleted: M2, M2 search, M3 (dpo.beta was 0.1, now 0.7)" in found
    assert "will be deleted" not in found and " deleted: M" in found
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("/a/x.jsonl,/a/y.jsonl", ("/a/x.jsonl,/a/y.jsonl",)),
        ("~/x.jsonl,aime-2024.csv", ("~/x.jsonl,aime-2024.csv",)),
        ("of mine/ü.jsonl", ("of mine/ü.jsonl",)),
        ("x.jsonl", ("x.jsonl",)),
        ('("/a/x.jsonl", "y.jsonl")', ("/a/x.jsonl", "y.jsonl")),
        ("()", ()),
    ],
)
def test_names_of_benchmarks_are_read_as_they_are_typed(named, found):
    option = "--config.eval.benchmarks"
    read = tuple_parser.TupleParser().parse
    one, *two = f"{option}={named}", option, named
    *_, word = config_files.arguments([TINY, one])
    assert word.startswith(f"{option}=")
    assert read(word.partition("=")[2]) == found
    assert read(config_files.arguments([TINY, *two])[-1]) == found
