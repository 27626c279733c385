"""The stages of a run that make its EFT rows: policy, PRM, tree search, teacher.

Each is a stage with a manifest, like those of `stepjax.iterate`, which come after:

    DIR/init/policy/   M0 after SFT on the IFT rows alone
    DIR/init/prm/      M0 after SFT on step labels; what it is worth on held-out ones
    DIR/init/trees.jsonl  pairs.jsonl   what policy and PRM find together
    DIR/init/teacher.jsonl  dropped.jsonl   the teacher's answers; pairs not kept, why
    DIR/data/eft.jsonl      the rows that M1 learns to judge from
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from stepjax import forest, records, sft
from stepjax.evaluation import answers
from stepjax.initial_data import (
    eft,
    mcts,
    prm,
    rollouts,
    step_values,
    teacher,
    teacher_local,
)
from stepjax.initial_data.step_values import StepValues
from stepjax.lm import hf_config, hosts, sharding, tokenizer, weights
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.run import finetune, rollout, rundir
from stepjax.run.run import Run
from stepjax.worlds import arithmetic_teacher

# Numbers of the phases, from which their shuffles are drawn; M1's begin with 0.
_POLICY_ORDER, _PRM_ORDER = 1000, 1001


def make(run: Run) -> None:
    """Makes the EFT rows of a run, or what is left to do of that.

    Nothing happens in a run whose EFT rows come from a file or from a world.
    """
    if run.settings.data.make_eft:
        make_policy(run)
        make_labels(run)
        make_prm(run)
        make_pairs(run)
        make_eft(run)


def make_policy(run: Run) -> None:
    """Makes the policy from M0 by SFT on the IFT rows alone."""
    inputs = run.dir.data("ift")
    stage = _model_stage(run, "policy", inputs)
    if stage.done:
        return
    trees = {"ift": run.ift_trees, "eft": []}
    phase = run.settings.mcts.phase
    _train(run, stage, phase, trees, order=_POLICY_ORDER, counts={})


def make_labels(run: Run) -> None:
    """Labels steps of the policy by rollouts, if ``prm.labels`` says so.

    The problems are those of the IFT rows, whose answers are known.
    """
    if run.settings.prm.labels != "rollouts":
        return
    folder, options = run.dir.path / "init", run.settings.rollouts
    inputs = run.dir.data("ift") | _digest(run, "policy")
    stage = run.dir.stage("rollouts", folder / "values.json", inputs, "values.partial*")
    if stage.done:
        return
    rows = run.dir.read("ift", records.Solution)[: options.problems or None]
    problems = [records.Problem(row.id, row.problem, row.answer) for row in rows]
    journal = _journal(folder / "values.partial.jsonl", inputs, StepValues)
    mine = [p for p in hosts.share(problems) if p.id not in journal.closed]
    params = run.for_sampling(run.load(folder / "policy"))
    sampler = rollout.open_sampler(run, params, run.settings.search.context_tokens)
    seed = run.settings.seed

    def is_correct(problem: records.Problem, text: str) -> bool:
        return answers.equivalent(answers.extract(text), problem.answer)

    done = len(hosts.share(problems)) - len(mine)
    with run.monitor.progress("rollouts", done + len(mine), "problem", done) as advance:
        tried = rollouts.solutions(sampler, run.codec, mine, options, seed=seed)
        for value in rollouts.values(
            sampler, run.codec, tried, is_correct, options, seed=seed
        ):
            journal.add([value], {})
            advance(1)
    _read_all(journal)
    values = [journal.closed[problem.id] for problem in problems]
    labels = [
        row for own in values for row in step_values.labels(own, hard=options.hard)
    ]
    held = set(_last_problems(labels, run.settings.prm.heldout_count))
    if hosts.first():
        records.write_jsonl(folder / "values.jsonl", values)
        data = run.dir.path / "data"
        records.write_jsonl(
            data / "labels.jsonl", [r for r in labels if r.problem not in held]
        )
        records.write_jsonl(
            data / "labels_heldout.jsonl", [r for r in labels if r.problem in held]
        )
    written = ["values.jsonl", "../data/labels.jsonl", "../data/labels_heldout.jsonl"]
    stage.commit(written, counts={"problems": len(values), "labelled": len(labels)})


def make_prm(run: Run) -> None:
    """Makes the PRM by SFT on step labels, and measures it on held-out ones."""
    inputs = run.dir.data("labels") | run.dir.data("labels_heldout")
    options = run.settings.prm
    if options.from_policy:
        inputs |= _digest(run, "policy")
    stage = _model_stage(run, "prm", inputs)
    if stage.done:
        return
    rows = run.dir.read("labels", records.StepLabels)
    length, weight = run.settings.train.row_length, options.language_weight
    trees = [prm.tree(run.codec, row, options.prompt, weight) for row in rows]
    ids = [row.id for row in rows]
    kept, dropped = sft.fitting_trees(trees, ids, length, "step label")
    if dropped:
        run.monitor.say(
            f"prm: {len(dropped)} of {len(trees)} labelled solutions are longer than "
            f"train.row_length={length} tokens and are left out (the first is "
            f"{dropped[0]})."
        )
    _train(
        run,
        stage,
        options.phase,
        {"ift": [], "eft": kept},
        start=run.dir.path / "init" / "policy" if options.from_policy else None,
        order=_PRM_ORDER,
        counts={"rows": len(kept), "dropped": len(dropped)},
        measure=lambda params: measure_prm(run, params, "labels_heldout"),
    )
    run.monitor.say(f"prm: {_in_words(stage.done['metrics'])}")


def measure_prm(run: Run, params: Any, name: str) -> dict[str, Any]:
    """Returns what the PRM is worth on a data file of the run; see `prm.metrics`."""
    rows = run.dir.read(name, records.StepLabels)
    return measure_on(run, params, rows, name)[0] if rows else {}


def measure_on(run: Run, params: Any, rows, name: str) -> tuple[dict[str, Any], list]:
    """Measures a PRM on labelled solutions.

    Args:
      run: the run.
      params: of the PRM.
      rows: `records.StepLabels`.
      name: of the rows, for people.

    Returns:
      (`prm.metrics` and the number of solutions left out because they are too long,
      (row, probabilities of its steps) of each solution that was read).
    """
    settings, codec = run.settings, run.codec
    prompt, capacity = settings.prm.prompt, settings.search.context_tokens

    def fits(row: records.StepLabels) -> bool:
        steps = tuple(codec.step(text) for text in row.steps)
        solving = prm.Solving(row.problem, steps)
        return len(prm.context(codec, solving, prompt)) <= capacity

    kept = [row for row in rows if fits(row)]
    mine = hosts.share(kept)
    sampler = rollout.open_sampler(run, run.for_sampling(params), capacity)
    score = prm.make_scorer(sampler, codec, width=1, prompt=prompt)
    with run.monitor.progress(f"prm eval {name}", len(mine), "solution") as advance:
        read = prm.read(score, codec, mine, slots=run.slots, on_done=advance)
    read = hosts.merge(read, run.dir.path / "init", f"prm_{name}")
    left_out = {"left_out": len(rows) - len(kept)}
    return prm.metrics(kept, read) | left_out, list(zip(kept, read, strict=True))


def make_pairs(run: Run) -> None:
    """Searches the tree questions with policy and PRM, and keeps pairs of steps."""
    folder = run.dir.path / "init"
    inputs = run.dir.data("tree_questions") | _digest(run, "policy", "prm")
    stage = run.dir.stage("mcts", folder / "mcts.json", inputs, "trees.partial*")
    if stage.done:
        return
    questions = run.dir.read("tree_questions", records.Question)
    journal = rundir.Journal(
        folder / "trees.partial.jsonl",
        inputs,
        to_row=mcts.to_row,
        from_row=mcts.from_row,
    )
    tokens = _search(run, questions, journal)
    trees = [journal.closed[question.id] for question in questions]
    options = run.settings.mcts
    pairs = [
        pair
        for tree in trees
        for pair in mcts.pairs(
            tree, per_layer=options.pairs_per_layer, min_margin=options.min_margin
        )
    ]
    if hosts.first():
        records.write_jsonl(folder / "trees.jsonl", map(mcts.to_row, trees))
        records.write_jsonl(folder / "pairs.jsonl", map(pair_row, pairs))
    counts = mcts.summary(trees) | {"pairs": len(pairs)} | tokens
    run.monitor.restart("mcts", "policy")
    run.monitor.log("mcts", "policy", 0, counts)
    stage.commit(["trees.jsonl", "pairs.jsonl"], counts=counts)


def _search(run: Run, questions, journal: rundir.Journal) -> dict[str, int]:
    """Searches this host's questions.

    Returns:
      How many tokens this process computed: "tokens"; how many it would have computed
      if the context of every sampled step and of every step that the PRM read had been
      computed again: "tokens_by_node"; and if that of every expansion and simulated
      step had been: "tokens_by_expansion".
    """
    settings, codec, folder = run.settings, run.codec, run.dir.path / "init"
    options, capacity = settings.mcts, settings.search.context_tokens
    prompt, most = settings.prm.prompt, settings.search.max_step_tokens
    writer, reader = (
        rollout.open_sampler(
            run,
            run.for_sampling(run.load(folder / name)),
            capacity,
            remember=options.remember_tokens,
        )
        for name in ("policy", "prm")
    )
    propose = mcts.make_policy(
        writer,
        codec,
        seed=settings.seed,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=most,
    )
    score = prm.make_scorer(reader, codec, width=options.width, prompt=prompt)
    by_node = by_expansion = 0

    def proposed(leaves, samples: int):
        nonlocal by_node, by_expansion
        for leaf in leaves.values():
            context = len(codec.solve_prompt(leaf.problem)) + sum(map(len, leaf.steps))
            by_node += samples * context
            by_expansion += context
        return propose(leaves, samples)

    def scored(solving, candidates):
        nonlocal by_node, by_expansion
        for slot, own in candidates.items():
            context = len(prm.context(codec, solving[slot], prompt))
            steps = sum(len(codec.as_line(ids)) for ids in own)
            by_node += len(own) * context + steps
            by_expansion += context + steps
        return score(solving, candidates)

    def fits(solving: prm.Solving) -> bool:
        written = sum(solving.steps, codec.solve_prompt(solving.problem))
        read = prm.context(codec, solving, prompt)
        return max(len(written), len(read)) + most <= capacity

    def free(slot: int) -> None:
        writer.forget(slot)
        reader.forget(slot)

    mine = hosts.share(questions)
    active = {  # with another number of hosts, some problems are now another host's
        slot: tree
        for slot, tree in journal.active.items()
        if slot < run.slots and tree.question in mine
    }
    begun = {tree.question.id for tree in active.values()} | journal.closed.keys()
    todo = [question for question in mine if question.id not in begun]
    closed: list[mcts.Tree] = []

    def pause(in_flight) -> None:
        # A run that goes on from here begins with empty caches. This run empties its
        # caches, so that both compute the same bits.
        for sampler in (writer, reader):
            sampler.hold({slot: () for slot in range(run.slots)})
            for slot in range(run.slots):
                sampler.forget(slot)
        journal.add(closed, in_flight)
        closed.clear()

    done = sum(question.id in journal.closed for question in mine)
    with run.monitor.progress("mcts", len(mine), "problem", done) as advance:
        for tree in mcts.tree_search(
            todo,
            proposed,
            scored,
            slots=run.slots,
            width=options.width,
            options=mcts.Options(
                options.iterations,
                options.depth,
                options.max_steps,
                options.rule,
                options.exploration,
            ),
            fits=fits,
            on_free=free,
            active=active,
            on_pause=pause,
        ):
            closed.append(tree)
            advance(1)
    journal.add(closed, {})
    _read_all(journal)
    computed = sum(s.computed + s.fed_tokens + s.new_tokens for s in (writer, reader))
    return {
        "tokens": computed,
        "tokens_by_node": by_node + writer.new_tokens,
        "tokens_by_expansion": by_expansion + writer.new_tokens,
    }


def _read_all(journal: rundir.Journal) -> None:
    """Waits for all hosts, and reads what they have written."""
    if hosts.count() > 1:
        hosts.barrier(f"{journal.path.name} written")
        journal.read()


def _journal(path, inputs, record_type: type) -> rundir.Journal:
    """Returns a journal of records."""
    return rundir.Journal(
        path,
        inputs,
        to_row=vars,
        from_row=lambda row: records.from_object(row, record_type),
        name=lambda record: record.id,
    )


# The teacher, and the filter.


def make_eft(run: Run) -> None:
    """Lets a teacher judge the pairs, and keeps what agrees, as the run's EFT rows."""
    folder, settings = run.dir.path / "init", run.settings
    inputs = {"pairs": rundir.file_digest(folder / "pairs.jsonl")}
    stage = run.dir.stage("eft", folder / "eft.json", inputs)
    if stage.done:
        return
    counts = {}
    if hosts.first():
        rows = [row for _, row in records.read_objects(folder / "pairs.jsonl")]
        margins = [best - worst for best, worst in map(_probabilities, rows)]
        pairs = [records.from_object(row, records.Preference) for row in rows]
        prompts = eft.requests(pairs, run.codec.templates)
        with run.monitor.progress("teacher", len(prompts), "judgment") as advance:
            given = _teacher(run, pairs, advance)(prompts)
        kept = eft.keep(
            pairs,
            given,
            run.codec.templates,
            undecided_margin=settings.teacher.undecided_margin,
            margins=margins,
        )
        for line in eft.table(kept.reasons).rstrip().split("\n"):
            run.monitor.say(line)
        counts = kept.reasons | _write_eft(run, kept)
    stage.commit(_written(run), counts=counts)


