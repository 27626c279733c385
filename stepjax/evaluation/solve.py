"""``stepjax solve``: problems solved by test-time methods, and what that takes.

Each method of `stepjax.evaluation.methods` is measured with each n. For every pair of
them there are

    eval/M3_test_solve-majority-8.json    accuracy and tokens per problem
    eval/M3_test_solve-majority-8.jsonl   one line per problem: solution, answer, tokens

What is there already is not measured again, and work that was interrupted goes on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepjax import interrupts, own_import, records
from stepjax.evaluation import answers, benchmarks, grading
from stepjax.evaluation.methods import METHODS, STEPWISE
from stepjax.evaluation.solver import Solver, Tokens
from stepjax.initial_data.formats import files as row_files
from stepjax.initial_data.formats import sources as formats
from stepjax.lm import files, hosts
from stepjax.prompts import Templates
from stepjax.records import Problem, Question
from stepjax.run import checks, judges, rundir
from stepjax.run.journal import Journal, Row, of_rows
from stepjax.run.run import Run
from stepjax.trajectory import Candidate

_ANSWERS = {"answer", "final_answer", "solution"}  # fields that may hold an answer


class Task(NamedTuple):
    """Problems to solve.

    Attributes:
      name: of their file in the names of results.
      digest: of their file, or of their text.
      problems: with answers, or as questions without.
    """

    name: str
    digest: str
    problems: Sequence[Problem | Question]


class Choice(NamedTuple):
    """A method and how much it may use.

    Attributes:
      method: a key of `METHODS`.
      n: solutions, beams or searches; in the paper's search, candidates per step.
    """

    method: str
    n: int

    def __str__(self) -> str:
        return f"{self.method}-{self.n}"


class Solved(NamedTuple):
    """What a method found.

    Attributes:
      choice: the method.
      metrics: means over the problems.
      items: one per problem.
    """

    choice: Choice
    metrics: dict[str, float]
    items: list[dict[str, Any]]


def choices(methods: Sequence[str], counts: Sequence[int]) -> list[Choice]:
    """Returns each method with each n that it can use, in order.

    There is one greedy solution, and a search that compares candidates needs two.

    Args:
      methods: keys of `METHODS`.
      counts: values of n.

    Raises:
      ValueError: when nothing is left.
    """
    found = [
        Choice(method, 1 if method == "greedy" else n)
        for method in methods
        for n in counts
        if n > 1 or method != "step_search"
    ]
    if not found:
        raise ValueError(
            f"n={list(counts)} for {list(methods)}; expected 2 or more, because a "
            "search compares that many candidates for a step."
        )
    return list(dict.fromkeys(found))


def check(run: Run, asked: Sequence[Choice]) -> None:
    """Raises ValueError for methods that the settings of a run do not allow."""
    settings = run.settings
    stepwise = [str(choice) for choice in asked if choice.method in STEPWISE]
    if run.kind.name == "ratings" and stepwise:
        raise ValueError(
            f"{', '.join(stepwise)} with judge.kind='ratings'; expected methods that "
            f"judge whole solutions, as this judge does, and not {', '.join(STEPWISE)}."
        )
    if own_import.named(settings.search.propose_by):
        raise ValueError(
            f"search.propose_by={settings.search.propose_by!r}; expected 'self', "
            "because `stepjax solve` counts the tokens that the model writes. Add "
            "--config.search.propose_by=self."
        )


def tasks(run: Run, named: Sequence[str], text: str = "") -> list[Task]:
    """Returns what to solve, read and checked before a model is loaded.

    Args:
      run: the run.
      named: "test", the run's own problems, and files of problems; see
        `benchmarks.file_of`.
      text: the one problem to solve instead; "" for none.

    Raises:
      ValueError: for a row that cannot be read, or a problem that does not fit.
    """
    if text:
        return [of_text(run, text)]
    folder, texts = run.dir.path / "eval", run.codec.templates
    return [
        own_test(run)
        if name == "test"
        else of_file(run, benchmarks.file_of(name, folder, texts))
        for name in named
    ]


def own_test(run: Run) -> Task:
    """Returns the run's own test problems."""
    path = run.dir.path / "data" / "test.jsonl"
    problems = run.dir.read("test", Problem)
    return Task("test", rundir.file_digest(path), _first(run, problems))


