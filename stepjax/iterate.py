"""The loop M0 → M1 → … → Mn over a run directory of finished stages.

Each stage writes its result and then a manifest: the digests of its inputs, of every
array and file, counts, seed, versions and seconds. The same command after a kill sees
which stages are finished, checks that their inputs and files have not changed, and goes
on: from the last saved state of a training, from the last pause of a search.

    DIR/config.json  data/  tokenizer/  metrics.jsonl  tensorboard/  eval/M1.json ...
    DIR/M1/{params,manifest.json,search.jsonl,pairs.jsonl,search.json}  M2/ ...

The search and DPO stages read questions without answers: no gold reaches them, unless
the settings ask for the oracle judge.
"""

import stepjax.lm  # noqa: F401, says what to install when something is missing

# isort: split
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from stepjax import dpo as step_dpo
from stepjax import records, trajectory
from stepjax.evaluation import (
    benchmark_tables,
    benchmarks,
    calibration,
    causes,
    stages,
    tables,
)
from stepjax.initial_data import stages as initial
from stepjax.lm import hosts, train
from stepjax.pairs import Pair, pairs_of, summary
from stepjax.preferences import PairFiles, Preferences
from stepjax.run import (
    finetune,
    judge_training,
    judges,
    lock,
    reference_pass,
    rollout,
    rundir,
    stage,
)
from stepjax.run.journal import Journal
from stepjax.run.run import Run
from stepjax.settings import dpo_batches


def run(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    redo: str = "",
    profile: bool = False,
) -> str:
    """Runs the whole loop, or what is left of it, and returns the final table.

    Args:
      config: the settings, see `stepjax.config`.
      workdir: the run directory; made when missing, continued when it is there.
      redo: a stage that may be deleted and made again because its settings have
        changed, see `stepjax.run.redo`; "" for none.
      profile: whether a few units of each stage are traced, see `stepjax.run.profile`.
    """
    workdir = os.path.expanduser(workdir)
    try:
        return _run(Run(config, workdir, redo, measures=True, profile=profile))
    finally:
        lock.release(pathlib.Path(workdir))


def _run(this: Run) -> str:
    this.accept()
    lost: set[pathlib.Path] = set()
    while True:
        try:
            _loop(this)
            _read_models(this)
            return _say_results(this)
        except stage.Damaged as damaged:
            if damaged.manifest in lost:
                raise
            lost.add(damaged.manifest)
            this.monitor.say(f"{str(damaged).partition('; expected')[0]}; it is lost")
            if hosts.first():
                stage.lose(damaged.manifest)
            hosts.barrier(f"{damaged.manifest} lost")


def _loop(this: Run) -> None:
    """Runs all stages, or what is left of them; some may be lost and are done again."""
    this.dir.check()
    initial.make(this)
    benchmarks.note(this.dir.path / "eval", this.benchmarks)
    stages.evaluate(this, 0, ("greedy", "judge"), also=this.benchmarks)
    sft(this)
    this.dir.check()
    stages.evaluate(this, 1, also=this.benchmarks)
    for number in range(1, this.settings.iterations + 1):
        if this.settings.improve_by == "sft":
            more_sft(this, number)
        else:
            search(this, number)
            this.dir.check()
            dpo(this, number)
        this.dir.check()
        stages.evaluate(this, number + 1, also=this.benchmarks)


def _read_models(this: Run) -> None:
    """Reads the models that this command has not read or made: they may be damaged."""
    for number in range(1, this.settings.iterations + 2):
        if this.dir.model(number) not in this.loaded:
            this.params(number)


# M0 → M1.


def sft(run: Run) -> None:
    """Makes M1 from M0 by supervised fine-tuning on IFT and EFT data."""
    initial.make(run)
    inputs = run.dir.data("ift") | run.dir.data("eft")
    from_policy = run.settings.sft.from_policy
    if from_policy:
        inputs |= initial.digests(run, "policy")
    stage = _model_stage(run, "sft", 1, inputs)
    if stage.done:
        counts = stage.done["counts"]
        parts = [f"{name} {done:,}" for name, done in counts["updates"].items()]
        run.tell(f"M1: done already, updates of SFT: {', '.join(parts)}")
        return
    dropped = run.sft_examples.dropped
    if dropped:
        run.monitor.say(
            f"sft: {len(dropped)} examples are longer than train.row_length="
            f"{run.settings.train.row_length} tokens and are left out (the first is "
            f"{dropped[0]})."
        )
    phases, updates = run.settings.sft.phases, {}
    params = run.load(initial.policy_folder(run)) if from_policy else run.params(0)
    for order, phase in enumerate(phases):
        params, updates[phase.name] = finetune.fit_phase(
            run,
            params,
            phase,
            run.sft_examples.trees,
            model="M1",
            order=order,
            folder=run.dir.model(1) / "train" / f"phase_{order}",
            keep_last=order + 1 < len(phases),
            plain=run.sft_examples.plain,
        )
    counts = run.sft_examples.sizes | {"dropped": len(dropped), "updates": updates}
    stage.commit(arrays=run.save(run.dir.model(1), params), counts=counts)


