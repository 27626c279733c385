"""``stepjax eval --benchmark``: several files, and settings of one command only."""

import pytest
from runs import command, contents, copy_run

from stepjax import records
from stepjax.evaluation.benchmark_paths import of_settings, paths
from stepjax.lm import files
from stepjax.run.run import Run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "within").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    names = ("a.jsonl", "more/c.csv", "more/b.json.gz", "more/README.md", "more/.b.csv")
    for name in (*names, "more/within/d.csv", "x,y.csv"):
        (tmp_path / name).write_text(name)
    (tmp_path / "same.csv").write_text("a.jsonl")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "gone.csv").symlink_to("nowhere.csv")
    return tmp_path


def test_files_and_folders_of_files_in_their_order(here):
    assert paths(["a.jsonl", "test"]) == ["a.jsonl", "test"]
    assert paths(["x,y.csv"]) == ["x,y.csv"]
    found = paths(["test", "more", "a.jsonl"])
    assert found == ["test", "more/b.json.gz", "more/c.csv", "a.jsonl"]


def test_a_folder_called_test_does_not_hide_the_own_test(here):
    (here / "test").mkdir()
    (here / "test" / "z.csv").write_text("z")
    assert paths(["test", "./test"]) == ["test", "test/z.csv"]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["a.jsonl", "no.csv"], "--benchmark=no.csv: no such file; expected 'test', f"),
        (["a.jsonl", ""], "--benchmark=: no such file"),
        (["empty"], "--benchmark=empty: there are no files of problems in this folder"),
        ([], "--benchmark names nothing; expected 'test'"),
        (["a.jsonl", "same.csv"], "--benchmark: a.jsonl and same.csv have the same c"),
        (["more", "more/c.csv"], "more/c.csv and more/c.csv have the same content"),
        (["test", "test"], "test and test have the same content, and would be meas"),
        (["tfds:my_set"], "'tfds:my_set' is no address of TFDS; expected tfds:NAME/SP"),
        (["tfds:a/b", "tfds:a/b"], "tfds:a/b and tfds:a/b have the same content, and"),
        (["links"], "--benchmark=links/gone.csv: cannot be read (No such file or dir"),
    ],
)
def test_what_cannot_be_measured_is_named(here, named, words):
    with pytest.raises(ValueError) as error:
        paths(named)
    assert str(error.value).startswith(words) or words in str(error.value)


def test_files_of_a_setting_and_without_any(here, monkeypatch):
    named = ("test", "more", "tfds:my_set/test", "a.jsonl")
    found = ["more/b.json.gz", "more/c.csv", "tfds:my_set/test", "a.jsonl"]
    assert of_settings(named) == found
    assert of_settings(()) == of_settings(("test",)) == []
    # As the command line hands over --config.eval.benchmarks=a.jsonl,more: one text.
    assert of_settings(("a.jsonl,more/c.csv",)) == [
        "a.jsonl",
        "more/c.csv",
    ]
    assert of_settings(("x,y.csv",)) == ["x,y.csv"]  # there is such a file
    monkeypatch.setenv("HOME", str(here))
    assert of_settings(("~/a.jsonl",)) == [str(here / "a.jsonl")]
    with pytest.raises(ValueError, match="^eval.benchmarks=no.csv: no such file; exp"):
        of_settings(("no.csv",))


@pytest.mark.usefixtures("quick_runs")
def test_several_files_are_read_first_and_have_a_line_each(
    finished, here, capsys, monkeypatch
):
    copy_run(here / "run")
    problems = records.read_jsonl(finished / "data/test.jsonl", records.Problem)
    records.write_jsonl(here / "a.jsonl", problems[:3])
    records.write_jsonl(here / "b.jsonl", problems[3:5])
    before = contents(here)
    arguments = ["eval", "--workdir=run", "--model=M3", "--mode=greedy"]
    files_ = "--benchmark=test,a.jsonl,b.jsonl"
    # One that cannot be read, and one that the tokenizer cannot read, stop it early.
    monkeypatch.setattr(Run, "sampling_params", None)
    (here / "more/c.csv").write_text("question,answer\n1 \u00d7 2,2\n")
    assert command(*arguments, f"{files_},more/c.csv") == 1
    assert "c.csv: 1 of 1 problems hold chara" in capsys.readouterr().err
    (here / "more/c.csv").write_text("question\n1*2\n")
    assert command(*arguments, f"{files_},more/c.csv") == 1
    assert "more/c.csv:2" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert command(*arguments, files_) == 0
    whole = files.read_json(finished / "eval/M3_test_greedy.json")
    parts = {}
    for name in ("a", "b"):
        digest = before[f"{name}.jsonl"][:8]
        parts[name] = files.read_json(f"run/eval/M3_{name}-{digest}_greedy.json")
    assert parts["a"]["items"] == whole["items"][:3]
    assert parts["b"]["items"] == whole["items"][3:5]
    said = capsys.readouterr()
    rows = [line.split("\u2502")[1:4] for line in said.out.splitlines()]
    rows = [[cell.strip() for cell in row] for row in rows if len(row) == 3]
    counts = {"test": "24", "a.jsonl": "3", "b.jsonl": "2"}
    assert {row[0]: row[1] for row in rows} == counts
    rate = 100 * parts["a"]["metrics"]["accuracy"]
    assert rows[1][2].startswith(f"{rate:.1f} [")
    assert "M3 eval: done already: greedy" in said.err
    # Settings of one command: the run keeps its own, and so do the results.
    kept = contents(here / "run")
    longer = [*arguments, "--benchmark=test,a.jsonl", "--config.eval.max_tokens=40"]
    assert command(*longer) == 0
    said = capsys.readouterr().err
    assert (
        "for this command only: eval.max_tokens was 32, now 40. run/config.json" in said
    )
    now = contents(here / "run")
    changing = ("log.txt", "metrics.jsonl", "tensorboard")
    for name in kept:
        assert now[name] == kept[name] or name.startswith(changing), name
    made = sorted(n for n in now.keys() - kept.keys() if n.startswith("eval/"))
    assert len(made) == 2 and made[1].startswith("eval/M3_test-")
    result = files.read_json(here / "run" / made[1])
    assert result["settings"]["eval.max_tokens"] == 40
    assert result["stage"] == "eval/greedy" and result["metrics"]["count"] == 24
    assert result["inputs"] == whole["inputs"] and "M3" in result["inputs"]
    assert result["prompts"] == whole["prompts"]
    assert command(*longer) == 0  # nothing is measured again
    assert "M3 eval a.jsonl: done already: greedy" in capsys.readouterr().err
    assert files.read_json(here / "run" / made[1]) == result
