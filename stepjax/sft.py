"""M0 → M1: supervised fine-tuning on IFT and EFT data (paper, section 3.2).

The loss is on the response tokens only. SFT is a list of phases, each with its own
mixture and stop rule; the default is the paper's single phase, IFT and EFT mixed for
three epochs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from stepjax import forest
from stepjax.codec import Codec
from stepjax.lm import sharding, train
from stepjax.records import Solution

# Ids of the prompt, ids of the response, text of the verdict that ends the response.
Example = tuple[tuple[int, ...], tuple[int, ...], str]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of SFT.

    Attributes:
      name: for people.
      ift: share of IFT rows in a batch; 0 leaves them out.
      eft: share of EFT rows in a batch; 0 leaves them out.
      epochs: passes over all rows of the kinds whose share is above 0, shuffled
        together, so that the sizes of the data decide the mixture; 0 with `steps`.
      steps: number of updates, each with a batch mixed by the shares; 0 with `epochs`.
      stop_loss: the phase ends when the mean loss of a log period is below it.
      batch_size: sequences per update; with `sft.share_problems`, all judgments of a
        problem count as one.
      optimizer: learning rate and schedule.
    """

    name: str
    ift: float
    eft: float
    epochs: int
    steps: int
    stop_loss: float
    batch_size: int
    optimizer: train.OptimizerOptions

    def __post_init__(self):
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError(
                f"sft phase {self.name!r} has epochs={self.epochs} and "
                f"steps={self.steps}; expected exactly one of them above 0."
            )
        if min(self.ift, self.eft) < 0 or self.ift + self.eft <= 0:
            raise ValueError(
                f"sft phase {self.name!r} has shares ift={self.ift}, eft={self.eft}; "
                "expected shares >= 0 with a sum above 0."
            )


def solution_tree(codec: Codec, row: Solution) -> forest.Tree:
    """Returns an IFT row as a path, scored on its steps."""
    prompt, steps = codec.solution(row)
    response = sum(steps, ())
    weights = [0.0] * len(prompt) + [1.0] * len(response)
    return forest.path_tree(prompt + response, weights)


def judgment_tree(
    codec: Codec,
    example: Example,
    verdict_weight: float,
    verdict_words: Sequence[str] = (),
) -> forest.Tree:
    """Returns an EFT row as a path, scored on explanation and verdict.

    Args:
      codec: tokenizer and templates.
      example: ids of the prompt, ids of the response with EOS, and the text of the
        verdict that ends the response; see `judge.Judgments.example`.
      verdict_weight: weight of the verdict's tokens and EOS; tokens before have 1.
      verdict_words: words of the explanation that weigh as much as the verdict.
    """
    prompt, response, verdict = example
    last = codec.verdict_tokens(response, verdict)
    heavy = codec.words(response[:-last], verdict_words) + [True] * last
    weights = [verdict_weight if h else 1.0 for h in heavy]
    return forest.path_tree(prompt + response, [0.0] * len(prompt) + weights)


def fitting_trees(
    trees: Sequence[forest.Tree], ids: Sequence[str], row_length: int, name: str
) -> tuple[list[forest.Tree], list[str]]:
    """Returns the trees that fit a row, and the ids of those that do not.

    Raises:
      ValueError: when none fits.
    """
    kept = [tree for tree in trees if len(tree.tokens) <= row_length]
    dropped = [
        id for id, tree in zip(ids, trees, strict=True) if len(tree.tokens) > row_length
    ]
    if trees and not kept:
        shortest = min(len(tree.tokens) for tree in trees)
        raise ValueError(
            f"the shortest {name} row has {shortest} tokens; expected at most "
            f"train.row_length={row_length}. Raise train.row_length."
        )
    return kept, dropped


