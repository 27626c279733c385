"""Packing token sequences and search trajectories into forest rows (numpy).

One row of tokens holds a forest of sequences in depth-first order. Each token
knows its ``parent`` (index of the token before it on its own path, -1 for a root),
its ``position`` (depth) and its ``subtree_end`` (first index after its subtree).
Query i sees key j if and only if ``j <= i < subtree_end[j]``; a token's
log-probability comes from its parent's hidden state. One plain sequence is one
path, several roots are packing, and sequences that begin alike are branches of one
tree, which computes what they share once (`from_sequences`). A whole search trajectory
is a trunk with a branch for every worst step (`stepjax.pair_trees`).

Axis names: R rows, T tokens of a row, S scored tokens of a row.
"""

import dataclasses
import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stepjax import prefix_tree


class Tree(NamedTuple):
    """One tree of tokens, indices local to the tree; all int32 unless said.

    Attributes:
      tokens: token ids, [n].
      parent: index of the token before on the path, -1 for the root, [n].
      position: depth, [n].
      subtree_end: first index after the token's subtree, [n].
      scored: indices of the tokens whose log-probability counts, [m].
      segment: the sum that each scored token belongs to, [m].
      weight: float32 weight of each scored token, [m].
    """

    tokens: np.ndarray
    parent: np.ndarray
    position: np.ndarray
    subtree_end: np.ndarray
    scored: np.ndarray
    segment: np.ndarray
    weight: np.ndarray


class Rows(NamedTuple):
    """A batch of forest rows of one shape; arrays of `Tree` with padding.

    Attributes:
      tokens: [R, T].
      parent: [R, T]; -1 for roots and padding.
      position: [R, T].
      subtree_end: [R, T]; a padding token sees only itself.
      scored: [R, S] row indices; 0 where the weight is 0.
      segment: [R, S].
      weight: [R, S] float32; 0 marks padding.
    """

    tokens: np.ndarray
    parent: np.ndarray
    position: np.ndarray
    subtree_end: np.ndarray
    scored: np.ndarray
    segment: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class IdPair:
    """One preference as token ids: a context and two next steps."""

    context: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def path_tree(
    tokens: Sequence[int], weights: Sequence[float], segment: int = 0
) -> Tree:
    """Returns a single path, scored where its weight is not 0.

    Args:
      tokens: ids of the sequence, [n].
      weights: weight of each token's log-probability, [n]; the first must be 0,
        since nothing comes before it.
      segment: the sum that all its tokens belong to.

    Raises:
      ValueError: on unequal lengths, an empty sequence or a scored first token.
    """
    if len(tokens) != len(weights) or not len(tokens):
        raise ValueError(
            f"{len(tokens)} tokens and {len(weights)} weights; expected equal, "
            "nonzero lengths."
        )
    if weights[0]:
        raise ValueError(
            f"the first token has weight {weights[0]}; expected 0: nothing precedes "
            "it. Start the sequence with a prompt token."
        )
    n = len(tokens)
    weight = np.asarray(weights, np.float32)
    scored = np.flatnonzero(weight).astype(np.int32)
    index = np.arange(n, dtype=np.int32)
    return Tree(
        np.asarray(tokens, np.int32),
        index - 1,
        index,
        np.full(n, n, np.int32),
        scored,
        np.full(len(scored), segment, np.int32),
        weight[scored],
    )


def merge(paths: Sequence[Tree]) -> Tree:
    """Returns paths as one tree in which they share every token that they begin with.

    The sums of weighted log-probabilities are those of the paths laid out one by one,
    and what they begin with is computed once. A token that several paths score has the
    sum of their weights.

    Args:
      paths: from `path_tree`, at least one, all of one segment and with equal first
        tokens.

    Raises:
      ValueError: for no path, or paths that begin with different tokens.
    """
    if not paths or len({int(path.tokens[0]) for path in paths}) > 1:
        raise ValueError(
            f"{len(paths)} paths that begin with the tokens "
            f"{sorted({int(path.tokens[0]) for path in paths})}; expected one or more "
            "paths that all begin with the same token."
        )
    shared = prefix_tree.lay_out([path.tokens.tolist() for path in paths])
    weight = np.zeros(len(shared.tokens))
    for path, places in zip(paths, shared.places, strict=True):
        weight[places[path.scored]] += path.weight
    weight = weight.astype(np.float32)
    scored = np.flatnonzero(weight).astype(np.int32)
    segment = paths[0].segment[0] if len(paths[0].segment) else 0
    return Tree(
        *shared[:4],
        scored,
        np.full(len(scored), segment, np.int32),
        weight[scored],
    )


