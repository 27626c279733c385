"""The evaluation stages of a run: what a model is worth, and what training did to it.

These stages, data preparation and the oracle judge are all that reads gold answers.
Each stage writes ``eval/MODEL_BENCHMARK_MODE.json`` with its metrics and items; beside
it, the mode "search" writes its searches as JSON lines.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stepjax import dpo, interrupts, records, trajectory
from stepjax.evaluation import (
    answers,
    calibration,
    causes,
    diagnose,
    grading,
    judge_sets,
    judge_stage,
    samples,
)
from stepjax.evaluation import benchmarks as files_of_problems
from stepjax.lm import files, hosts
from stepjax.lm.sampler import Sampler
from stepjax.pairs import Pair, summary
from stepjax.run import checks, judge_rules, judges, rollout, rundir
from stepjax.run.journal import Journal, Row, of_rows
from stepjax.run.run import Run
from stepjax.settings import dpo_batches

MODES = ("greedy", "unseen", "judge", "search", "training")
_MOST_PAIRS = 512  # most pairs on which the mode "training" measures drift


def evaluate(
    run: Run,
    number: int,
    modes: Iterable[str] = MODES,
    benchmarks: Sequence[str] = ("test",),
    also: Sequence[pathlib.Path] = (),
    on_result: Callable[[pathlib.Path], None] = lambda path: None,
) -> dict[str, dict[str, Any]]:
    """Measures M`number` and writes ``eval/``; returns benchmark → mode → metrics.

    Args:
      run: the run.
      number: of the model.
      modes: "greedy": accuracy on the benchmark; "unseen": accuracy on the world's
        problems of unseen steps; "judge": accuracy on held-out rows; "search":
        accuracy of test-time search, and of the judge on its samples; "training":
        the pairs that the model was trained on and what they did to it. Modes that
        do not apply to the run or the model are passed over.
      benchmarks: "test" (the run's own data), or files of problems; see
        `benchmarks.read`. Files have the modes "greedy" and "search" only, and files of
        judged steps (`judge_sets`) the mode "judge" only. All of them are read before a
        model is loaded.
      also: further files, which have the mode "greedy" only, and were read already.
      on_result: called with the file of each result.

    Results of another file than the run's own are named by the file and its digest, so
    that files of one name, or a file that was edited, do not get in each other's way.
    Results of other settings than those of config.json are named by these settings too.
    A result that is there already is not measured again; nor is a model that is equal
    to the one before it, such as M2 when M1 made no pairs.
    """
    sources: dict[str, dict[str, pathlib.Path]] = {}
    modes, texts = tuple(modes), run.codec.templates
    for benchmark in benchmarks:
        if benchmark == "test":
            sources[benchmark] = _own_sources(run, number)
            continue
        path = files_of_problems.file_of(benchmark, run.dir.path / "eval", texts)
        if modes == ("judge",) or "judge" in modes and judge_sets.form(path):
            judge_stage.check(run, path)
            sources[benchmark] = {"judge": path}
            continue
        name, problems = path.name, files_of_problems.read(path, texts)
        checks.check_budgets(run.settings, run.codec, {name: problems})
        warnings = checks.check_characters(run.codec, {name: problems})
        for warning in warnings + files_of_problems.repeated(name, problems):
            run.monitor.say(warning)
        sources[benchmark] = {"greedy": path, "search": path}
    sources |= {str(path): {"greedy": path} for path in also}
    # Loaded once, when a mode needs them.
    params = functools.cache(lambda: run.sampling_params(number))
    result: dict[str, dict[str, Any]] = {}
    for benchmark, files_by_mode in sources.items():
        result[benchmark], stored = {}, []
        for mode in modes:
            if mode not in files_by_mode:
                continue
            file = files_by_mode[mode]
            metrics, target, is_new = _measure(run, number, mode, file, params)
            on_result(target)
            result[benchmark][mode] = metrics
            if not is_new:
                rate = metrics.get("accuracy")
                stored.append(mode if rate is None else f"{mode} {100 * rate:.1f} %")
        if stored:
            name = "" if benchmark == "test" else f" {benchmark}"
            run.tell(f"M{number} eval{name}: done already: {', '.join(stored)}")
    return result


def _own_sources(run: Run, number: int) -> dict[str, pathlib.Path]:
    """Returns mode → file, for the modes that apply to the run's own data."""
    data = run.dir.path / "data"
    sources = dict.fromkeys(("greedy", "search"), data / "test.jsonl")
    if not judge_rules.is_foreign(run.settings.judge.by):  # the model judges
        sources["judge"] = data / "heldout.jsonl"
    if "unseen" in run.dir.benchmarks():
        sources["unseen"] = data / "unseen.jsonl"
    if number > 1 and (run.dir.model(number - 1) / "pairs.jsonl").exists():
        sources["training"] = run.dir.model(number - 1) / "pairs.jsonl"
    return sources


def _measure(
    run: Run,
    number: int,
    mode: str,
    file: pathlib.Path,
    params: Callable[[], Any],
) -> tuple[dict[str, Any], pathlib.Path, bool]:
    """Measures one mode on one file.

    Returns:
      Its metrics, the file that has them, and whether they are new.
    """
    kind, digest = "greedy" if mode == "unseen" else mode, rundir.file_digest(file)
    inputs = {"benchmark": digest}
    if number:
        inputs |= run.dir.model_digest(number)
    inputs |= _further_inputs(run, kind)
    is_own = file.parent == run.dir.path / "data" or kind == "training"
    stem = file.stem if is_own else files_of_problems.stem(file, digest)
    stem += run.dir.variant(kind, number)
    name = f"M{number}_{stem}_{kind}"
    target = run.dir.path / "eval" / f"{name}.json"
    old = hosts.first() and target.exists()  # it is deleted below
    if old and not run.dir.is_result(kind, target, inputs):
        run.monitor.say(
            f"{name}: measured again, because the model, the problems or the settings "
            "are no longer those of the earlier result, or its file is damaged"
        )
    stage = run.dir.measurement(kind, target, inputs)
    if stage.done:
        return stage.done["metrics"], target, False
    interrupts.check("all that was measured is saved")
    files.make_folder(target.parent)  # every host may be the first here
    partial = target.with_suffix(".partial.jsonl"), stage.identity
    measured = _of_an_equal_model(run, number, f"{stem}_{kind}", digest)
    measured = measured or _STAGES[kind](run, number, params, file, partial)
    curve = f"eval/{stem}_{kind}"
    run.monitor.restart(curve, f"M{number}")
    run.monitor.log(curve, f"M{number}", number, measured["metrics"])
    _say(run, number, curve, measured)
    searches = measured.pop("searches", [])
    if searches and hosts.first():
        records.write_jsonl(target.with_suffix(".jsonl"), searches)
    written = [f"{name}.jsonl"] if searches else []
    how = {"prompts": dataclasses.asdict(run.codec.templates)} | _how(run, kind)
    stage.commit(written, **(how | measured))
    return stage.done["metrics"], target, True


def _further_inputs(run: Run, kind: str) -> dict[str, str]:
    """Returns what a result depends on besides the problems and the model."""
    graded = answers.inputs() if kind in ("greedy", "search") else {}
    return graded | (judges.inputs(run) if kind == "search" else {})


def _how(run: Run, kind: str) -> dict[str, Any]:
    """Returns what an accuracy was measured with, besides prompts and settings."""
    if kind not in ("greedy", "search"):
        return {}
    longest, stops = run.settings.eval.max_tokens, ()
    if kind == "search":  # of one candidate
        longest = run.kind.candidate_tokens
        stops = run.kind.unit.stops(run.codec.templates)
    sampling = {
        "max_tokens": longest,
        "stops": list(stops),
        "stop_ids": list(run.codec.tokenizer.stop_ids),
        "dtype": str(run.local_model.config.dtype),
        "mesh": dict(run.local_model.mesh.shape),
    }
    graded = {"grader": answers.VERSION, "grading": run.settings.eval.grading}
    return graded | {"sampling": sampling}


def _say(run: Run, number: int, curve: str, measured: dict) -> None:
    """Prints two samples of an evaluation, and its warnings."""
    name = f"M{number} {curve}"
    shown = list(map(samples.text_of, samples.pick(measured.get("items", ()))))
    for text in shown:
        run.monitor.say(f"{name}: sample {text}")
    if shown:
        run.monitor.log_text(curve, number, "\n\n".join(shown))
    for warning in measured.get("warnings", ()):
        run.monitor.say(f"M{number}: {warning}")


def _of_an_equal_model(run: Run, number: int, name: str, digest: str) -> dict | None:
    """Returns what was measured of the model before, if this model is the same.

    Args:
      run: the run.
      number: of this model.
      name: what is measured, and how.
      digest: of the file that is measured with.
    """
    before = run.dir.path / "eval" / f"M{number - 1}_{name}.json"
    if number < 2 or name.endswith("_training"):
        return None

    def is_known() -> bool:
        folders = run.dir.model(number), run.dir.model(number - 1)
        arrays = [files.read_json(f / "manifest.json")["arrays"] for f in folders]
        kind = name.rpartition("_")[2]
        inputs = {"benchmark": digest} | run.dir.model_digest(number - 1)
        inputs |= _further_inputs(run, kind)
        return arrays[0] == arrays[1] and run.dir.is_result(kind, before, inputs)

    if not hosts.agreed(f"M{number} {name} is known", is_known):
        return None
    run.monitor.say(
        f"M{number} eval {name}: M{number} is equal to M{number - 1}, whose result "
        "holds."
    )
    done = files.read_json(before)
    names = ("metrics", "items", "warnings", "reliability", "grader")
    kept = {key: done[key] for key in names if key in done}
    searches = before.with_suffix(".jsonl")
    if searches.name in done["files"] and searches.exists():
        kept["searches"] = [row for _, row in records.read_objects(searches)]
    return kept


def _greedy(run: Run, number: int, params, file: pathlib.Path, partial) -> dict:
    problems = files_of_problems.read(file, run.codec.templates)
    sampler = judges.open_sampler(run, params(), run.settings.search.context_tokens)
    solve = functools.partial(
        grading.greedy,
        sampler,
        run.codec,
        max_tokens=run.settings.eval.max_tokens,
        strict=run.settings.eval.strict,
    )
    name = f"M{number} eval {file.stem}"
    journal = of_rows(*partial, run.monitor.say)
    items = measured_rows(run, name, "problem", problems, solve, sampler, journal)
    # M0 has not learned yet how a solution ends.
    warnings = causes.of_greedy(items, run.settings) if number else []
    metrics = grading.greedy_metrics(items)
    return {"metrics": metrics, "items": items, "warnings": warnings}


def measured_rows(
    run: Run,
    name: str,
    unit: str,
    rows: Sequence,
    measure: Callable[..., list],
    sampler: Sampler,
    journal: Journal,
) -> list[dict]:
    """Measures rows in batches, going on where a journal ends.

    Args:
      run: the run.
      name: of the evaluation, for people.
      unit: what a row is, in the singular.
      rows: what is measured, of all hosts.
      measure: ``measure(rows, on_done=f)``, from `grading`.
      sampler: the context caches that it uses.
      journal: where progress is kept.

    Returns:
      One item for each row.

    Raises:
      interrupts.Stopped: a signal asked to stop; the journal has what was done.
    """
    mine = hosts.share(range(len(rows)))
    todo = [at for at in mine if at not in journal.closed]
    items = [journal.closed[at].found for at in mine if at in journal.closed]
    left = iter(todo)

    def on_done(batch: list[dict]) -> None:
        # Whoever goes on from here begins with empty caches; so does this run, that
        # both compute the same bits.
        sampler.hold({slot: () for slot in range(run.slots)})
        journal.add([Row(next(left), item) for item in batch], {})
        items.extend(batch)
        advance(len(batch), grading.right_so_far(items))
        if len(items) < len(mine):
            interrupts.check(f"{len(items)} of {len(mine)} {unit}s are saved")

    progress = run.monitor.progress(name, len(mine), unit, len(items))
    with progress as advance, interrupts.apart():
        if todo:
            measure([rows[at] for at in todo], on_done=on_done)
    journal.join()
    return [journal.closed[at].found for at in range(len(rows))]


def _judge(run: Run, number: int, params, file: pathlib.Path, partial) -> dict:
    own = file.parent == run.dir.path / "data"
    measure = judge_stage.held_out if own else judge_stage.of_file
    return measure(run, number, params, file, partial, measure=measured_rows)


def _search(run: Run, number: int, params, file: pathlib.Path, partial) -> dict:
    problems = files_of_problems.read(file, run.codec.templates)
    problems = problems[: run.settings.eval.search_count or None]
    questions = [records.Question(p.id, p.problem) for p in problems]
    closed: list[bool] = []

    def note(state: trajectory.State) -> str:
        closed.append(state.status == "complete")
        return f"{sum(closed)} of {len(closed)} complete"

    states = rollout.search_from_journal(
        run,
        questions,
        Journal(*partial, say=run.monitor.say),
        params,
        name=f"M{number} eval search",
        iteration=0,
        note=note,
    )
    rows = list(map(trajectory.to_row, states))
    graded = grading.searched(
        states, problems, run.codec, strict=run.settings.eval.strict
    )
    graded["metrics"] |= summary(states) | calibration.of_verdicts(states)
    by = run.settings.judge.by
    by = by if judge_rules.is_foreign(by) else "self"
    warnings = causes.of_search(states, run.settings, by=by)
    if run.kind.is_right:
        graded["metrics"] |= _sampled_judgments(run, states)
        measured, table = calibration.calibration(states, run.kind.is_right)
        graded["metrics"] |= measured
        graded["reliability"] = table
        path = run.dir.path / "eval" / f"M1_{file.stem}_search.json"
        if number > 1 and path.exists():
            first = files.read_json(path)["metrics"]
            judge = run.settings.judge
            keep = judge.keep if by == "self" and not judge.model else None
            warnings += calibration.warnings(first, graded["metrics"], keep)
    return graded | {"warnings": warnings, "searches": rows}


def _training(run: Run, number: int, params, file: pathlib.Path, partial) -> dict:
    del params, partial  # `drift` compares two models, in the type that training uses
    metrics: dict[str, Any] = {}
    pairs = records.read_jsonl(file, Pair)
    if run.kind.is_right:
        searched = records.read_objects(file.with_name("search.jsonl"))
        states = [trajectory.from_row(row) for _, row in searched]
        by_id = {state.question.id: state for state in states}
        metrics |= diagnose.pair_quality(pairs, by_id, run.kind.is_right)
        metrics |= _sampled_judgments(run, states)
        metrics |= calibration.calibration(states, run.kind.is_right)[0]
    row_length = run.settings.train.row_length
    kept, _ = dpo.fitting_pairs([pair.ids() for pair in pairs], row_length)
    warnings: list[str] = []
    if kept:
        batches = dpo_batches(
            run.settings, kept[:_MOST_PAIRS], run.mesh, seed=run.settings.seed
        )
        both = run.params(number - 1), run.params(number)
        with run.monitor.during(f"M{number} eval training: log-probabilities"):
            metrics |= diagnose.drift(run.model, *both, batches, run.mesh)
        warnings = diagnose.warnings(metrics, _step_lengths(run, number))
    return {"metrics": metrics, "warnings": warnings}


def _sampled_judgments(run: Run, states: Sequence[trajectory.State]) -> dict:
    """Returns how often the judge is right about the model's own samples."""
    kind = run.kind
    judged = diagnose.sampled_judgments(
        states, kind.is_right, kind.judgments.graded, kind.mistake
    )
    return judged | diagnose.expansions(states, kind.is_right)


def _step_lengths(run: Run, number: int) -> tuple[float, float]:
    """Returns tokens per step of greedy solutions before and after; 0 is unknown."""

    def length(model: int) -> float:
        path = run.dir.path / "eval" / f"M{model}_test_greedy.json"
        if not path.exists():
            return 0.0
        return files.read_json(path)["metrics"]["tokens_per_step"]

    return length(number - 1), length(number)


_STAGES = {"greedy": _greedy, "judge": _judge, "search": _search, "training": _training}