def share_problems(
    trees: Sequence[forest.Tree], problems: Sequence[str], row_length: int
) -> list[forest.Tree]:
    """Returns trees with one tree for all rows of a problem, where they fit.

    What the rows begin with, the instructions and the problem, is then computed once.
    The loss and its gradient are the same as those of the rows in one batch.

    Args:
      trees: paths, one per row.
      problems: problem of each row.
      row_length: most tokens of a tree; more rows of a problem begin another tree.
    """
    return [tree for tree, _ in _shared(trees, problems, row_length)]


def _shared(
    trees: Sequence[forest.Tree], problems: Sequence[str], row_length: int
) -> list[tuple[forest.Tree, list[int]]]:
    """Returns the trees of `share_problems`, each with the places of its rows."""
    by_problem: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        by_problem.setdefault(problem, []).append(place)
    result = []
    for first, *further in by_problem.values():
        group, merged = [first], trees[first]
        for place in further:
            larger = forest.merge([*(trees[i] for i in group), trees[place]])
            if len(larger.tokens) > row_length:
                result.append((merged, group))
                group, larger = [], trees[place]
            group.append(place)
            merged = larger
        result.append((merged, group))
    return result


class Examples(NamedTuple):
    """What SFT trains on.

    Attributes:
      trees: "ift" and "eft" → the rows that fit a row of training.
      dropped: ids of the rows that are too long.
      ids: "ift" and "eft" → the id of each tree, those of its rows with "+" between.
      plain: "ift" and "eft" → for each tree, the tokens of its rows laid out one by
        one; None where no rows share a tree.
    """

    trees: dict[str, list[forest.Tree]]
    dropped: list[str]
    ids: dict[str, list[str]]
    plain: dict[str, list[int]] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows "ift" and "eft" have."""
        return {name: len(trees) for name, trees in self.trees.items()}


def absent_words(
    codec: Codec,
    responses: Iterable[Sequence[int]],
    words: Sequence[str],
) -> list[str]:
    """Returns the words that no response has as a whole word."""
    absent = list(words)
    for ids in responses:
        absent = [word for word in absent if not any(codec.words(ids, [word]))]
        if not absent:
            break
    return absent


def examples(
    ift: Sequence[Solution],
    eft: Sequence[Any],
    codec: Codec,
    *,
    example: Callable[[Codec, Any], Example],
    row_length: int,
    verdict_weight: float,
    verdict_words: Sequence[str] = (),
    share: bool = False,
) -> Examples:
    """Returns IFT and EFT rows as trees, without the rows that are too long.

    Args:
      ift: solutions.
      eft: judgments.
      codec: tokenizer and templates.
      example: what a judgment teaches, see `judge.Judgments`.
      row_length: most tokens of an example.
      verdict_weight: see `judgment_tree`.
      verdict_words: see `judgment_tree`.
      share: one tree for all judgments of a problem, see `share_problems`.

    Raises:
      ValueError: when all rows of one kind are too long.
    """
    weighed = verdict_weight, verdict_words
    every = {
        "ift": [solution_tree(codec, row) for row in ift],
        "eft": [judgment_tree(codec, example(codec, row), *weighed) for row in eft],
    }
    kept, names, dropped = {}, {}, []
    for name, rows in (("ift", ift), ("eft", eft)):
        ids = [row.id for row in rows]
        kept[name], too_long = fitting_trees(every[name], ids, row_length, name)
        lost = set(too_long)
        names[name] = [id for id in ids if id not in lost]
        dropped += too_long
    plain = None
    if share:
        rows = zip(eft, every["eft"], strict=True)
        problems = [row.problem for row, t in rows if len(t.tokens) <= row_length]
        lengths = {name: [len(t.tokens) for t in trees] for name, trees in kept.items()}
        shared = _shared(kept["eft"], problems, row_length)
        plain = {
            "ift": lengths["ift"],
            "eft": [sum(lengths["eft"][i] for i in group) for _, group in shared],
        }
        kept["eft"] = [tree for tree, _ in shared]
        names["eft"] = ["+".join(names["eft"][i] for i in group) for _, group in shared]
    return Examples(kept, dropped, names, plain)


def loss(params, reference, rows: forest.Rows, *, model):
    """Returns (weighted sum of token losses, (sum of weights, no further sums))."""
    del reference
    logps = train.scored_logps(model, params, rows)
    return -(rows.weight * logps).sum(), (rows.weight.sum(), {})


def phase_steps(phase: Phase, sizes: dict[str, int]) -> int:
    """Returns the updates of a phase.

    Args:
      phase: the phase.
      sizes: rows of "ift" and "eft".

    Raises:
      ValueError: when a source with a share has no rows.
    """
    for name in ("ift", "eft"):
        if getattr(phase, name) > 0 and not sizes[name]:
            raise ValueError(
                f"sft phase {phase.name!r} wants {name} rows and there are none; "
                f"expected at least one. Set its {name} share to 0 or provide data."
            )
    if phase.steps:
        return phase.steps
    total = sum(sizes[name] for name in sizes if getattr(phase, name) > 0)
    return math.ceil(total * phase.epochs / phase.batch_size)


def rows_function(
    phase: Phase, number: int, sizes: Mapping[str, int], seed: int
) -> Callable[[int], list[tuple[str, int]]]:
    """Returns a function: number of an update → its rows, as ("ift" or "eft", place).

    Args:
      phase: the phase.
      number: its position in the list of phases.
      sizes: rows of "ift" and "eft".
      seed: base seed.
    """

    @functools.lru_cache(maxsize=8)
    def shuffled(name: str, size: int, epoch: int) -> np.ndarray:
        path = [seed, number, sum(map(ord, name)), epoch]
        return np.random.default_rng(path).permutation(size)

    def stream(name: str, rows, start: int, count: int) -> list[tuple[str, int]]:
        size = len(rows)
        at = range(start, start + count)
        return [rows[shuffled(name, size, i // size)[i % size]] for i in at]

    places = {name: [(name, n) for n in range(size)] for name, size in sizes.items()}
    together = [
        row for name in sizes if getattr(phase, name) > 0 for row in places[name]
    ]
    share = phase.ift / (phase.ift + phase.eft)

    def rows_at(step: int) -> list[tuple[str, int]]:
        size = phase.batch_size
        if phase.epochs:
            end = min((step + 1) * size, len(together) * phase.epochs)
            return stream("all", together, step * size, end - step * size)
        # After n updates, round(n * size * share) IFT rows have been taken in all.
        before, after = round(step * size * share), round((step + 1) * size * share)
        ift = stream("ift", places["ift"], before, after - before)
        start, count = step * size - before, size - (after - before)
        return ift + stream("eft", places["eft"], start, count)

    return rows_at


def batch_function(
    phase: Phase,
    number: int,
    sources: Mapping[str, Sequence[forest.Tree]],
    *,
    mesh: Mesh,
    row_length: int,
    micro_batches: int,
    seed: int,
) -> Callable[[int], forest.Rows]:
    """Returns a function: number of an update → its batch on the devices.

    Args:
      phase: the phase.
      number: its position in the list of phases.
      sources: trees of "ift" and "eft".
      mesh: devices.
      row_length: tokens of a row.
      micro_batches: parts of a batch whose gradients are summed.
      seed: base seed.
    """
    sizes = {name: len(trees) for name, trees in sources.items()}
    rows_at = rows_function(phase, number, sizes, seed)
    multiple = sharding.row_multiple(mesh)

    def batch_at(step: int) -> forest.Rows:
        trees = [sources[name][place] for name, place in rows_at(step)]
        parts = [trees[i::micro_batches] for i in range(micro_batches)]
        sizes = [forest.size(part, row_length) for part in parts]
        needed, most = np.max(sizes, axis=0).tolist()
        rows = forest.bucket(needed, multiple)
        scored = min(forest.bucket(most, -(-row_length // 4)), row_length)
        packed = [
            forest.pack(part, row_length, rows=rows, scored=scored) for part in parts
        ]
        return train.put_batch(mesh, jax.tree.map(lambda *x: np.stack(x), *packed))

    return batch_at
