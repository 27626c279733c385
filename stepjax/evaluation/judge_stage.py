"""The evaluation stage "judge": held-out rows of the run, and files of judged steps."""

import collections
import functools
import pathlib
from collections.abc import Callable, Sequence

from stepjax import pointwise, records
from stepjax.evaluation import diagnose, grading, judge_sets
from stepjax.evaluation.judge_sets import JudgeSet
from stepjax.run import checks, judge_rules, judges
from stepjax.run.journal import of_rows
from stepjax.run.run import Run


def held_out(
    run: Run, number: int, params, file: pathlib.Path, partial, *, measure: Callable
) -> dict:
    """Measures the judge on the run's own held-out rows.

    Args:
      run: the run.
      number: of the model.
      params: function that returns its parameters.
      file: the held-out rows.
      partial: path and identity of the journal.
      measure: `stages.measured_rows`.

    Returns:
      {"metrics", "items"}.
    """
    every = records.read_jsonl(file, run.kind.judgments.record)
    rows = [row for row in every if _fits(run, row.problem, row.steps)]
    left_out = len(every) - len(rows)
    if left_out:
        run.monitor.say(
            f"eval: {left_out} of {len(every)} held-out rows exceed "
            f"judge.context_tokens={run.settings.judge.context_tokens} and are left "
            "out."
        )
    sampler = judges.open_sampler(run, params(), run.settings.judge.context_tokens)
    ask = functools.partial(
        grading.judge_accuracy,
        judges.self_judge(run, sampler, rows=1),
        run.codec,
        slots=run.slots,
        judgments=run.kind.judgments,
    )
    name = f"M{number} eval judge"
    journal = of_rows(*partial, run.monitor.say)
    items = measure(run, name, "judgment", rows, ask, sampler, journal)
    metrics = grading.judge_metrics(items) | {"left_out": left_out}
    if run.kind.mistake:
        metrics |= _by_mistake(run, rows, items)
    return {"metrics": metrics, "items": items}


def _fits(run: Run, problem: str, steps: Sequence[str]) -> bool:
    """Whether the judge's context of a step fits into `judge.context_tokens`."""
    ids = [run.codec.step(text) for text in steps]
    context = run.kind.judgments.context(run.codec, problem, ids)
    return len(context) <= run.settings.judge.context_tokens


def _by_mistake(run: Run, rows: Sequence, items: Sequence[dict]) -> dict[str, float]:
    """Returns the judge's accuracy on held-out comparisons by the mistake of a step."""
    by_kind: dict[str, list[dict]] = collections.defaultdict(list)
    for row, item in zip(rows, items, strict=True):
        wrong = row.b if row.verdict == "A" else row.a
        kind = run.kind.mistake(row.problem, row.steps, wrong)
        by_kind[diagnose.in_metrics(kind)].append(item)
    return {
        f"{name}_{kind}": value
        for kind in sorted(by_kind)
        for name, value in grading.accuracy(by_kind[kind]).items()
        if name in ("accuracy", "count")
    }


# Files of judged steps.


def check(run: Run, path: pathlib.Path) -> None:
    """Checks that the run's judge can judge a file, before a model is loaded.

    Raises:
      ValueError: for a run whose model does not judge steps; for a file of another
        kind; and for one that holds nothing which the judge can judge.
    """
    settings = run.settings.judge
    if settings.kind != "comparisons" or judge_rules.is_foreign(settings.by):
        raise ValueError(
            f"--mode=judge --benchmark={path}: with judge.kind={settings.kind!r} and "
            f"judge.by={settings.by!r} the model does not judge steps itself; expected "
            "judge.kind='comparisons' and judge.by='self'."
        )
    found = judge_sets.read(path, run.codec.templates)
    if not found.comparisons and not _judges_alone(run):
        raise ValueError(
            f"--benchmark={path}: no two of its {len(found.solutions)} solutions go on "
            "differently behind the same steps, so there is no pair to compare, and "
            f"judge.score={settings.score!r} cannot find a first error: a comparison "
            "needs a second version of a step. Expected a file with pairs, such as "
            "PRM800K, or a judge of single steps (judge.score='pointwise')."
        )
    if not any(_fitting(run, found)):
        raise ValueError(
            f"--benchmark={path}: no row fits into judge.context_tokens="
            f"{settings.context_tokens}; expected rows whose problem and steps do. "
            "Raise judge.context_tokens."
        )
    rows = found.solutions or found.comparisons
    for warning in checks.check_characters(run.codec, {path.name: rows}):
        run.monitor.say(warning)


