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
from stepjax.row_trees import RowTrees, SharedTrees

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


class Examples(NamedTuple):
    """What SFT trains on.

    Attributes:
      trees: "ift" and "eft" → the rows that fit a row of training, or with shared
        problems the trees of such rows. Each is made when it is asked for.
      dropped: ids of the rows that are too long.
      plain: "ift" and "eft" → for each tree, the tokens of its rows laid out one by
        one; None where no rows share a tree.
    """

    trees: dict[str, RowTrees | SharedTrees]
    dropped: list[str]
    plain: dict[str, np.ndarray] | None = None

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
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Examples:
    """Returns IFT and EFT rows as trees, without the rows that are too long.

    All rows are gone through once, and EFT rows that share trees are read once more.
    What is kept does not grow with their texts, see `stepjax.row_trees`.

    Args:
      ift: solutions.
      eft: judgments.
      codec: tokenizer and templates.
      example: what a judgment teaches, see `judge.Judgments`.
      row_length: most tokens of an example.
      verdict_weight: see `judgment_tree`.
      verdict_words: see `judgment_tree`.
      share: one tree for all judgments of a problem, where they fit. What they begin
        with, the instructions and the problem, is then computed once. The loss and its
        gradient are the same as those of the rows in one batch.
      on_rows: called with how many rows were gone through since the last call; with
        `share`, EFT rows are gone through twice.

    Raises:
      ValueError: when all rows of one kind are too long.
    """

    def judgment(row: Any) -> forest.Tree:
        ids = example(codec, row)
        return judgment_tree(codec, ids, verdict_weight, verdict_words)

    solution = functools.partial(solution_tree, codec)
    trees = {
        "ift": RowTrees(ift, solution, row_length, "ift", on_rows=on_rows),
        "eft": RowTrees(eft, judgment, row_length, "eft", on_rows=on_rows),
    }
    dropped = trees["ift"].dropped + trees["eft"].dropped
    if not share:
        return Examples(trees, dropped)
    paths = trees["eft"]
    problems = (paths.row(place).problem for place in range(len(paths)))
    shared = SharedTrees(paths, problems, row_length, on_rows)
    plain = {"ift": trees["ift"].sizes[:, 0], "eft": shared.plain}
    return Examples(trees | {"eft": shared}, dropped, plain)


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

    used = [name for name in sizes if getattr(phase, name) > 0]
    total = sum(sizes[name] for name in used)
    share = phase.ift / (phase.ift + phase.eft)

    @functools.lru_cache(maxsize=4)  # two kinds, at the end of one pass and in the next
    def shuffled(name: str, size: int, epoch: int) -> np.ndarray:
        path = [seed, number, sum(map(ord, name)), epoch]
        return np.random.default_rng(path).permutation(size).astype(np.int32)

    def stream(name: str, size: int, start: int, count: int) -> list[int]:
        at = range(start, start + count)
        return [int(shuffled(name, size, i // size)[i % size]) for i in at]

    def of_all(place: int) -> tuple[str, int]:
        """Returns a row of all kinds together, one kind after another."""
        for name in used:
            if place < sizes[name]:
                return name, place
            place -= sizes[name]
        raise IndexError(place)

    def rows_at(step: int) -> list[tuple[str, int]]:
        size = phase.batch_size
        if phase.epochs:
            end = min((step + 1) * size, total * phase.epochs)
            drawn = stream("all", total, step * size, end - step * size)
            return [of_all(place) for place in drawn]
        # After n updates, round(n * size * share) IFT rows have been taken in all.
        before, after = round(step * size * share), round((step + 1) * size * share)
        start, count = step * size - before, size - (after - before)
        ift = stream("ift", sizes["ift"], before, after - before)
        eft = stream("eft", sizes["eft"], start, count)
        return [("ift", place) for place in ift] + [("eft", place) for place in eft]

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
