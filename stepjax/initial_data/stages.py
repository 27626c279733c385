"""The stages of a run that make its EFT rows: policy, PRM, tree search, teacher.

Each is a stage with a manifest, like those of `stepjax.iterate`, which come after:

    DIR/init/policy/   M0 after SFT on the IFT rows alone
    DIR/init/prm/      M0 after SFT on step labels; what it is worth on held-out ones
    DIR/init/trees.jsonl  pairs.jsonl   what policy and PRM find together
    DIR/init/teacher.jsonl  dropped.jsonl   the teacher's answers; pairs not kept, why
    DIR/data/eft.jsonl      the rows that M1 learns to judge from
"""

import pathlib
from typing import Any

from stepjax import records
from stepjax.initial_data import mcts, prm
from stepjax.lm import hosts
from stepjax.run import finetune, rollout, rundir
from stepjax.run.run import Run

# Numbers of the phases, from which their shuffles are drawn; M1's begin with 0.
_POLICY_ORDER, _PRM_ORDER = 1000, 1001


def make(run: Run) -> None:
    """Makes the EFT rows of a run, or what is left to do of that.

    Nothing happens in a run whose EFT rows come from a file or from a world.
    """
    if run.settings.data.make_eft:
        make_policy(run)
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


def make_prm(run: Run) -> None:
    """Makes the PRM from M0 by SFT on step labels, and measures it on held-out ones."""
    inputs = run.dir.data("labels") | run.dir.data("labels_heldout")
    stage = _model_stage(run, "prm", inputs)
    if stage.done:
        return
    rows = run.dir.read("labels", records.StepLabels)
    prompt, length = run.settings.prm.prompt, run.settings.train.row_length
    trees = [prm.tree(run.codec, row, prompt) for row in rows]
    kept = [tree for tree in trees if len(tree.tokens) <= length]
    if len(kept) < len(trees):
        run.monitor.say(
            f"prm: {len(trees) - len(kept)} of {len(trees)} labelled solutions are "
            f"longer than train.row_length={length} tokens and are left out."
        )
    params = _train(
        run,
        stage,
        run.settings.prm.phase,
        {"ift": [], "eft": kept},
        order=_PRM_ORDER,
        counts={"rows": len(kept), "dropped": len(trees) - len(kept)},
        measure=lambda params: measure_prm(run, params, "labels_heldout"),
    )
    del params
    run.monitor.say(f"prm: {_in_words(stage.done['metrics'])}")


def measure_prm(run: Run, params: Any, name: str) -> dict[str, Any]:
    """Returns what the PRM is worth on a data file of the run; see `prm.metrics`."""
    rows = run.dir.read(name, records.StepLabels)
    return measure_on(run, params, rows, name)[0]


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
    inputs = run.dir.data("tree_questions")
    inputs |= {
        name: rundir.file_digest(folder / name / "manifest.json")
        for name in ("policy", "prm")
    }
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
    """Searches this host's questions; returns what was computed, in tokens."""
    settings, codec, folder = run.settings, run.codec, run.dir.path / "init"
    options, capacity = settings.mcts, settings.search.context_tokens
    models = [run.for_sampling(run.load(folder / name)) for name in ("policy", "prm")]
    writer, reader = (rollout.open_sampler(run, model, capacity) for model in models)
    propose = mcts.make_policy(
        writer,
        codec,
        seed=settings.seed,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=settings.search.max_step_tokens,
    )
    prompt, most = settings.prm.prompt, settings.search.max_step_tokens
    score = prm.make_scorer(reader, codec, width=options.width, prompt=prompt)

    def fits(solving: prm.Solving) -> bool:
        written = sum(solving.steps, codec.solve_prompt(solving.problem))
        read = prm.context(codec, solving, prompt)
        return max(len(written), len(read)) + most <= capacity

    mine = hosts.share(questions)
    todo = [question for question in mine if question.id not in journal.closed]
    waiting: list[mcts.Tree] = []
    done = len(mine) - len(todo)
    with run.monitor.progress("mcts", len(mine), "problem", done) as advance:
        for tree in mcts.tree_search(
            todo,
            propose,
            score,
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
        ):
            waiting.append(tree)
            advance(1)
            if len(waiting) >= run.slots:
                journal.add(waiting, {})
                waiting.clear()
    journal.add(waiting, {})
    if hosts.count() > 1:
        hosts.barrier("mcts")
        journal.read()
    return {}


def pair_row(pair: mcts.Pair) -> dict[str, Any]:
    """Returns a pair as one line of pairs.jsonl."""
    return vars(pair.preference) | {"probabilities": list(pair.probabilities)}


def _model_stage(run: Run, name: str, inputs: dict[str, str]) -> rundir.Stage:
    manifest = run.dir.path / "init" / name / "manifest.json"
    return run.dir.stage(name, manifest, inputs, "train")


def _train(run: Run, stage, phase, trees, *, order, counts, measure=None) -> Any:
    """Trains a model from M0 for one phase, and commits its stage."""
    folder: pathlib.Path = stage.manifest.parent
    params, updates = finetune.fit_phase(
        run,
        run.params(0),
        phase,
        trees,
        model=stage.name,
        order=order,
        folder=folder / "train",
    )
    arrays = run.save(folder, params)
    extra = {"metrics": measure(params)} if measure else {}
    stage.commit(arrays=arrays, counts=counts | {"updates": updates}, **extra)
    return params


def _in_words(metrics: dict[str, Any]) -> str:
    """Returns numbers in words, for the log."""
    shown = {
        name: f"{value:.4f}" if isinstance(value, float) else value
        for name, value in metrics.items()
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())
