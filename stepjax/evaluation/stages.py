"""The evaluation stages of a run: what a model is worth, and what training did to it.

The only stages, with data preparation and the oracle judge, that read gold answers.
Each writes ``eval/MODEL_BENCHMARK_MODE.json`` with its metrics and items.
"""

import functools
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from stepjax import dpo, records
from stepjax import judge as judging
from stepjax import pairs as preferences
from stepjax.evaluation import diagnose
from stepjax.evaluation import grading as evaluation
from stepjax.lm import checkpoint, hosts
from stepjax.run import checks, rundir
from stepjax.run.run import Engine

MODES = ("greedy", "unseen", "judge", "search", "training")
_MOST_PAIRS = 512  # whose log-probabilities and divergence "training" looks at


def evaluate(
    engine: Engine,
    number: int,
    modes: Iterable[str] = MODES,
    benchmark: str = "test",
) -> dict[str, Any]:
    """Measures M`number` and writes ``eval/``; returns mode → metrics.

    Args:
      engine: the run.
      number: of the model.
      modes: "greedy": accuracy on the benchmark; "unseen": likewise on the world's
        problems of unseen steps; "judge": accuracy on held-out rows; "search":
        accuracy of test-time search, and of the judge on its samples; "training":
        the pairs that the model was trained on and what they did to it. Modes that
        do not apply to the run or the model are passed over.
      benchmark: "test" (the run's own), or the path of a file of problems.
    """
    own = benchmark == "test"
    data = engine.dir.path / "data"
    path = data / "test.jsonl" if own else pathlib.Path(benchmark)
    if not own:
        problems = records.read_jsonl(path, records.Problem)
        checks.check_budgets(engine.config, engine.codec, {path.name: problems})
    files = {"greedy": path, "search": path, "judge": data / "heldout.jsonl"}
    if "unseen" in engine.dir.benchmarks():
        files["unseen"] = data / "unseen.jsonl"
    if number > 1 and (engine.dir.model(number - 1) / "pairs.jsonl").exists():
        files["training"] = engine.dir.model(number - 1) / "pairs.jsonl"
    # Loaded once, when a mode needs them.
    params = functools.cache(lambda: engine.sampling_params(number))
    result = {}
    for mode in modes:
        if mode not in files:
            continue
        file, kind = files[mode], "greedy" if mode == "unseen" else mode
        inputs = {"benchmark": rundir.file_digest(file)}
        if number:
            inputs |= engine.dir.made_by(number)
        name = f"M{number}_{file.stem}_{kind}"
        target = engine.dir.path / "eval" / f"{name}.json"
        manifest = engine.dir.done(target, inputs)
        if manifest is None:
            began = time.monotonic()
            made = _STAGES[kind](engine, number, params, file)
            target.parent.mkdir(exist_ok=True)  # every host may be the first here
            engine.monitor.restart(f"eval/{name}", f"M{number}")
            engine.monitor.log(f"eval/{name}", f"M{number}", number, made["metrics"])
            manifest = engine.dir.commit(target, f"eval/{kind}", began, inputs, **made)
        result[mode] = manifest["metrics"]
    return result


def _greedy(engine: Engine, number: int, params, file: pathlib.Path) -> dict:
    problems = records.read_jsonl(file, records.Problem)
    slots = engine.open_slots(params(), engine.config.search.context_tokens)
    name, mine = f"M{number} eval {file.stem}", hosts.share(problems)
    with engine.monitor.progress(name, len(mine), "problem") as move:
        items = evaluation.greedy(
            slots,
            engine.codec,
            mine,
            max_tokens=engine.config.eval.max_tokens,
            on_done=move,
        )
    items = engine.merged(items, name)
    return {"metrics": evaluation.greedy_metrics(items), "items": items}