def of_file(run: Run, path: pathlib.Path) -> Task:
    """Reads a file of problems, with answers or without, and checks their lengths.

    Raises:
      ValueError: for a row that cannot be read, or a problem that does not fit.
    """
    digest = rundir.file_digest(path)
    problems = _first(run, read(path, run.codec.templates))
    _check_lengths(run, path.name, problems)
    return Task(benchmarks.stem(path, digest), digest, problems)


def of_text(run: Run, text: str) -> Task:
    """Returns one problem as a task.

    Raises:
      ValueError: when it does not fit.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    problems = [Question(f"problem-{digest[:8]}", text)]
    _check_lengths(run, "--problem", problems)
    return Task(f"problem-{digest[:8]}", digest, problems)


def read(path: pathlib.Path, texts: Templates) -> list[Problem] | list[Question]:
    """Reads problems; as questions where no row of the file has an answer.

    Args:
      path: see `benchmarks.read`.
      texts: templates of the run.

    Raises:
      ValueError: for a row that cannot be read.
    """
    rows = row_files.rows(path, row_files.Rejects(collect=False))
    names = {name.strip().lower() for _, row in rows for name in row}
    kind = "problem" if names & _ANSWERS else "question"
    return formats.read(path, "benchmark", kind, texts)


def _first(run: Run, problems: list) -> list:
    return problems[: run.settings.eval.search_count or None]


def _check_lengths(run: Run, name: str, problems: Sequence[Problem | Question]) -> None:
    read = {name: problems}
    checks.check_budgets(run.settings, run.codec, read)
    checks.check_window(run.settings, run.codec, read, run.model.config.sliding_window)
    warnings = checks.check_characters(run.codec, read)
    for warning in warnings + benchmarks.repeated(name, problems):
        run.monitor.say(warning)


def solve(run: Run, number: int, task: Task, asked: Sequence[Choice]) -> list[Solved]:
    """Solves problems with M`number` by each method, or reads what was solved before.

    Args:
      run: the run.
      number: of the model.
      task: the problems.
      asked: from `choices`.

    Raises:
      ValueError: see `check`.
      interrupts.Stopped: a signal asked to stop; what was done is saved.
    """
    check(run, asked)
    inputs = {"benchmark": task.digest}
    inputs |= run.dir.model_digest(number) if number else {}
    inputs |= answers.inputs() | judges.inputs(run)
    folder = run.dir.path / "eval"
    stem = stem_of(run, number, task)
    stages = {
        choice: run.dir.measurement("solve", folder / f"{stem}-{choice}.json", inputs)
        for choice in asked
    }
    todo = [choice for choice in asked if not stages[choice].done]
    if todo:
        interrupts.check("all that was solved is saved")
        files.make_folder(folder)  # every host may be the first here
        journals = {}
        for choice in todo:
            path = folder / f"{stem}-{choice}.partial.jsonl"
            journals[choice] = of_rows(path, stages[choice].identity, run.monitor.say)
        _work(run, number, task, journals)
        for choice, journal in journals.items():
            journal.join()
            items = [journal.closed[p].found for p in range(len(task.problems))]
            name = f"{stem}-{choice}.jsonl"
            if hosts.first():
                records.write_jsonl(folder / name, items)
            stages[choice].commit(
                [name],
                prompts=dataclasses.asdict(run.codec.templates),
                grader=answers.VERSION,
                grading=run.settings.eval.grading,
                metrics=metrics_of(items),
            )
    elif asked:
        run.tell(f"M{number} solve {task.name}: done already")
    return [
        Solved(
            choice,
            stages[choice].done["metrics"],
            [row for _, row in records.read_objects(folder / f"{stem}-{choice}.jsonl")],
        )
        for choice in asked
    ]


def stem_of(run: Run, number: int, task: Task) -> str:
    """Returns what the names of all results of a model and a task begin with."""
    return f"M{number}_{task.name}{run.dir.variant('solve', number)}_solve"


def _work(
    run: Run, number: int, task: Task, journals: Mapping[Choice, Journal]
) -> None:
    """Solves batches of problems, each by all methods, going on where journals end.

    Args:
      run: the run.
      number: of the model.
      task: the problems.
      journals: of each choice; their rows are named by the places of the problems.
    """
    mine = hosts.share(range(len(task.problems)))
    total = len(mine) * len(journals)
    done = sum(p in journal.closed for journal in journals.values() for p in mine)
    progress = run.monitor.progress(f"M{number} solve", total, "answer", done)
    with contextlib.ExitStack() as stack:
        solver = functools.cache(lambda: _open(run, number, list(journals), stack))
        advance = stack.enter_context(progress)
        stack.enter_context(interrupts.apart())
        for at in range(0, len(mine), run.slots):
            batch, begun = mine[at : at + run.slots], False
            for choice, journal in journals.items():
                missing = sum(p not in journal.closed for p in batch)
                if not missing:
                    continue
                if not begun:
                    solver().take([_question(task.problems[p]) for p in batch])
                    begun = True
                part = METHODS[choice.method](solver(), choice.n)
                items = [
                    _item(
                        task.problems[p],
                        part.found[slot],
                        part.tokens[slot],
                        strict=run.settings.eval.strict,
                    )
                    for slot, p in enumerate(batch)
                ]
                journal.add(list(map(Row, batch, items)), {})
                done += missing
                known = [journal.closed[p].found for p in mine if p in journal.closed]
                advance(missing, _note(choice, known))
                if done < total:
                    interrupts.check(f"{done} of {total} answers are saved")


def _open(
    run: Run, number: int, todo: Sequence[Choice], stack: contextlib.ExitStack
) -> Solver:
    most: dict[bool, int] = {True: 1, False: 1}
    for choice in todo:
        stepwise = choice.method in STEPWISE
        most[stepwise] = max(most[stepwise], choice.n)
    params = run.sampling_params(number)
    return Solver(run, params, stack, samples=most[False], searches=most[True])


def _question(problem: Problem | Question) -> Question:
    """Takes the answer away: no method sees it."""
    return Question(problem.id, problem.problem)


def _note(choice: Choice, items: Sequence[dict[str, Any]]) -> str:
    known = items and "right" in items[0]
    return f"{choice}: {grading.right_so_far(items)}" if known else str(choice)


def _item(
    problem: Problem | Question,
    solution: Candidate,
    tokens: Tokens,
    *,
    strict: bool = False,
) -> dict[str, Any]:
    item = {"id": problem.id, "problem": problem.problem}
    if isinstance(problem, Problem):
        item |= grading.graded(problem, solution.text, strict=strict)
    else:
        item["prediction"] = answers.extract(solution.text, strict=strict)
    return item | {"text": solution.text, "tokens": tokens._asdict()}


def metrics_of(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns accuracy with its interval, where answers are known, and mean tokens.

    Args:
      items: of one method: "right", if known, and "tokens".

    Returns:
      "tokens" is the budget that was used per problem: what the model wrote as a
      solver and as a judge. "read_tokens" are counted apart.
    """
    metrics = {"count": len(items)}
    metrics |= grading.accuracy(items) if items and "right" in items[0] else {}
    means = {
        f"{name}_tokens": statistics.fmean(item["tokens"][name] for item in items)
        for name in Tokens._fields
    }
    budget = means["solver_tokens"] + means["judge_tokens"]
    return {**metrics, "tokens": budget, **means}
