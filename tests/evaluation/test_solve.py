"""``stepjax solve`` on a tiny run: results, interruptions, files, errors."""

import json
import shutil
import types

import pytest
from runs import command, contents, copy_run, kill

from stepjax import records
from stepjax.evaluation import answers, solve
from stepjax.evaluation.methods import METHODS
from stepjax.evaluation.solve import Choice
from stepjax.evaluation.solver import Solver, Tokens
from stepjax.initial_data.formats import own, tfds_builder
from stepjax.lm import files
from stepjax.records import Problem, Question
from stepjax.run.journal import Journal
from stepjax.worlds import arithmetic

pytestmark = pytest.mark.usefixtures("quick_runs")

ASKED = [Choice("greedy", 1), Choice("majority", 2), Choice("best_of_n", 2)]


@pytest.fixture(scope="module")
def solved(quick_runs, tmp_path_factory):
    """The folder of a run whose M2 has solved 12 problems by three methods."""
    folder = tmp_path_factory.mktemp("solved") / "run"
    run = copy_run(folder, eval__search_count=12)
    found = solve.solve(run, 2, solve.own_test(run), ASKED)
    return types.SimpleNamespace(folder=folder, run=run, found=found)


def rows_of(folder, choice):
    path = folder / f"eval/M2_test_solve-{choice}.jsonl"
    return [row for _, row in records.read_objects(path)]


def test_each_problem_has_a_solution_and_what_it_took(solved):
    problems = solved.run.dir.read("test", Problem)[:12]
    for choice in ASKED:
        rows = rows_of(solved.folder, choice)
        assert [row["id"] for row in rows] == [p.id for p in problems]
        for row, problem in zip(rows, problems, strict=True):
            assert row["answer"] == problem.answer
            assert row["prediction"] == answers.extract(row["text"])
            right = answers.equivalent(row["prediction"], problem.answer)
            assert row["right"] == right
            assert row["tokens"]["solver"] > 0 and row["tokens"]["read"] > 0
            assert choice.method == "best_of_n" or row["tokens"]["judge"] == 0
    judged = [row["tokens"]["judge"] for row in rows_of(solved.folder, ASKED[2])]
    assert sum(judged) > 0


