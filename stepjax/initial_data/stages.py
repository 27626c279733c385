"""The stages of a run that make its EFT rows: policy, PRM, tree search, teacher.

A run has them if `data.make_eft` is set. Each is a stage with a manifest, like those of
`stepjax.iterate`, which come after:

    DIR/init/policy/      M0 after SFT on the IFT rows alone
    DIR/init/values.jsonl   with prm.labels="rollouts": what the policy's steps are
                          worth; DIR/data/labels.jsonl, labels_heldout.jsonl: the
                          labels that follow from it
    DIR/init/prm/         M0 (or the policy) after SFT on step labels, and how good it
                          is on others; not with prm.labels="gold", where the gold
                          of a world takes its place
    DIR/init/trees.jsonl, pairs.jsonl   what policy and PRM find together
    DIR/data/eft.jsonl    the rows that M1 learns to judge from (`eft_stage`)
"""

import collections
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepjax import forest, interrupts, records, sft
from stepjax.evaluation import grading
from stepjax.initial_data import mcts, prm, rollouts, step_values
from stepjax.initial_data.eft_stage import make_eft, write_pairs
from stepjax.initial_data.step_values import StepValues
from stepjax.lm import hosts
from stepjax.row_trees import RowTrees
from stepjax.run import data, finetune, judges, manifest, rundir
from stepjax.run.journal import Journal
from stepjax.run.run import Run

# Numbers of the phases, from which their shuffles are drawn; M1's begin with 0.
_POLICY_ORDER, _PRM_ORDER = 1000, 1001


def make(run: Run, last: str = "eft") -> None:
    """Makes the EFT rows of a run, or what is left to do of that.

    Nothing happens in a run whose EFT rows come from a file or from a world.

    Args:
      run: the run.
      last: the stage after which it ends: "prm", "mcts" or "eft".
    """
    options = run.settings.prm
    if not run.settings.data.make_eft:
        return
    if last != "prm" or options.from_policy or options.labels == "rollouts":
        make_policy(run)
    make_labels(run)
    make_prm(run)
    if last != "prm":
        make_pairs(run)
    if last == "eft":
        make_eft(run)


def make_policy(run: Run) -> None:
    """Makes the policy from M0 by SFT on the IFT rows alone."""
    stage = _model_stage(run, "policy", run.dir.data("ift"))
    if stage.done:
        return
    phase, examples = run.settings.mcts.phase, run.ift_examples
    _train(run, stage, phase, examples.trees, order=_POLICY_ORDER, counts={})


def make_labels(run: Run) -> None:
    """Labels steps of the policy by rollouts, if ``prm.labels`` says so.

    The problems are those of the IFT rows, whose answers are known.
    """
    if run.settings.prm.labels != "rollouts":
        return
    folder, options = run.dir.path / "init", run.settings.rollouts
    inputs = run.dir.data("ift") | digests(run, "policy")
    stage = run.dir.stage("rollouts", folder / "values.json", inputs, "values.partial*")
    if stage.done:
        return
    rows = run.dir.read("ift", records.Solution)[: options.problems or None]
    problems = [records.Problem(row.id, row.problem, row.answer) for row in rows]
    journal = Journal(
        folder / "values.partial.jsonl",
        inputs,
        to_row=vars,
        from_row=lambda row: records.from_object(row, StepValues),
        name=lambda values: values.id,
        say=run.monitor.say,
    )
    _estimate_values(run, problems, journal)
    values = [journal.closed[problem.id] for problem in problems]
    labels = [
        row for own in values for row in step_values.labels(own, hard=options.hard)
    ]
    count = run.settings.prm.heldout_count
    labels, heldout = data.hold_out(
        labels, "prm.heldout_count", count, source="what rollouts.problems gave labels"
    )
    if hosts.first():
        records.write_jsonl(folder / "values.jsonl", values)
        records.write_jsonl(folder / "../data/labels.jsonl", labels)
        records.write_jsonl(folder / "../data/labels_heldout.jsonl", heldout)
    written = ["values.jsonl", "../data/labels.jsonl", "../data/labels_heldout.jsonl"]
    counts = {"problems": len(values), "rows": len(labels), "heldout": len(heldout)}
    stage.commit(written, counts=counts)


