"""The last stage of the initial data: a teacher judges the pairs, a filter keeps some.

    DIR/init/teacher.jsonl  the teacher's answers
    DIR/init/dropped.jsonl  the pairs that were not kept, and why
    DIR/data/eft.jsonl      the rows that M1 learns to judge from, with those of
                            data.corrupted_count in a world
    DIR/data/heldout.jsonl  rows kept to measure the judge, in a run from files

A run in a built-in world has held-out rows of its own (`stepjax.run.data`).
"""

import random
from collections.abc import Callable, Sequence

from stepjax import interrupts, records
from stepjax.initial_data import eft, mcts, teacher, teacher_local
from stepjax.lm import hosts, pretrained
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.run import data, rundir
from stepjax.run.run import Run

# The longest time that the other hosts wait for the first one, which asks the teacher.
_TEACHER_SECONDS = 7 * 24 * 3600.0


def make_eft(run: Run) -> None:
    """Lets a teacher judge the pairs, and writes what the filter keeps as EFT rows.

    Raises:
      ValueError: the tree search is not finished, the teacher cannot answer, or the
        filter keeps too little.
    """
    folder, settings = run.dir.path / "init", run.settings
    inputs = {"pairs": rundir.file_digest(folder / "pairs.jsonl")}
    if settings.data.corrupted_count:
        inputs |= run.dir.data("tree_questions") | run.dir.data("ift")
    stage = run.dir.stage("eft", folder / "eft.json", inputs)
    if stage.done:
        return
    generate = None
    if settings.teacher.backend == "local":
        generate = _stopping(_local(run))
    counts = {}
    with interrupts.apart():
        if hosts.first():
            counts = _ask_and_keep(run, generate)
    hosts.barrier("the teacher's answers", _TEACHER_SECONDS)
    interrupts.check("the teacher's answers are saved")
    written = ["dropped.jsonl", "../data/eft.jsonl"]
    if not settings.data.world:
        written.append("../data/heldout.jsonl")
    stage.commit(written, counts=counts)


def _ask_and_keep(run: Run, generate: teacher.Generate | None) -> dict[str, int]:
    """Asks the teacher, and writes the rows that the filter keeps; returns counts."""
    pairs, settings = read_pairs(run), run.settings
    preferences = [pair.preference for pair in pairs]
    prompts = eft.requests(preferences, run.codec.templates)
    with run.monitor.progress("teacher", len(prompts), "judgment") as advance:
        answers = _teacher(run, preferences, generate, advance)(prompts)
    kept = eft.keep(
        preferences,
        answers,
        run.codec.templates,
        undecided_margin=settings.teacher.undecided_margin,
        margins=[best - worst for _, (best, worst) in pairs],
        explained=settings.data.explanations != "none",
    )
    for line in eft.table(kept.reasons).rstrip().split("\n"):
        run.monitor.say(line)
    return kept.reasons | _write(run, kept)


def write_pairs(run: Run, pairs: Sequence[mcts.Pair]) -> None:
    """Writes DIR/init/pairs.jsonl: preferences, each with its two probabilities."""
    rows = (vars(p.preference) | {"probabilities": p.probabilities} for p in pairs)
    records.write_jsonl(run.dir.path / "init" / "pairs.jsonl", rows)


def read_pairs(run: Run) -> list[mcts.Pair]:
    """Reads what `write_pairs` wrote."""
    pairs = []
    for _, row in records.read_objects(run.dir.path / "init" / "pairs.jsonl"):
        best, worst = row.pop("probabilities")
        preference = records.from_object(row, records.Preference)
        pairs.append(mcts.Pair(preference, (best, worst)))
    return pairs


def _write(run: Run, kept: eft.Kept) -> dict[str, int]:
    """Writes what the filter made of the pairs; returns the number of EFT rows."""
    options, folder = run.settings.data, run.dir.path
    records.write_jsonl(folder / "init" / "dropped.jsonl", kept.dropped)
    if not kept.rows:
        raise ValueError(
            f"the filter kept none of {sum(kept.reasons.values())} pairs; expected at "
            f"least one. {folder / 'init' / 'teacher.jsonl'} has the teacher's answers."
        )
    rows = kept.rows
    if not options.world:
        rows, held = data.hold_out(
            rows,
            "data.heldout_count",
            options.heldout_count,
            source="what the filter kept",
        )
        records.write_jsonl(folder / "data" / "heldout.jsonl", held)
    problems = list(dict.fromkeys(row.problem for row in rows))
    wanted = set(problems[: options.eft_count or None])
    rows = [row for row in rows if row.problem in wanted]
    corrupted = _corrupted(run)
    records.write_jsonl(folder / "data" / "eft.jsonl", rows + corrupted)
    return {"eft": len(rows), "corrupted": len(corrupted)}


def _corrupted(run: Run) -> list[records.Comparison]:
    """Makes the rows of `data.corrupted_count`, of problems that M1 learns from anyway.

    These are the questions of the tree search, then those of the IFT rows, then the
    first ones again with other mistakes.
    """
    count, seed = run.settings.data.corrupted_count, run.settings.seed
    if not count:
        return []
    pool = run.dir.read("tree_questions", records.Question)
    pool += run.dir.read("ift", records.Solution)
    rng = random.Random(f"corrupted steps, seed {seed}")
    rows = []
    for number in range(count):
        row = pool[number % len(pool)]
        name = f"corrupted-{number}-{row.id}"
        rows += run.kind.world_rows(name, row.problem, rng, eft.BOTH_WRONG)
    return rows


def _teacher(
    run: Run,
    pairs: Sequence[records.Preference],
    generate: teacher.Generate | None,
    advance: Callable[[int], None],
) -> teacher.Ask:
    """Returns the teacher of the settings."""
    options, cache = run.settings.teacher, run.dir.path / "init" / "teacher.jsonl"
    if options.backend == "world":
        rows = run.kind.teach(pairs, run.codec.templates)
        records.write_jsonl(cache, rows)
        return teacher.replay(cache, on_done=advance)
    return teacher.make_teacher(
        options, cache, generate=generate, on_done=advance, say=run.monitor.say
    )


def _stopping(generate: teacher.Generate) -> teacher.Generate:
    """Returns a writer of answers that stops when a signal asks for it."""

    def answers(prompts: Sequence[str]):
        for answer in generate(prompts):
            yield answer  # it is kept before the next one is asked for
            interrupts.check("the teacher's answers so far are saved")

    return answers


def _local(run: Run) -> teacher.Generate:
    """Returns M0, or the model of `teacher.model`, as a writer of answers.

    All hosts call this together, because all of them load M0; the first one asks.
    """
    options, codec, model = run.settings.teacher, run.codec, run.local_model
    if options.model:
        codec, shape = teacher_local.described(run.settings, codec.templates)
        model, place = lm.Decoder(shape, model.mesh), pretrained.place(options.model)
        params = pretrained.load(options.model, place, model, shape.dtype)
    else:
        params = run.sampling_params(0)
    capacity = run.settings.judge.context_tokens + run.settings.search.context_tokens
    sampler = Sampler(model, params, model.mesh, run.slots, capacity)
    verdict = run.codec.templates.verdict
    return teacher_local.sampled(
        sampler,
        codec.tokenizer,
        ends=[verdict.replace("{side}", side) for side in "AB"],
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=run.settings.seed,
        encode=codec.message,
    )