def more_sft(run: Run, number: int) -> None:
    """Makes M`number + 1` by more of the last phase of SFT: a control experiment.

    It takes as many updates as `dpo.updates` says, with the optimizer of DPO.
    """
    data = run.dir.data("ift") | run.dir.data("eft")
    inputs = run.dir.model_digest(number) | data
    stage = _model_stage(run, "more_sft", number + 1, inputs)
    if stage.done:
        updates = stage.done["counts"]["updates"]
        run.tell(f"M{number + 1}: done already, {updates:,} updates of SFT")
        return
    last, sizes = run.settings.sft.phases[-1], run.sft_examples.sizes
    shares = {name: getattr(last, name) for name in sizes}
    if last.epochs:  # in such a phase the sizes of the data decide the mixture
        shares = {name: sizes[name] * (share > 0) for name, share in shares.items()}
    phase = dataclasses.replace(
        last,
        **shares,
        name=f"more_{number}",
        epochs=0,
        steps=run.settings.dpo.updates_of(number),
        stop_loss=0.0,
        optimizer=run.settings.dpo.optimizer,
    )
    params, updates = finetune.fit_phase(
        run,
        run.params(number),
        phase,
        run.sft_examples.trees,
        model=f"M{number + 1}",
        order=len(run.settings.sft.phases) + number - 1,
        folder=run.dir.model(number + 1) / "train",
        plain=run.sft_examples.plain,
    )
    arrays = run.save(run.dir.model(number + 1), params)
    stage.commit(arrays=arrays, counts=sizes | {"updates": updates})


# What Mi makes: searches and pairs.


def search(run: Run, number: int) -> None:
    """Lets M`number` search the questions of its iteration, and makes its pairs."""
    name, folder = f"questions_{number}", run.dir.model(number)
    inputs = run.dir.model_digest(number) | run.dir.data(name) | judges.inputs(run)
    stage = run.dir.stage("search", folder / "search.json", inputs, "*search.partial*")
    if stage.done:
        counts = stage.done["counts"]
        run.tell(
            f"M{number} search: done already, {counts['pairs']:,} pairs from "
            f"{counts['questions']:,} questions in {folder / 'pairs.jsonl'}"
        )
        return
    questions = run.dir.read(name, records.Question)
    name = f"M{number} search"
    states = rollout.search_from_journal(
        run,
        questions,
        Journal(folder / "search.partial.jsonl", inputs, say=run.monitor.say),
        lambda: run.sampling_params(number),
        name=name,
        iteration=number,
        by=run.settings.judge.by,
        note=rollout.Preferences(run, name),
    )
    pairs = [
        pair
        for state in states
        for pair in pairs_of(
            state,
            run.codec,
            model=f"M{number}",
            iteration=number,
            seed=run.settings.seed,
            best_beats_all=run.settings.pairs.best_beats_all,
            min_margin=run.settings.pairs.min_margin,
        )
    ]
    made = {"search": map(trajectory.to_row, states), "pairs": pairs}
    counts = summary(states) | calibration.of_verdicts(states) | {"pairs": len(pairs)}
    judgments = judge_training.pairs_of_judgments(run, states, len(pairs))
    explained = ""
    if judgments is not None:
        made[judge_training.NAME] = judgments
        counts["judgment_pairs"] = len(judgments)
        explained = f" and {len(judgments)} pairs of explanations"
    if hosts.first():
        for kind, rows in made.items():
            records.write_jsonl(folder / f"{kind}.jsonl", rows)
    run.monitor.restart("search", f"M{number}")
    run.monitor.log("search", f"M{number}", number, counts)
    complete, ties = (100 * counts[k] for k in ("complete_rate", "tie_rate"))
    run.monitor.say(
        f"M{number} search: {len(pairs)} pairs{explained} from {len(states)} questions"
        f"{causes.left_out(states, len(pairs), run.settings)}; "
        f"{complete:.0f} % of the searches are complete, with "
        f"{counts['steps_per_solution']:.1f} steps each; {ties:.0f} % of the steps "
        "gave no preference"
    )
    warnings = causes.of_search(states, run.settings)
    for warning in warnings:
        run.monitor.say(f"M{number} search: {warning}")
    written = [f"{kind}.jsonl" for kind in made]
    stage.commit(written, counts=counts, warnings=warnings)


# Mi → M(i+1).