def _estimate_values(
    run: Run, problems: Sequence[records.Problem], journal: Journal
) -> None:
    """Tries this host's problems, as many of them as the journal does not have."""
    options, seed = run.settings.rollouts, run.settings.seed
    params = run.load_for_sampling(policy_folder(run))
    sampler = judges.open_sampler(run, params, run.settings.search.context_tokens)

    def is_correct(problem: records.Problem, text: str) -> bool:
        return grading.graded(problem, text)["right"]

    mine = hosts.share(problems)
    todo, _ = journal.rest(mine, run.slots)
    done = len(mine) - len(todo)
    progress = run.monitor.progress("rollouts", len(mine), "problem", done)
    with progress as advance, interrupts.apart():
        tried = rollouts.solutions(sampler, run.codec, todo, options, seed=seed)
        for values in rollouts.values(
            sampler, run.codec, tried, is_correct, options, seed=seed
        ):
            journal.add([values], {})
            advance(1)
            interrupts.check(f"{len(journal.closed)} of {len(problems)} are saved")
    journal.join()


def make_prm(run: Run) -> None:
    """Makes the PRM by SFT on step labels, and measures it on held-out ones.

    Nothing happens where the gold takes its place.
    """
    options = run.settings.prm
    if not options.learns:
        return
    inputs = run.dir.data("labels") | run.dir.data("labels_heldout")
    if options.from_policy:
        inputs |= digests(run, "policy")
    stage = _model_stage(run, "prm", inputs)
    if stage.done:
        return
    rows = run.dir.rows("labels", records.StepLabels)
    length, weight = run.settings.train.row_length, options.language_weight

    def tree_of(row: records.StepLabels) -> forest.Tree:
        return prm.tree(run.codec, row, options.prompt, weight)

    counting = "prm: counting the tokens of the labelled solutions"
    with run.monitor.during(counting, len(rows)) as advance:
        kept = RowTrees(rows, tree_of, length, "labels", on_rows=advance)
    dropped = kept.dropped
    if dropped:
        run.monitor.say(
            f"prm: {len(dropped)} of {len(rows)} labelled solutions are longer than "
            f"train.row_length={length} tokens and are left out (the first is "
            f"{dropped[0]})."
        )
    _train(
        run,
        stage,
        options.phase,
        {"ift": (), "eft": kept},  # the PRM's rows take the place of EFT rows
        start=policy_folder(run) if options.from_policy else None,
        order=_PRM_ORDER,
        counts={"rows": len(kept), "dropped": len(dropped)},
        measure=lambda params: measure_prm(run, params),
    )
    run.monitor.say(f"prm: {in_words(stage.done['metrics'])}")


def measure_prm(run: Run, params: Any) -> dict[str, Any]:
    """Returns how good a PRM is on the held-out labels of the run.

    Returns:
      `prm.metrics`, and as "left_out" the number of solutions that are too long to be
      read; nothing where no labels are held out.
    """
    rows = run.dir.read("labels_heldout", records.StepLabels)
    if not rows:
        return {}
    kept, probabilities = read_steps(run, run.for_sampling(params), rows, "heldout")
    return prm.metrics(kept, probabilities) | {"left_out": len(rows) - len(kept)}


def read_steps(
    run: Run, params: Any, rows: Sequence[records.StepLabels], name: str
) -> tuple[list[records.StepLabels], list[list[float]]]:
    """Lets a PRM read labelled solutions.

    Args:
      run: the run.
      params: of the PRM, as `Run.for_sampling` returns them.
      rows: the solutions; their labels are not read.
      name: of the rows, for people.

    Returns:
      (the rows that fit into search.context_tokens, for each of them the probability
      of every step).
    """
    codec, prompt = run.codec, run.settings.prm.prompt
    capacity = run.settings.search.context_tokens

    def fits(row: records.StepLabels) -> bool:
        solving = prm.Solving(row.problem, tuple(map(codec.step, row.steps)))
        return len(prm.context(codec, solving, prompt)) <= capacity

    kept = list(filter(fits, rows))
    mine = hosts.share(kept)
    sampler = judges.open_sampler(run, params, capacity)
    score = prm.make_scorer(sampler, codec, width=1, prompt=prompt)
    what = f"prm reads {name}", len(mine), "solution"
    # The PRM that reads has no manifest yet, so no signal stops here.
    with run.monitor.progress(*what, stops=False) as advance:
        read = prm.read(score, codec, mine, slots=run.slots, on_done=advance)
    return kept, hosts.merge(read, run.dir.path / "init", f"prm_{name}")