def _probabilities(row: dict[str, Any]) -> list[float]:
    """Takes the two probabilities out of a line of pairs.jsonl."""
    return row.pop("probabilities")


def _write_eft(run: Run, kept: eft.Kept) -> dict[str, int]:
    """Writes the EFT rows of a run, those held out, and the pairs that were dropped."""
    data, folder = run.settings.data, run.dir.path / "init"
    if not kept.rows:
        raise ValueError(
            f"the filter kept none of {sum(kept.reasons.values())} pairs; expected at "
            f"least one. {folder / 'teacher.jsonl'} has the teacher's answers."
        )
    records.write_jsonl(folder / "dropped.jsonl", kept.dropped)
    held = set()
    if not data.world:
        held = set(_last_problems(kept.rows, data.heldout_count))
        rows = [row for row in kept.rows if row.problem in held]
        records.write_jsonl(run.dir.path / "data" / "heldout.jsonl", rows)
    left = list(dict.fromkeys(r.problem for r in kept.rows if r.problem not in held))
    wanted = set(left[: data.eft_count or None])
    rows = [row for row in kept.rows if row.problem in wanted]
    records.write_jsonl(run.dir.path / "data" / "eft.jsonl", rows)
    return {"eft": len(rows)}


def _written(run: Run) -> list[str]:
    """Returns the files of the stage `make_eft`, relative to its manifest."""
    names = ["dropped.jsonl", "../data/eft.jsonl"]
    return names if run.settings.data.world else [*names, "../data/heldout.jsonl"]