def from_sequences(
    ids: Sequence[Sequence[int]],
    scored: Sequence[Sequence[bool]],
    row_length: int | None = None,
) -> list[Tree]:
    """Returns sequences as trees in which they share every token that they begin with.

    It makes no difference what the sequences are: the samples of one prompt, answers
    and those preferred to them, turns of one chat. Token ids decide what is shared, so
    that each token has the log-probability that it has in its sequence alone.

    Sequence n has segment n. Its scored tokens are neighbours in ``scored`` of one
    tree, in their order; a token that several sequences score is there once for each.
    All weights are 1.

    Args:
      ids: token ids of each sequence.
      scored: for each sequence, for each token, whether it is in the loss; the first
        token of a sequence never is, since nothing comes before it.
      row_length: most tokens of a tree; None for no limit. A larger tree is cut in two
        or more, and each has a copy of what they share.

    Returns:
      The trees, for `pack`. Sequences with different first tokens are in different
      trees.

    Raises:
      ValueError: for an empty sequence, one longer than `row_length`, ids that are no
        token ids, or scores that do not fit.
    """
    if len(ids) != len(scored):
        raise ValueError(
            f"{len(ids)} sequences and {len(scored)} lists of scores; expected one "
            "list for each sequence."
        )
    sequences = [_ids(number, sequence) for number, sequence in enumerate(ids)]
    masks = [
        _mask(number, sequence, row)
        for number, (sequence, row) in enumerate(zip(sequences, scored, strict=True))
    ]
    trees = []
    for group in _groups(sequences, row_length):
        shared = prefix_tree.lay_out([sequences[n] for n in group])
        marks = [at[masks[n]] for n, at in zip(group, shared.places, strict=True)]
        places = np.concatenate(marks)
        segment = np.repeat(np.asarray(group, np.int32), list(map(len, marks)))
        weight = np.ones(len(places), np.float32)
        trees.append(Tree(*shared[:4], places, segment, weight))
    return trees


def _ids(number: int, sequence: Sequence[int]) -> tuple[int, ...]:
    """Returns the token ids of sequence `number`."""
    ids = _array(sequence)
    if ids.shape == (0,):
        return ()  # `_mask` says what is expected
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"sequence {number} is {reprlib.repr(sequence)}; expected a list of whole "
            f"numbers from 0 to {np.iinfo(np.int32).max}, its token ids."
        )
    wrong = ids[(ids < 0) | (ids > np.iinfo(np.int32).max)]
    if wrong.size:
        raise ValueError(
            f"sequence {number} has the token id {wrong[0]}; expected ids from 0 to "
            f"{np.iinfo(np.int32).max}. Leave out tokens of padding."
        )
    return tuple(ids.tolist())


def _mask(number: int, sequence: tuple[int, ...], scored: Sequence[bool]) -> np.ndarray:
    """Returns which tokens of sequence `number` are scored, [n] bool."""
    mask = _array(scored)
    if not sequence or mask.shape != (len(sequence),):
        raise ValueError(
            f"sequence {number} has {len(sequence)} tokens and scores of shape "
            f"{mask.shape}; expected at least one token and one score for each."
        )
    wrong = mask[~np.isin(mask, (0, 1))]
    if wrong.size:
        raise ValueError(
            f"sequence {number} has the score {wrong[0]}; expected True for a token in "
            "the loss and False for another. Weights, such as advantages, belong in "
            "the loss: take them by `Rows.segment`."
        )
    if mask[0]:
        raise ValueError(
            f"the first token of sequence {number} is scored; expected False: nothing "
            "precedes it. Start the sequence with a prompt token."
        )
    return mask.astype(bool)