def make_pairs(run: Run) -> None:
    """Searches the tree questions with policy and PRM, and keeps pairs of steps."""
    folder, options = run.dir.path / "init", run.settings.mcts
    inputs = run.dir.data("tree_questions") | digests(run, *_searchers(run))
    stage = run.dir.stage("mcts", folder / "mcts.json", inputs, "trees.partial*")
    if stage.done:
        return
    questions = run.dir.read("tree_questions", records.Question)
    journal = Journal(
        folder / "trees.partial.jsonl",
        inputs,
        to_row=mcts.to_row,
        from_row=mcts.from_row,
        say=run.monitor.say,
    )
    tokens = _search(run, questions, journal)
    trees = [journal.closed[question.id] for question in questions]
    kept = {
        "per_layer": options.pairs_per_layer,
        "min_margin": options.min_margin,
        "per_node": options.pairs_per_node,
    }
    pairs = [pair for tree in trees for pair in mcts.pairs(tree, **kept)]
    if not pairs:
        raise ValueError(
            f"the tree search of {len(trees)} questions found no pair of steps whose "
            f"PRM probabilities differ by mcts.min_margin={options.min_margin}; "
            "expected at least one. Raise mcts.temperature, or train policy and PRM "
            "longer."
        )
    share = options.undecided_share
    undecided = [pair for tree in trees for pair in mcts.undecided_pairs(tree)]
    count = min(len(undecided), round(share / (1 - share) * len(pairs)))
    rng = random.Random(f"undecided pairs, seed {run.settings.seed}")
    pairs += rng.sample(undecided, count)
    if hosts.first():
        records.write_jsonl(folder / "trees.jsonl", map(mcts.to_row, trees))
        write_pairs(run, pairs)
    found = mcts.summary(trees) | {"pairs": len(pairs)}
    run.monitor.restart("mcts", "policy")
    run.monitor.log("mcts", "policy", 0, found)
    stage.commit(["trees.jsonl", "pairs.jsonl"], counts=found | tokens)


def _searchers(run: Run) -> tuple[str, ...]:
    """Returns the names of the models that search the trees."""
    return ("policy", "prm") if run.settings.prm.learns else ("policy",)