def _judge(engine: Engine, number: int, params, file: pathlib.Path) -> dict:
    capacity, score = engine.config.judge.context_tokens, engine.config.judge.score
    every = records.read_jsonl(file, engine.judgment_type())

    def context(row) -> tuple[int, ...]:
        steps = [engine.codec.step(text) for text in row.steps]
        return judging.shared_context(engine.codec, score, row.problem, steps)

    rows = [row for row in every if len(context(row)) <= capacity]
    left_out = len(every) - len(rows)
    if left_out:
        engine.monitor.say(
            f"eval: {left_out} of {len(every)} held-out rows exceed "
            f"judge.context_tokens={capacity} and are left out"
        )
    name, mine = f"M{number} eval judge", hosts.share(rows)
    with engine.monitor.progress(name, len(mine), "judgment") as move:
        items = evaluation.judge_accuracy(
            engine.own_judge(engine.open_slots(params(), capacity), 1),
            engine.codec,
            mine,
            slots=engine.slots,
            on_done=move,
        )
    items = engine.merged(items, name)
    metrics = evaluation.judge_metrics(items) | {"left_out": left_out}
    return {"metrics": metrics, "items": items}


def _search(engine: Engine, number: int, params, file: pathlib.Path) -> dict:
    problems = records.read_jsonl(file, records.Problem)
    problems = problems[: engine.config.eval.search_count or None]
    questions = [records.Question(p.id, p.problem) for p in problems]
    name, found, mine = f"M{number} eval search", {}, hosts.share(questions)
    with engine.monitor.progress(name, len(mine), "problem") as move:
        for state in engine.searches(params(), mine, 0):
            found[state.question.id] = preferences.trajectory_row(state)
            move(1)
    rows = engine.merged([found[question.id] for question in mine], name)
    states = [preferences.trajectory_from_row(row) for row in rows]
    made = evaluation.searched(states, problems, engine.codec)
    made["metrics"] |= preferences.summary(states)
    if engine.is_right:
        made["metrics"] |= diagnose.sampled_judgments(states, engine.is_right)
    return made


def _training(engine: Engine, number: int, params, file: pathlib.Path) -> dict:
    del params  # those for training are needed, of two models
    config, metrics = engine.config, {}
    pairs = records.read_jsonl(file, preferences.Pair)
    if engine.is_right:
        searched = records.read_objects(file.with_name("search.jsonl"))
        found = [preferences.trajectory_from_row(row) for _, row in searched]
        states = {state.question.id: state for state in found}
        metrics |= diagnose.pair_quality(pairs, states, engine.is_right)
        metrics |= diagnose.sampled_judgments(found, engine.is_right)
    kept, _ = engine.fitting(pairs)
    warnings: list[str] = []
    if kept:
        batches = dpo.make_batches(
            kept[:_MOST_PAIRS],
            mesh=engine.mesh,
            batch_size=config.dpo.batch_size,
            micro_batches=config.train.micro_batches,
            row_length=config.train.row_length,
            epochs=1,
            seed=config.seed,
        )
        both = engine.params(number - 1), engine.params(number)
        with engine.monitor.during(f"M{number} eval training: log-probabilities"):
            metrics |= diagnose.drift(engine.model, *both, batches, engine.mesh)
        warnings = diagnose.warnings(metrics, _step_lengths(engine, number))
    for warning in warnings:
        engine.monitor.say(f"M{number}: {warning}")
    return {"metrics": metrics, "warnings": warnings}


def _step_lengths(engine: Engine, number: int) -> tuple[float, float]:
    """Tokens a step of greedy solutions of M`number - 1` and M`number`; 0 unknown."""

    def length(model: int) -> float:
        path = engine.dir.path / "eval" / f"M{model}_test_greedy.json"
        if not path.exists():
            return 0.0
        return checkpoint.read_json(path)["metrics"]["tokens_per_step"]

    return length(number - 1), length(number)


_STAGES = {"greedy": _greedy, "judge": _judge, "search": _search, "training": _training}