def dpo(run: Run, number: int) -> None:
    """Makes M`number + 1` by step-DPO on the pairs that M`number` made."""
    source, inputs = run.dir.model(number), run.dir.model_digest(number)
    searched = run.dir.stage("search", source / "search.json", inputs).done
    if not searched:
        path = source / "search.json"
        raise ValueError(
            f"{path} is {'damaged' if path.exists() else 'missing'}; expected the "
            f"finished search of M{number}. Run `stepjax search --model=M{number}` "
            "first."
        )
    inputs["pairs"] = rundir.file_digest(source / "pairs.jsonl")
    judgments, digest = judge_training.file(run, number)
    inputs |= digest
    stage = _model_stage(run, "dpo", number + 1, inputs)
    if stage.done:
        counts = stage.done["counts"]
        run.tell(
            f"M{number + 1}: done already, {counts['updates']:,} updates of DPO on "
            f"{counts['pairs']:,} pairs"
        )
        return
    row_length = run.settings.train.row_length
    rows = PairFiles([(source / "pairs.jsonl", Pair), *judgments], row_length)
    with run.monitor.during(f"M{number + 1} dpo: checking the pairs"):
        pairs = rows.pairs()
    if rows.dropped:
        run.monitor.say(
            f"dpo: {rows.dropped} of {sum(rows.counts)} pairs are longer than "
            f"train.row_length={row_length} tokens and are left out."
        )
    params, updates = run.params(number), 0
    if pairs:
        params, updates = _train_on_pairs(
            run, params, pairs, lambda n: rows.row(n).id, number, inputs
        )
    else:
        why = causes.no_pairs(searched["counts"], run.settings.judge.by)
        run.monitor.say(
            f"dpo: M{number} made no preference pairs, so M{number + 1} is "
            f"M{number}. {why}"
        )
    counts = {"pairs": len(pairs), "dropped": rows.dropped, "updates": updates}
    if sum(rows.counts[1:]):
        counts["judgments"] = sum(rows.counts[1:])
    arrays = run.save(run.dir.model(number + 1), params)
    stage.commit(arrays=arrays, counts=counts)


# How the stages train.


def _model_stage(
    run: Run, name: str, number: int, inputs: dict[str, str]
) -> rundir.Stage:
    """Returns the stage that makes M`number`; it deletes training states at its end."""
    manifest = run.dir.model(number) / "manifest.json"
    return run.dir.stage(name, manifest, inputs, "train")


def _train_on_pairs(
    run: Run,
    params: Any,
    pairs: Preferences,
    name_of: Callable[[int], str],
    number: int,
    inputs: Mapping[str, str],
) -> tuple[Any, int]:
    """Trains M`number` on its pairs, each with a name; returns (params, updates)."""
    settings = run.settings
    passes = {
        "seed": settings.seed + number,
        "epochs": settings.dpo.epochs,
        "updates": settings.dpo.updates_of(number),
    }
    with run.monitor.during(f"M{number + 1} dpo: planning the updates"):
        batches = dpo_batches(settings, pairs, run.mesh, **passes)
    layout = settings.dpo.batch_size, settings.train.row_length

    def names_at(step: int) -> list[str]:
        pairs_of_it = step_dpo.order(pairs, *layout, **passes)[step]
        return [*map(name_of, pairs_of_it), *replayed(step)]

    reference = None
    if settings.dpo.loss.reference == "live":
        reference = run.frozen(params)
    else:
        origin = {**inputs, "layout": f"{passes} {layout}"}
        batches = reference_pass.fill(run, params, batches, f"M{number + 1}", origin)
    batches, replayed = judge_training.with_replay(run, batches, passes["seed"])
    counted: dict[int, tuple[int, int]] = {}  # tokens of the updates since the last log

    def batch_at(step: int) -> Any:
        batch = batches[step]
        counted[step] = step_dpo.tokens(batch)
        return train.put_batch(run.mesh, batch)

    def tokens_at(step: int) -> tuple[int, int]:
        # Of an update that an earlier command has done, the batch is laid out again.
        return counted.pop(step, None) or step_dpo.tokens(batches[step])

    return run.fit(
        params,
        name="dpo",
        model=f"M{number + 1}",
        loss=functools.partial(
            step_dpo.loss,
            model=run.model,
            options=settings.dpo.loss,
            keep=settings.judge.keep,
        ),
        batch_at=batch_at,
        rows_at=names_at,
        tokens_at=tokens_at,
        steps=len(batches),
        optimizer=settings.dpo.optimizer,
        folder=run.dir.model(number + 1) / "train",
        reference=reference,
    )


def _say_results(run: Run) -> str:
    """Prints the tables of the run and returns them as text."""
    run.monitor.close()
    titles = [f"{run.dir.path}, seed {run.settings.seed}"]
    titles += ["judges", "what ended, what was refused", "iterations", "seconds"]
    place, models = run.dir.path, run.settings.iterations + 1
    drawn = list(zip(titles, tables.tables(place, models), strict=True))
    drawn[1:1] = benchmark_tables.tables(place, models)
    drawn.append(("programs compiled", tables.compiled(place, models)))
    legend = benchmark_tables.LEGEND | tables.LEGEND
    return "".join(
        run.monitor.table(title, rows, legend) for title, rows in drawn if rows
    )