def _fitting(run: Run, every: JudgeSet) -> JudgeSet:
    """Returns what the judge can judge: what fits, and solutions if it judges alone."""
    solutions = every.solutions if _judges_alone(run) else []
    return JudgeSet(
        [row for row in every.comparisons if _fits(run, row.problem, row.steps)],
        [row for row in solutions if _fits(run, row.problem, row.steps[:-1])],
    )


def _judges_alone(run: Run) -> bool:
    return run.settings.judge.score == pointwise.SCORE


def of_file(
    run: Run, number: int, params, file: pathlib.Path, partial, *, measure: Callable
) -> dict:
    """Measures the judge on a file of judged steps; see `judge_sets`.

    Comparisons and solutions whose longest context exceeds `judge.context_tokens` are
    not judged. "too_long", in the metrics, counts them.

    Args:
      run: the run.
      number: of the model.
      params: function that returns its parameters.
      file: see `judge_sets.form`.
      partial: path and identity of the journal.
      measure: `stages.measured_rows`.

    Returns:
      {"metrics", "items", "warnings"}. The items of comparisons are those of
      `grading.judge_accuracy`, and the items of solutions those of `judge_sets.locate`.
    """
    every = judge_sets.read(file, run.codec.templates)
    pairs, solutions = _fitting(run, every)
    capacity, warnings = run.settings.judge.context_tokens, []
    asked = len(every.solutions) if _judges_alone(run) else 0
    if asked < len(every.solutions):
        warnings.append(
            f"{file.name}: the first errors of {len(every.solutions)} solutions are "
            "not looked for, because a comparison needs a second version of a step. "
            "judge.score='pointwise' judges single steps."
        )
    rows = [*pairs, *solutions]
    too_long = len(every.comparisons) + asked - len(rows)
    if too_long:
        warnings.append(
            f"{file.name}: {too_long} of {len(rows) + too_long} comparisons and "
            f"solutions exceed judge.context_tokens={capacity} and are not judged."
        )
    sampler = judges.open_sampler(run, params(), capacity)
    ask = functools.partial(_ask, run, judges.self_judge(run, sampler, rows=1))
    journal = of_rows(*partial, run.monitor.say)
    unit = "solution" if not pairs else "judgment" if not solutions else "row"
    name = f"M{number} eval judge {file.stem}"
    items = measure(run, name, unit, rows, ask, sampler, journal)
    count = len(pairs)
    metrics = judge_sets.metrics(pairs, items[:count], items[count:])
    metrics["too_long"] = too_long
    return {"metrics": metrics, "items": items, "warnings": warnings}


def _ask(run: Run, judge, rows: Sequence, *, on_done: Callable) -> list[dict]:
    """Judges the comparisons, then the solutions, of some rows."""
    judgments = run.kind.judgments
    if _judges_alone(run):
        judgments = judgments._replace(held_out=judge_sets.stated_alone)
    pairs = [row for row in rows if isinstance(row, records.Comparison)]
    how = {"slots": run.slots, "on_done": on_done}
    items = grading.judge_accuracy(judge, run.codec, pairs, judgments=judgments, **how)
    return items + judge_sets.locate(judge, run.codec, rows[len(pairs) :], **how)