def _search(
    run: Run, questions: Sequence[records.Question], journal: Journal
) -> dict[str, int]:
    """Searches this host's questions, as many of them as the journal does not have.

    Returns:
      "tokens": how many tokens this process computed, and the counts of `_counted`.
      What an earlier process did is not counted.
    """
    settings, codec = run.settings, run.codec
    options, capacity = settings.mcts, settings.search.context_tokens
    prompt, most = settings.prm.prompt, settings.search.max_step_tokens
    learns, is_right = settings.prm.learns, run.kind.is_right
    writer, *reader = samplers = [
        judges.open_sampler(
            run,
            run.load_for_sampling(run.dir.path / "init" / name),
            capacity,
            remember=options.remember_tokens,
        )
        for name in _searchers(run)
    ]
    propose = mcts.make_policy(
        writer,
        codec,
        seed=settings.seed,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=most,
    )
    if learns:
        score = prm.make_scorer(*reader, codec, width=options.width, prompt=prompt)
    else:
        score = prm.gold_scorer(is_right, codec)
    propose, score, tokens = _counted(run, propose, score)

    def fits(solving: prm.Solving) -> bool:
        if not learns and solving.steps:  # nothing right follows a wrong step
            *steps, last = map(codec.text, solving.steps)
            if not is_right(solving.problem, steps, last):
                return False
        written = sum(solving.steps, codec.solve_prompt(solving.problem))
        read = prm.context(codec, solving, prompt)
        return max(len(written), len(read)) + most <= capacity

    def free(slot: int) -> None:
        for sampler in samplers:
            sampler.forget(slot)

    closed: list[mcts.Tree] = []

    def pause(in_flight) -> None:
        # A run that goes on from here begins with empty caches. This run empties its
        # caches, so that both compute the same bits.
        for sampler in samplers:
            sampler.hold({slot: () for slot in range(run.slots)})
        for slot in range(run.slots):
            free(slot)
        journal.add(closed, in_flight)
        closed.clear()
        interrupts.check(
            f"{len(journal.closed)} of {len(questions)} tree searches are saved, and "
            f"what was found in {len(in_flight)} that are not finished"
        )

    mine = hosts.share(questions)
    todo, active = journal.rest(mine, run.slots)
    done = len(mine) - len(todo) - len(active)
    progress = run.monitor.progress("mcts", len(mine), "problem", done)
    with progress as advance, interrupts.apart():
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
            on_free=free,
            active=active,
            on_pause=pause,
            pause_now=interrupts.asked,
        ):
            closed.append(tree)
            advance(1)
        journal.add(closed, {})
    journal.join()
    computed = sum(s.computed + s.fed_tokens + s.new_tokens for s in samplers)
    sampled = {name: count + writer.new_tokens for name, count in tokens.items()}
    return {"tokens": computed} | sampled


def _counted(
    run: Run, propose: mcts.Propose, score: prm.Scorer
) -> tuple[mcts.Propose, prm.Scorer, collections.Counter]:
    """Counts the tokens of a search that computes every context again.

    Returns:
      (`propose` and `score` as they were, but counted; the counter). The counter has
      "tokens_by_node", where each sampled step and each step that the PRM reads has its
      context computed again, and "tokens_by_expansion", where each call has. The tokens
      that are sampled come on top.
    """
    codec, prompt = run.codec, run.settings.prm.prompt
    tokens = collections.Counter(tokens_by_node=0, tokens_by_expansion=0)

    def counted_propose(leaves, samples):
        for leaf in leaves.values():
            context = len(codec.solve_prompt(leaf.problem)) + sum(map(len, leaf.steps))
            tokens["tokens_by_node"] += samples * context
            tokens["tokens_by_expansion"] += context
        return propose(leaves, samples)

    def counted_score(solving, candidates):
        for slot, own in candidates.items():
            context = len(prm.context(codec, solving[slot], prompt))
            steps = sum(len(codec.as_line(ids)) for ids in own)
            tokens["tokens_by_node"] += len(own) * context + steps
            tokens["tokens_by_expansion"] += context + steps
        return score(solving, candidates)

    read = counted_score if run.settings.prm.learns else score
    return counted_propose, read, tokens


def in_words(metrics: dict[str, Any]) -> str:
    """Returns measured values as a line for people: "steps 30, accuracy 0.9000"."""
    words = (
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in metrics.items()
    )
    return ", ".join(words) or "not measured, as prm.heldout_count is 0"


# How the stages train.


def policy_folder(run: Run) -> pathlib.Path:
    """Returns where the policy is."""
    return run.dir.path / "init" / "policy"


def digests(run: Run, *names: str) -> dict[str, str]:
    """Returns the names and digests of finished models in DIR/init, as inputs."""
    folder = run.dir.path / "init"
    return {n: manifest.model_digest(folder / n / "manifest.json") for n in names}


def _model_stage(run: Run, name: str, inputs: dict[str, str]) -> rundir.Stage:
    """Returns the stage of a model; it deletes training states at its end."""
    manifest = run.dir.path / "init" / name / "manifest.json"
    return run.dir.stage(name, manifest, inputs, "train")


def _train(
    run: Run,
    stage: rundir.Stage,
    phase: sft.Phase,
    trees: Mapping[str, Sequence[forest.Tree]],
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
