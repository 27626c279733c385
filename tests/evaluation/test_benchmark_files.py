"""`eval.benchmarks`: files that a run measures all of its models on."""

import json
import pathlib

import pytest
import tiny_config
from runs import command, copy_files, copy_run

from stepjax import iterate, records
from stepjax.evaluation import answers, benchmarks, solve, stages
from stepjax.initial_data.formats import tfds_builder
from stepjax.lm import files
from stepjax.records import Problem
from stepjax.report import build
from stepjax.run.run import Run
from stepjax.run.rundir import file_digest
from stepjax.worlds import arithmetic

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture
def here(tmp_path, monkeypatch, finished):
    """A folder with a copy of the finished run, and two parts of its test problems."""
    monkeypatch.chdir(tmp_path)
    copy_files(finished, tmp_path / "run")
    problems = records.read_jsonl("run/data/test.jsonl", records.Problem)
    records.write_jsonl("first.jsonl", problems[:10])
    records.write_jsonl("second.jsonl", problems[10:16])
    return tmp_path


def name_of(path):
    return benchmarks.stem(pathlib.Path(path), file_digest(pathlib.Path(path)))


def models(folder):
    paths = [*folder.glob("M*/manifest.json"), *folder.glob("M*/search.json")]
    return {str(path): path.read_bytes() for path in paths}


def test_all_models_of_a_finished_run_are_measured_and_none_is_made(here, capsys):
    run, before = here / "run", models(here / "run")
    whole = {n: files.read_json(run / f"eval/M{n}_test_greedy.json") for n in range(4)}
    names = ("first.jsonl", "second.jsonl")
    said = iterate.run(tiny_config.changed(eval__benchmarks=names), run)
    log = (run / "log.txt").read_text("utf-8")
    assert log.count(f"settings: eval.benchmarks was [], now {list(names)}") == 1
    assert models(run) == before and len(before) == 5
    stems = [name_of(path) for path in names]
    assert files.read_json(run / "eval/benchmarks.json") == {"names": stems}
    for number in range(4):
        for stem, part in zip(stems, (slice(10), slice(10, 16)), strict=True):
            found = files.read_json(run / f"eval/M{number}_{stem}_greedy.json")
            assert found["items"] == whole[number]["items"][part]
            assert found["grader"] == answers.VERSION
    assert not list((run / "eval").glob(f"M*_{stems[0]}_search*"))
    assert "benchmarks: greedy % [95 %]" in said and "mean [95 %]" in said
    assert "benchmarks: changes between models" in said and "M2 → M3" in said
    page = build.write(run).path.read_text("utf-8")
    assert "<h3>benchmarks: greedy % [95 %]</h3>" in page and "<td>second</td>" in page
    # The same command measures nothing again; without the setting, the tables go.
    capsys.readouterr()
    made = {path: path.stat().st_mtime_ns for path in run.glob("eval/M*.json")}
    iterate.run(tiny_config.changed(eval__benchmarks=names), run)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert "M3 eval second.jsonl: done already: greedy" in capsys.readouterr().err
    said = iterate.run(tiny_config.get_config(), run)
    assert "benchmarks:" not in said and not (run / "eval/benchmarks.json").exists()
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_files_are_read_before_anything_is_trained(here, capsys):
    """In a new run and in one that goes on, which stays as it is."""
    pathlib.Path("bad.jsonl").write_text('{"problem": "1*2+3"}\n')
    before = (here / "run/config.json").read_bytes()
    log = (here / "run/log.txt").read_bytes()
    for folder in ("run", "new"):
        named = "--config.eval.benchmarks=first.jsonl,bad.jsonl"
        config = f"--config={tiny_config.__file__}"
        assert command("run", config, f"--workdir={folder}", named) == 1
        said = capsys.readouterr().err
        assert "bad.jsonl:1: no answer" in said
        assert (said.count("settings: eval.benchmarks was ") == 1) == (folder == "run")
    assert (here / "run/config.json").read_bytes() == before
    assert (here / "run/log.txt").read_bytes() == log  # the change was refused
    assert not (here / "new").exists()
    pathlib.Path("bad.jsonl").write_text('{"problem": "1 \u00d7 2", "answer": 2}\n')
    with pytest.raises(ValueError, match="bad.jsonl: 1 of 1 problems hold characters"):
        iterate.run(tiny_config.changed(eval__benchmarks=("bad.jsonl",)), here / "new")
    assert not (here / "new").exists()


