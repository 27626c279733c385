"""The judge of a run on files of labelled steps: PRM800K and ProcessBench."""

import json

import pytest
from runs import copy_run, kill

from stepjax.evaluation import judge_sets, stages, tables
from stepjax.lm import files
from stepjax.worlds import arithmetic

pytestmark = pytest.mark.usefixtures("quick_runs")
PROBLEMS = ["8*7+4*4+2", "5*3+1", "1*9+2*3+1*7+4", "2*3+3", "6*4+1*9+5"]


def bodies(problem):
    """The steps of a problem without their markers."""
    return [text.partition(": ")[2] for text in arithmetic.solve(problem).steps]


def wrong(step):
    place = step.index("=") + 1
    return f"{step[:place]}{(int(step[place]) + 3) % 10}{step[place + 1 :]}"


def processbench():
    rows = []
    for number, problem in enumerate(PROBLEMS):
        steps, label = bodies(problem), -1
        if number % 2:
            label = len(steps) - 1
            steps[label] = wrong(steps[label])
        rows.append(
            {"id": f"p{number}", "problem": problem, "steps": steps, "label": label}
        )
    return rows


def prm800k():
    rows = []
    for problem in PROBLEMS[:3]:
        groups = [
            {
                "completions": [
                    {"text": step, "rating": 1},
                    {"text": wrong(step), "rating": -1},
                ],
                "chosen_completion": 0,
            }
            for step in bodies(problem)
        ]
        rows.append({"question": {"problem": problem}, "label": {"steps": groups}})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def result(folder, name):
    (path,) = (folder / "eval").glob(f"M1_{name}-*_judge.json")
    return files.read_json(path)


def test_pairs_of_prm800k(tmp_path, capsys):
    run = copy_run(tmp_path / "run", "eval/*")
    file = write(tmp_path / "prm.jsonl", prm800k())
    found = stages.evaluate(run, 1, ("judge",), [file])[file]["judge"]
    kept = result(tmp_path / "run", "prm")
    assert kept["metrics"] == found and found["count"] == 6  # steps
    items = kept["items"]
    assert found["accuracy"] == sum(item["right"] for item in items) / len(items)
    assert len(items) == found["judgments"] == 12 and found["too_long"] == 0
    assert [item["answer"] for item in items] == ["A", "B"] * 6
    assert items[0]["candidates"] == [
        f"Step 1: {bodies(PROBLEMS[0])[0]}",
        f"Step 1: {wrong(bodies(PROBLEMS[0])[0])}",
    ]
    (row,) = tables.judge_sets("M1", {file: {"judge": found}})
    assert row["pairs"] == "6" and "F1 [95 %]" not in row
    again = stages.evaluate(run, 1, ("judge",), [file])[file]["judge"]
    assert again == found and "done already: judge" in capsys.readouterr().err


def test_rows_that_are_too_long_are_counted(tmp_path, capsys):
    run = copy_run(tmp_path / "run", "eval/*")
    rows = prm800k()
    rows[0]["question"]["problem"] += " " * 64
    file = write(tmp_path / "prm.jsonl", rows)
    found = stages.evaluate(run, 1, ("judge",), [file])[file]["judge"]
    assert found["count"] == 4 and found["too_long"] == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "4 of 12 comparisons and solutions exceed judge.context_tokens=64" in said
    (warning,) = result(tmp_path / "run", "prm")["warnings"]
    assert "4 of 12" in warning


def test_a_judge_of_single_steps_finds_first_errors_also_after_a_kill(tmp_path):
    file = write(tmp_path / "bench.jsonl", processbench())
    single = {
        "judge__score": "pointwise",
        "judge__temperature": 2.0,  # verdicts that differ
        "search__slots": 2,
    }
    run = copy_run(tmp_path / "one", "eval/*", **single)
    whole = stages.evaluate(run, 1, ("judge",), [file])[file]["judge"]
    assert whole["first_error_count"] == 2 and whole["no_error_count"] == 3
    items = result(tmp_path / "one", "bench")["items"]
    for item, row in zip(items, processbench(), strict=True):
        assert item["answer"] == row["label"]
        assert item["right"] == (item["prediction"] == row["label"])
        if item["prediction"] == len(item["verdicts"]) - 1:
            assert item["verdicts"][-1] == "B"
        assert set(item["verdicts"][:-1]) <= {"A"}
    assert len({item["prediction"] for item in items}) > 1
    (row,) = tables.judge_sets("M1", {file: {"judge": whole}})
    assert row["erroneous"] == "2" and row["F1 [95 %]"] and "pairs" not in row

    run = copy_run(tmp_path / "two", "eval/*", **single)
    with pytest.raises(KeyboardInterrupt):
        with kill(judge_sets, "_located", lambda count, args: count == 3):
            stages.evaluate(run, 1, ("judge",), [file])
    with kill(judge_sets, "_located", lambda count, args: False) as calls:
        again = stages.evaluate(run, 1, ("judge",), [file])[file]["judge"]
    assert len(calls) == 3  # of five: two were saved
    assert again == whole
    assert result(tmp_path / "two", "bench")["items"] == items


def test_what_a_judge_cannot_judge_is_refused(tmp_path):
    run = copy_run(tmp_path / "run", "eval/*")
    file = write(tmp_path / "bench.jsonl", processbench())
    with pytest.raises(ValueError, match="cannot find a first error: a comparison"):
        stages.evaluate(run, 1, ("judge",), [file])
    rows = prm800k()[:1]
    rows[0]["question"]["problem"] += " " * 64
    file = write(tmp_path / "long.jsonl", rows)
    with pytest.raises(ValueError, match="no row fits into judge.context_tokens=64"):
        stages.evaluate(run, 1, ("judge",), [file])
    file = write(tmp_path / "plain.jsonl", [{"problem": "1*3+1", "answer": "4"}])
    with pytest.raises(ValueError, match="no labelled solution and no comparison"):
        stages.evaluate(run, 1, ("judge",), [file])
    assert not [*(tmp_path / "run" / "eval").glob("*_judge.json")]


def test_comparisons_do_not_look_for_first_errors_and_say_so(tmp_path, capsys):
    run = copy_run(tmp_path / "run", "eval/*")
    rows = processbench()
    steps = [*rows[1]["steps"][:-1], bodies(PROBLEMS[1])[-1]]
    rows.append({"id": "other", "problem": PROBLEMS[1], "steps": steps, "label": -1})
    file = write(tmp_path / "bench.jsonl", rows)
    found = stages.evaluate(run, 1, ("judge", "greedy"), [file])[file]
    assert found.keys() == {"judge"}  # it has no answers to problems
    assert found["judge"]["count"] == 1 and "first_error_f1" not in found["judge"]
    said = " ".join(capsys.readouterr().err.split())
    assert "the first errors of 6 solutions are not looked for" in said


@pytest.mark.parametrize(
    "changes", [{"judge__by": "prm"}, {"judge__kind": "ratings"}], ids=["prm", "srlm"]
)
def test_a_run_whose_model_does_not_judge_steps(tmp_path, changes, monkeypatch):
    from stepjax.evaluation import judge_stage

    run = copy_run(tmp_path / "run", "eval/*")
    options = {name.partition("__")[2]: value for name, value in changes.items()}
    judge = run.settings.judge.__class__(**{**vars(run.settings.judge), **options})
    settings = run.settings.__class__(**{**vars(run.settings), "judge": judge})
    monkeypatch.setattr(run, "settings", settings)
    with pytest.raises(ValueError, match="the model does not judge steps itself"):
        judge_stage.check(run, tmp_path / "x.jsonl")