def test_a_dataset_of_tfds_is_read_like_a_file(solved, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    problems = solved.run.dir.read("test", Problem)[:2]
    write = {"record_type": Problem, "data_dir": tmp_path}
    tfds_builder.write({"test": problems}, "my_set", **write)
    named = f"tfds:my_set/test?data_dir={tmp_path}"
    (task,) = solve.tasks(solved.run, [named])
    assert [p.problem for p in task.problems] == [p.problem for p in problems]


def test_metrics_are_means_over_the_problems(solved):
    for choice in ASKED:
        result = files.read_json(solved.folder / f"eval/M2_test_solve-{choice}.json")
        rows, metrics = rows_of(solved.folder, choice), result["metrics"]
        assert metrics["accuracy"] == sum(row["right"] for row in rows) / 12
        for name in ("solver", "judge", "read"):
            mean = sum(row["tokens"][name] for row in rows) / 12
            assert metrics[f"{name}_tokens"] == pytest.approx(mean)
        budget = metrics["solver_tokens"] + metrics["judge_tokens"]
        assert metrics["tokens"] == pytest.approx(budget)
    assert [one.choice for one in solved.found] == ASKED


def test_greedy_solves_as_the_evaluation_does(solved):
    known = files.read_json(solved.folder / "eval/M2_test_greedy.json")["items"][:12]
    for row, item in zip(rows_of(solved.folder, ASKED[0]), known, strict=True):
        assert (row["text"], row["right"]) == (item["text"], item["right"])
        assert row["tokens"]["solver"] == item["tokens"]


def test_what_is_there_is_not_solved_again(solved, capsys, monkeypatch):
    before = contents(solved.folder)
    monkeypatch.setattr(solve, "_work", None)
    again = solve.solve(solved.run, 2, solve.own_test(solved.run), ASKED)
    assert again == solved.found and contents(solved.folder) == before
    assert "M2 solve test: done already" in capsys.readouterr().err


def test_results_of_another_grader_are_solved_again(solved, tmp_path, monkeypatch):
    folder, asked = tmp_path / "run", ASKED[:1]
    run = copy_run(folder, eval__search_count=12)
    shutil.copytree(solved.folder / "eval", folder / "eval", dirs_exist_ok=True)
    path = folder / f"eval/M2_test_solve-{ASKED[0]}.json"
    assert files.read_json(path)["grader"] == answers.VERSION
    monkeypatch.setattr(answers, "VERSION", answers.VERSION + 1)
    with kill(Journal, "add", None) as calls:
        assert solve.solve(run, 2, solve.own_test(run), asked) == solved.found[:1]
        solve.solve(run, 2, solve.own_test(run), asked)
    assert len(calls) == 2  # batches, once
    assert files.read_json(path)["grader"] == answers.VERSION


def test_strict_results_are_results_of_their_own(solved, tmp_path):
    run = copy_run(tmp_path / "run", eval__search_count=12, eval__grading="strict")
    name = f"eval/M2_test_solve-{ASKED[0]}.json"
    shutil.copy(solved.folder / name, tmp_path / "run" / name)
    with kill(Journal, "add", None) as calls:
        (found,) = solve.solve(run, 2, solve.own_test(run), ASKED[:1])
    assert len(calls) == 2 and found.items == solved.found[0].items  # all have a box
    kept = [files.read_json(f / name) for f in (solved.folder, tmp_path / "run")]
    assert [one["grading"] for one in kept] == ["lenient", "strict"]
    texts = ["#### 7", r"\boxed 7", r"\boxed{x = 7}", r"\boxed{7.0}"]
    problem = Problem("a", "3+4?", "7")
    for text, right in zip(texts, (False, False, False, True), strict=True):
        solution = types.SimpleNamespace(text=text)
        assert solve._item(problem, solution, Tokens())["right"]
        item = solve._item(problem, solution, Tokens(), strict=True)
        assert item["right"] == right


def test_a_file_with_another_tolerance_is_another_task(solved, tmp_path):
    tasks = []
    for error in ("0.1", "0.2"):
        row = {"problem": "1*2+3", "answer": "5", "tolerance": error}
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        tasks.append(solve.of_file(solved.run, tmp_path / "p.jsonl"))
    assert tasks[0].digest != tasks[1].digest and tasks[0].name != tasks[1].name


@pytest.mark.parametrize("unit", [2, 4, 5])
def test_killed_and_resumed_equals_unbroken(solved, tmp_path, unit):
    run = copy_run(tmp_path / "run", eval__search_count=12)
    task = solve.own_test(run)
    # Eight problems in flight: two batches of three methods.
    with kill(Journal, "add", lambda n, args: n == unit) as calls:
        with pytest.raises(KeyboardInterrupt):
            solve.solve(run, 2, task, ASKED)
    assert len(calls) == unit and not list((tmp_path / "run/eval").glob("*solve*.json"))
    with kill(Journal, "add", None) as calls:
        solve.solve(run, 2, task, ASKED[:1])  # loses nothing of the other methods
        solve.solve(run, 2, task, ASKED)
    assert len(calls) == 6 - (unit - 1)
    for choice in ASKED:
        assert rows_of(tmp_path / "run", choice) == rows_of(solved.folder, choice)
    assert not list((tmp_path / "run/eval").glob("*partial*"))


def test_every_method_solves_with_the_real_model(solved):
    task = solve.own_test(solved.run)
    task = task._replace(problems=task.problems[:3], digest="3", name="three")
    asked = solve.choices(list(METHODS), [2])
    found = solve.solve(solved.run, 2, task, asked)
    assert [one.choice.method for one in found] == list(METHODS)
    for one in found:
        assert one.metrics["count"] == len(one.items) == 3
        judges = one.choice.method not in ("greedy", "majority")
        assert one.metrics["judge_tokens"] > 0 or not judges
    most = {one.choice.method: one.metrics["tokens"] for one in found}
    assert most["greedy"] < most["majority"] <= most["weighted"] == most["best_of_n"]


# What is solved.


def test_choices_leave_out_what_a_method_cannot_use():
    asked = solve.choices(["greedy", "majority", "step_search"], [1, 4])
    assert list(map(str, asked)) == [
        "greedy-1",
        "majority-1",
        "majority-4",
        "step_search-4",
    ]
    with pytest.raises(ValueError, match="2 or more"):
        solve.choices(["step_search"], [1])


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_problems_may_have_no_answers(tmp_path):
    texts = arithmetic.templates()
    rows = {"id": "a", "problem": "1*1+3"}, {"id": "b", "question": "2*2+0"}
    path = write(tmp_path / "asked.jsonl", *rows)
    assert solve.read(path, texts) == [Question("a", "1*1+3"), Question("b", "2*2+0")]
    path = write(path, rows[0] | {"answer": "4"})
    assert solve.read(path, texts) == [Problem("a", "1*1+3", "4")]
    # A file with some answers needs all of them.
    with pytest.raises(ValueError, match="no answer"):
        solve.read(write(path, rows[0] | {"answer": "4"}, rows[1]), texts)
    assert own.parse(rows[0], "", texts, to=Question) == [Question("a", "1*1+3")]


def test_an_answer_is_graded_as_its_benchmark_states():
    problem = Problem("a", "How far?", "3.1", tolerance="0.1", unit="km")
    solution = types.SimpleNamespace(text=r"\boxed{3.15\text{ km}}")
    item = solve._item(problem, solution, Tokens(1, 0, 1))
    assert item["right"] and item["tolerance"] == "0.1" and item["unit"] == "km"
    solution.text = r"\boxed{3.1\text{ kg}}"
    assert not solve._item(problem, solution, Tokens(1, 0, 1))["right"]
    solution.text = rf"\boxed{{{'7' * 500}}}"
    assert "characters" in solve._item(problem, solution, Tokens(1, 0, 1))["limit"]


def test_a_problem_of_the_command_line_is_printed(solved, capsys):
    arguments = ["solve", f"--workdir={solved.folder}", "--model=M2", "--samples=2"]
    asked = [*arguments, "--problem=1*1+3*1+2", "--method=greedy,best_of_n"]
    assert command(*asked) == 0
    said = capsys.readouterr()
    (path,) = solved.folder.glob("eval/M2_problem-*greedy-1.jsonl")
    (row,) = (json.loads(line) for line in path.read_text().splitlines())
    assert row["problem"] == "1*1+3*1+2" and "right" not in row
    assert f"greedy-1:\n{row['text']}\nanswer: " in said.out
    assert f"({row['tokens']['solver']} tokens written, 0 judged" in said.out
    assert "best_of_n-2:\n" in said.out
    # The same again is read from the files.
    assert command(*asked) == 0
    assert capsys.readouterr().out == said.out


def test_a_table_at_equal_budgets_and_a_plot_are_written(solved, tmp_path, capsys):
    folder = shutil.copytree(solved.folder, tmp_path / "run")
    arguments = ["solve", f"--workdir={folder}", "--model=M2", "--samples=2"]
    assert command(*arguments, "--method=greedy,majority,best_of_n") == 0
    said = capsys.readouterr()
    assert "M2 test: 12 problems" in said.out and "budget of tokens" in said.out
    text = (folder / "eval/M2_test_solve.md").read_text()
    for one in solved.found:
        assert f"| {one.choice.method} | {one.choice.n} | " in text
        assert f"{100 * one.metrics['accuracy']:.1f} [" in text
    assert (folder / "eval/M2_test_solve.png").exists()
    assert "done already" in said.err


def test_the_stored_results_are_of_these_settings(solved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(solved.folder, folder)
    run = copy_run(tmp_path / "other", eval__search_count=12, eval__max_tokens=20)
    shutil.copytree(folder / "eval", tmp_path / "other/eval", dirs_exist_ok=True)
    with kill(Solver, "take", lambda n, args: True), pytest.raises(KeyboardInterrupt):
        solve.solve(run, 2, solve.own_test(run), ASKED[:1])


# What cannot be solved.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method=majorty"], "--method=majorty; expected one or more of greedy,maj"),
        (["--method=majorty"], 'did you mean "majority"'),
        (["--samples=0"], "--samples=0; expected whole numbers from 1 to 9999"),
        (["--samples=2,x"], "--samples=2,x; expected whole numbers"),
        (["--samples=1"], "--samples=1 with --method=step_search; expected 2 or more"),
        (["--problem= "], "--problem is empty; expected the text of a problem"),
        (["--problem=1", "--benchmark=test"], "--problem and --benchmark are given"),
        (["--benchmark=x.jsonl"], "--benchmark=x.jsonl: no such file"),
        (["--mode=greedy"], "--mode: `stepjax solve` does not read this"),
        (["--model=M9"], "--model=M9; expected M0 to M3"),
    ],
)
def test_wrong_arguments(finished, capsys, no_compilation, options, words):
    assert command("solve", f"--workdir={finished}", *options) == 2
    assert words in capsys.readouterr().err


def test_a_problem_that_does_not_fit_is_refused_before_a_model_is_loaded(
    finished, capsys, monkeypatch
):
    monkeypatch.setattr(Solver, "__init__", None)
    asked = f"--problem={'+'.join(['1*1'] * 60)}"
    assert command("solve", f"--workdir={finished}", asked) == 1
    assert "search.context_tokens=64" in capsys.readouterr().err


def test_a_judge_of_whole_solutions_takes_no_steps(tmp_path):
    run = types.SimpleNamespace(
        kind=types.SimpleNamespace(name="ratings"),
        settings=types.SimpleNamespace(search=types.SimpleNamespace(propose_by="self")),
    )
    solve.check(run, [Choice("best_of_n", 4)])
    with pytest.raises(ValueError, match="beam-2, dvts-4 with judge.kind='ratings'"):
        solve.check(run, [Choice("beam", 2), Choice("majority", 2), Choice("dvts", 4)])
    run.kind.name, run.settings.search.propose_by = "comparisons", "mine:write"
    with pytest.raises(ValueError, match="propose_by='mine:write'; expected 'self'"):
        solve.check(run, [Choice("greedy", 1)])