def _last_problems(rows: Sequence, count: int) -> list[str]:
    """Returns the texts of the last `count` problems, which are kept to measure.

    Raises:
      ValueError: when that would leave none to learn from.
    """
    problems = list(dict.fromkeys(row.problem for row in rows))
    if len(problems) <= count:
        raise ValueError(
            f"{len(problems)} problems were made, and {count} are to be held out; "
            "expected more. Lower data.heldout_count or prm.heldout_count, or make "
            "more: mcts.questions, rollouts.problems."
        )
    return problems[len(problems) - count :]


def _teacher(
    run: Run, pairs: Sequence[records.Preference], advance: Callable[[int], None]
) -> teacher.Ask:
    """Returns the teacher of the settings."""
    options, folder = run.settings.teacher, run.dir.path / "init"
    cache = folder / "teacher.jsonl"
    if options.backend == "world":
        rows = arithmetic_teacher.answers(pairs, run.codec.templates)
        records.write_jsonl(cache, rows)
        return teacher.replay(cache, on_done=advance)
    generate = _local(run) if options.backend == "local" else None
    return teacher.make_teacher(
        options, cache, generate=generate, on_done=advance, say=run.monitor.say
    )


def _local(run: Run) -> teacher.Generate:
    """Returns M0, or the model of `teacher.model`, as a writer of answers."""
    options, ids = run.settings.teacher, run.codec.tokenizer
    model = run.local_model
    if not options.model:
        params = run.sampling_params(0)
    elif options.model.startswith("hf:"):
        folder = options.model.removeprefix("hf:")
        ids = tokenizer.load(folder)
        numerics = {
            n: getattr(model.config, n) for n in ("dtype", "remat", "attention")
        }
        shape = dataclasses.replace(hf_config.config_from_hf(folder), **numerics)
        model = lm.Decoder(shape, model.mesh)
        shardings = sharding.param_shardings(model.mesh, lm.abstract_params(model))
        params = weights.load_hf(folder, shape, shardings)
        params = lm.frozen(params, shape.dtype)
    else:
        raise ValueError(
            f"teacher.model={options.model!r} with teacher.backend='local'; expected "
            "'' for M0, or 'hf:DIR'."
        )
    capacity = run.settings.judge.context_tokens + run.settings.search.context_tokens
    sampler = Sampler(model, params, model.mesh, run.slots, capacity)
    verdict = run.codec.templates.verdict
    return teacher_local.sampled(
        sampler,
        ids,
        ends=[verdict.replace("{side}", side) for side in "AB"],
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=run.settings.seed,
    )