def test_rows_of_tensorflow_datasets_are_copied_and_measured(here):
    pytest.importorskip("tensorflow_datasets")
    rows = records.read_jsonl("first.jsonl", records.Problem)
    write = {"record_type": records.Problem, "data_dir": here / "tfds"}
    tfds_builder.write({"test": rows}, "my_set", **write)
    address = f"tfds:my_set/test?data_dir={here / 'tfds'}"
    run = copy_run(here / "copy")
    measured = stages.evaluate(run, 2, ("greedy",), (address,))[address]["greedy"]
    (copied,) = (here / "copy/eval/benchmarks").glob("my_set-test-????????.jsonl")
    kept = records.read_jsonl(copied, records.Problem)
    assert [row.problem for row in kept] == [row.problem for row in rows]
    path = here / f"copy/eval/M2_{name_of(copied)}_greedy.json"
    found = files.read_json(path)
    assert found["metrics"] == measured and measured["count"] == 10
    whole = files.read_json(here / "run/eval/M2_test_greedy.json")
    for item, theirs in zip(found["items"], whole["items"], strict=False):
        assert item["text"] == theirs["text"]
    with pytest.raises(ValueError, match="no dataset 'other' in .* not downloaded"):
        stages.evaluate(run, 2, ("greedy",), (address.replace("my_set", "other"),))


@pytest.mark.parametrize("mode", ["greedy", "search"])
def test_a_result_says_what_it_was_measured_with(finished, mode):
    found = files.read_json(finished / f"eval/M2_test_{mode}.json")
    c, t = tiny_config.get_config(), arithmetic.templates()
    longest = {"greedy": c.eval.max_tokens, "search": c.search.max_step_tokens}
    sampling = found["sampling"]
    assert sampling["max_tokens"] == longest[mode]
    assert bool(sampling["stops"]) == (mode == "search")
    assert all(t.step.partition("{n}")[0] in stop for stop in sampling["stops"])
    assert sampling["dtype"] == "float32"
    assert sampling["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert found["grader"] == answers.VERSION and found["prompts"]["step"] == t.step
    counts = [n for name, n in found["metrics"].items() if name.endswith("_count")]
    assert len(counts) > 3 and found["metrics"]["ungraded_count"] == 0


def test_names_of_result_files_lose_their_digest_unless_two_become_one():
    names = ["gsm8k-0a1b2c3d", "math-0a1b2c3d", "math-ffffffff"]
    assert list(benchmarks.short_names(names).values()) == ["gsm8k", *names[1:]]


def test_a_problem_that_is_there_twice_counts_twice_and_is_named(here, capsys):
    rows = records.read_jsonl("first.jsonl", records.Problem)[:3]
    kept = [{"problem": row.problem, "answer": row.answer} for row in rows]
    kept.append({"question": f" {rows[1].problem}  ", "answer": "0"})
    pathlib.Path("twice.jsonl").write_text("\n".join(map(json.dumps, kept)))
    run = copy_run(here / "copy")
    measured = stages.evaluate(run, 2, ("greedy",), ("twice.jsonl",))
    assert measured["twice.jsonl"]["greedy"]["count"] == 4
    words = (
        "twice.jsonl: 1 of 4 rows have the problem of an earlier row, twice-3 repeats "
        "twice-1 first; each row counts, as it does in the file."
    )
    assert words in (here / "copy/log.txt").read_text("utf-8")
    assert words in capsys.readouterr().err
    config = tiny_config.changed(eval__benchmarks=("twice.jsonl",))
    assert (
        Run(config, here / "copy", measures=True) and words in capsys.readouterr().err
    )
    task = solve.of_file(run, pathlib.Path("twice.jsonl"))
    assert len(task.problems) == 4 and words in capsys.readouterr().err
    assert (
        benchmarks.repeated("first", records.read_jsonl("first.jsonl", Problem)) == []
    )