def _array(values: Sequence) -> np.ndarray:
    """Returns values as an array; lists of different lengths become one object."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.array(None)


def _groups(
    sequences: Sequence[tuple[int, ...]], row_length: int | None
) -> list[list[int]]:
    """Returns the sequences of each tree of `from_sequences`, by number.

    In sorted order a sequence shares the most with the one before it, so that the
    tokens which it adds to a tree are those behind what the two begin with.
    """
    groups: list[list[int]] = []
    before: tuple[int, ...] = ()
    size = 0
    for number in sorted(range(len(sequences)), key=lambda n: sequences[n]):
        own = sequences[number]
        if row_length is not None and len(own) > row_length:
            raise ValueError(
                f"sequence {number} has {len(own)} tokens; expected at most row_length="
                f"{row_length}. Make the rows longer, or cut or drop the sequence."
            )
        same = prefix_tree.common(before, own)
        grown = size + len(own) - same
        if same and (row_length is None or grown <= row_length):
            groups[-1].append(number)
            size = grown
        else:
            groups.append([number])
            size = len(own)
        before = own
    return [sorted(group) for group in groups]


def bucket(size: int, multiple: int = 1) -> int:
    """Returns the smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... x `multiple` >= size.

    Lengths go in such buckets so that few shapes are compiled and at most a third
    of a batch is padding.
    """
    count, power = -(-max(size, 1) // multiple), 1
    while power < count:
        if power % 2 == 0 and power * 3 // 2 >= count:
            return power * 3 // 2 * multiple
        power *= 2
    return power * multiple


def fill(trees: Sequence[Tree], row_length: int) -> list[list[int]]:
    """Assigns trees to rows, first fit in the order given; returns tree indices.

    Raises:
      ValueError: when a tree is longer than `row_length`.
    """
    return _fill([len(tree.tokens) for tree in trees], row_length)


def _fill(sizes: Sequence[int], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for index, size in enumerate(sizes):
        if size > row_length:
            raise ValueError(
                f"tree {index} has {size} tokens; expected at most row_length="
                f"{row_length}. Raise train.row_length or drop the tree."
            )
        for row, left in enumerate(room):
            if left >= size:
                rows[row].append(index)
                room[row] -= size
                break
        else:
            rows.append([index])
            room.append(row_length - size)
    return rows


def size(trees: Sequence[Tree], row_length: int) -> tuple[int, int]:
    """Returns the rows of a batch, and the most scored tokens of any of them.

    Raises:
      ValueError: when a tree is longer than `row_length`.
    """
    return size_of([(len(t.tokens), len(t.scored)) for t in trees], row_length)


def size_of(trees: Sequence[tuple[int, int]], row_length: int) -> tuple[int, int]:
    """Returns what `size` does, from two numbers of each tree instead of the trees.

    Args:
      trees: (tokens, scored tokens) of each tree.
      row_length: most tokens of a row.

    Raises:
      ValueError: when a tree is longer than `row_length`.
    """
    filled = _fill([tokens for tokens, _ in trees], row_length)
    return len(filled), _most([scored for _, scored in trees], filled)


def _most(scored: Sequence[int], filled: list[list[int]]) -> int:
    return max((sum(scored[i] for i in row) for row in filled), default=0)


def pack(
    trees: Sequence[Tree],
    row_length: int,
    *,
    rows: int | None = None,
    scored: int | None = None,
) -> Rows:
    """Packs trees into rows of one shape.

    Args:
      trees: the trees of a batch; their segments are kept as they are.
      row_length: T.
      rows: R, at least the rows needed; default exactly those, or 1 of padding.
      scored: S, at least the scored tokens of any row; default exactly those.

    Raises:
      ValueError: when a tree or the batch does not fit.
    """
    filled = fill(trees, row_length)
    needed, most = len(filled), _most([len(tree.scored) for tree in trees], filled)
    rows = max(needed, 1) if rows is None else rows
    scored = max(most, 1) if scored is None else scored
    if needed > rows or most > scored:
        raise ValueError(
            f"the batch needs {needed} rows and {most} scored tokens per row; "
            f"expected at most {rows} and {scored}."
        )
    batch = Rows(
        tokens=np.zeros((rows, row_length), np.int32),
        parent=np.full((rows, row_length), -1, np.int32),
        position=np.zeros((rows, row_length), np.int32),
        subtree_end=np.tile(np.arange(1, row_length + 1, dtype=np.int32), (rows, 1)),
        scored=np.zeros((rows, scored), np.int32),
        segment=np.zeros((rows, scored), np.int32),
        weight=np.zeros((rows, scored), np.float32),
    )
    for row, members in enumerate(filled):
        at, mark = 0, 0
        for index in members:
            tree = trees[index]
            here = slice(at, at + len(tree.tokens))
            there = slice(mark, mark + len(tree.scored))
            batch.tokens[row, here] = tree.tokens
            batch.parent[row, here] = np.where(tree.parent < 0, -1, tree.parent + at)
            batch.position[row, here] = tree.position
            batch.subtree_end[row, here] = tree.subtree_end + at
            batch.scored[row, there] = tree.scored + at
            batch.segment[row, there] = tree.segment
            batch.weight[row, there] = tree.weight
            at, mark = here.stop, there.stop
    return batch
