"""``stepjax run --dry-run``: what a run would work with, before it takes hours.

It shows how large data, prompts and model are, a row of training as tokens with the
mask of the loss, one sampled step with its judgments, and one held-out judgment.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from stepjax import forest, records, sft
from stepjax.evaluation import grading, samples, show, show_data
from stepjax.lm import lora
from stepjax.lm import model as lm
from stepjax.row_trees import tree_sizes
from stepjax.run import judges, rollout
from stepjax.run.run import Run

_TRAINING_BYTES = 16  # per parameter: value, gradient, two moments of AdamW in float32


def dry_run(run: Run) -> str:
    """Returns what a prepared run would work with, as text; it trains nothing.

    The newest finished model of the run samples and judges, or M0.

    Args:
      run: the run.
    """
    number = _newest(run.dir.path)
    params = run.sampling_params(number)
    parts = [
        _sizes(run),
        *_training_rows(run),
        _search(run, params, number),
        _judgment(run, params, number),
    ]
    return "\n".join(parts)


def _newest(path: pathlib.Path) -> int:
    made = [p.parent.name[1:] for p in path.glob("M*/manifest.json")]
    return max((int(name) for name in made if name.isdecimal()), default=0)


# Sizes.


def _sizes(run: Run) -> str:
    settings = run.settings
    fixed, count = lora.counts(lm.unboxed(lm.abstract_params(run.model)))
    item = jnp.dtype(run.model.config.dtype).itemsize
    needed = _bytes(fixed * item + count * _TRAINING_BYTES)
    beside = f" of adapters beside {fixed:,} of their base" if fixed else ""
    lines = [
        "sizes",
        f"  model: {count:,} parameters{beside}; training holds about "
        f"{needed} for them on all devices together",
    ]
    makes_eft = not (run.dir.path / "data" / "eft.jsonl").exists()
    if makes_eft:
        lengths = _lengths(run.ift_examples.trees["ift"])
        lines.append(f"  ift rows: {lengths}; eft rows are made later")
    else:
        examples = run.sft_examples
        unit = "trees of a problem" if settings.sft.share_problems else "rows"
        lines += [
            f"  {name} {unit}: {_lengths(trees)}"
            for name, trees in examples.trees.items()
        ]
        lines.append(
            f"  {len(examples.dropped)} rows are longer than train.row_length="
            f"{settings.train.row_length} and left out"
        )
        for phase in settings.sft.phases:
            steps = sft.phase_steps(phase, examples.sizes)
            lines.append(
                f"  sft phase {phase.name}: {steps} updates of {phase.batch_size} rows"
            )
    for name in _question_files(run):
        lines.append(_prompts(run, name))
    search = settings.search
    lines.append(
        f"  search: {search.width} candidates per step, {run.slots} problems at a time "
        f"on this host, {search.max_expansions} expansions per problem at most"
    )
    return "\n".join([*lines, ""])


def _question_files(run: Run) -> list[str]:
    asked = [f"questions_{n}" for n in range(1, run.settings.iterations + 1)]
    return [*asked, *run.dir.benchmarks()]


def _prompts(run: Run, name: str) -> str:
    """Returns how long the prompts of a file are, and what room there is."""
    kind = records.Question if name.startswith("questions") else records.Problem
    rows = run.dir.read(name, kind)
    if not rows:
        return f"  {name}: none"
    sizes = [len(run.codec.solve_prompt(row.problem)) for row in rows]
    judged = [
        len(run.kind.judgments.context(run.codec, row.problem, ())) for row in rows
    ]
    return (
        f"  {name}: {len(rows)} problems, prompts of {min(sizes)} to {max(sizes)} "
        f"tokens (search.context_tokens={run.settings.search.context_tokens}), the "
        f"judge's {min(judged)} to {max(judged)} "
        f"(judge.context_tokens={run.settings.judge.context_tokens})"
    )


def _lengths(trees: Sequence[forest.Tree]) -> str:
    sizes = tree_sizes(trees)[:, 0].tolist()
    if not sizes:
        return "none"
    return (
        f"{len(sizes)}, of {min(sizes)} to {max(sizes)} tokens, "
        f"{sum(sizes) / len(sizes):.0f} on average"
    )


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"


# A row of training.


def _training_rows(run: Run) -> Iterator[str]:
    """Yields the first row of each kind of training data as tokens and mask."""
    made = (run.dir.path / "data" / "eft.jsonl").exists()
    trees = (run.sft_examples if made else run.ift_examples).trees
    for name, rows in trees.items():
        if rows:
            head = f"the first {name} row, {len(rows[0].tokens)} tokens"
            yield "\n".join([head, *show_data.of_tree(run.codec, rows[0]), ""])


# A sampled step and a judgment.


def _search(run: Run, params: Any, number: int) -> str:
    """Returns one expansion of the first question, with its judgments."""
    if not run.settings.iterations:
        return "iterations=0: nothing is searched\n"
    question = run.dir.read("questions_1", records.Question)[0]
    before = run.settings
    once = dataclasses.replace(before.search, max_expansions=1)
    # Before M1 is there, M0 takes its place as a judge too.
    judge = before.judge if number else dataclasses.replace(before.judge, model="")
    run.settings = dataclasses.replace(before, search=once, judge=judge)
    try:
        (state,) = rollout.search_questions(
            run, params, [question], 0, by=before.judge.by
        )
    finally:
        run.settings = before
    shown = show.of_state(state, run.kind.is_right)
    return f"one step that M{number} samples and judges\n{shown}"


def _judgment(run: Run, params: Any, number: int) -> str:
    """Returns the model's judgment of the first held-out row."""
    path = run.dir.path / "data" / "heldout.jsonl"
    rows = records.read_jsonl(path, run.kind.judgments.record) if path.exists() else []
    if not rows:
        return "no held-out row to judge\n"
    sampler = judges.open_sampler(run, params, run.settings.judge.context_tokens)
    (item,) = grading.judge_accuracy(
        judges.self_judge(run, sampler, rows=1),
        run.codec,
        rows[:1],
        slots=run.slots,
        judgments=run.kind.judgments,
    )
    return f"one held-out judgment of M{number}\n{samples.text_of(item)}\n"