def pair_row(pair: mcts.Pair) -> dict[str, Any]:
    """Returns a pair as one line of pairs.jsonl."""
    return vars(pair.preference) | {"probabilities": list(pair.probabilities)}


def _digest(run: Run, *names: str) -> dict[str, str]:
    """Returns name → digest of models of the initial data."""
    folder = run.dir.path / "init"
    return {n: rundir.file_digest(folder / n / "manifest.json") for n in names}


def _model_stage(run: Run, name: str, inputs: dict[str, str]) -> rundir.Stage:
    manifest = run.dir.path / "init" / name / "manifest.json"
    return run.dir.stage(name, manifest, inputs, "train")


def _train(
    run: Run,
    stage: rundir.Stage,
    phase: sft.Phase,
    trees: dict[str, list[forest.Tree]],
    *,
    order: int,
    counts: dict[str, int],
    start: pathlib.Path | None = None,
    measure: Callable[[Any], dict[str, Any]] | None = None,
) -> None:
    """Trains a model for one phase, from M0 or from `start`; commits its stage."""
    folder = stage.manifest.parent
    params, updates = finetune.fit_phase(
        run,
        run.load(start) if start else run.params(0),
        phase,
        trees,
        model=stage.name,
        order=order,
        folder=folder / "train",
    )
    arrays = run.save(folder, params)
    extra = {"metrics": measure(params)} if measure else {}
    stage.commit(arrays=arrays, counts=counts | {"updates": updates}, **extra)


def _in_words(metrics: dict[str, Any]) -> str:
    """Returns numbers in words, for the log."""
    shown = {
        name: f"{value:.4f}" if isinstance(value, float) else value
        for name, value in metrics.items()
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())
