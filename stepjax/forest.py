"""Packing token sequences and search trajectories into forest rows (numpy).

One row of tokens holds a forest of sequences in depth-first order. Each token
knows its ``parent`` (index of the token before it on its own path, -1 for a root),
its ``position`` (depth) and its ``subtree_end`` (first index after its subtree).
Query i sees key j if and only if ``j <= i < subtree_end[j]``; a token's
log-probability comes from its parent's hidden state. One plain sequence is one
path, several roots are packing, and a whole search trajectory is a trunk (problem,
best step, best step, ...) with every worst step as a branch beside its best one, so
that all pairs of a solution share one pass over their common context.

Axis names: R rows, T tokens of a row, S scored tokens of a row.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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


def trajectory_tree(pairs: Sequence[IdPair], first_segment: int = 0) -> Tree:
    """Returns pairs along one trunk as one tree.

    Pair number p (in the order given) has segments ``first_segment + 2 p`` (chosen)
    and ``first_segment + 2 p + 1`` (rejected); its scored tokens are exactly those
    of its two steps.

    Args:
      pairs: pairs whose contexts grow along one path: the longest context plus chosen
        step, the trunk, begins with every other context plus chosen step.
      first_segment: segment of the first pair's chosen step.

    Raises:
      ValueError: when a pair does not lie on the trunk, or a part is empty.
    """
    for pair in pairs:
        if not (pair.context and pair.chosen and pair.rejected):
            raise ValueError(
                f"a pair has {len(pair.context)} context, {len(pair.chosen)} chosen "
                f"and {len(pair.rejected)} rejected tokens; expected at least 1 each."
            )
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].context))
    trunk = max((pair.context + pair.chosen for pair in pairs), key=len)
    tokens, parent, position, end = [], [], [], []
    trunk_index = []  # row index of each trunk token
    scored, segment = [], []
    done = 0  # trunk tokens laid out so far

    def lay_trunk(upto: int):
        nonlocal done
        for depth in range(done, upto):
            parent.append(trunk_index[-1] if trunk_index else -1)
            trunk_index.append(len(tokens))
            tokens.append(trunk[depth])
            position.append(depth)
            end.append(-1)  # the whole tree, filled in below
        done = max(done, upto)

    for i in order:
        pair, start = pairs[i], len(pairs[i].context)
        both = pair.context + pair.chosen
        if trunk[: len(both)] != both:
            raise ValueError(
                f"pair {i} (context of {start} tokens) does not lie on the trunk of "
                f"{len(trunk)} tokens; expected nested contexts. Group the pairs by "
                "trajectory (see `group_by_trunk`)."
            )
        lay_trunk(start)
        branch = len(tokens)
        for depth, token in enumerate(pair.rejected):
            parent.append(trunk_index[start - 1] if depth == 0 else len(tokens) - 1)
            scored.append(len(tokens))
            segment.append(first_segment + 2 * i + 1)
            tokens.append(token)
            position.append(start + depth)
            end.append(branch + len(pair.rejected))
    lay_trunk(len(trunk))
    for i, pair in enumerate(pairs):
        start = len(pair.context)
        scored.extend(trunk_index[start : start + len(pair.chosen)])
        segment.extend([first_segment + 2 * i] * len(pair.chosen))
    end = np.asarray(end, np.int32)
    end[trunk_index] = len(tokens)
    return Tree(
        np.asarray(tokens, np.int32),
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        end,
        np.asarray(scored, np.int32),
        np.asarray(segment, np.int32),
        np.ones(len(scored), np.float32),
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
    children: list[dict[int, int]] = []  # of each node: token → node
    tokens: list[int] = []
    weights: list[float] = []
    for path in paths:
        weight = np.zeros(len(path.tokens), np.float32)
        weight[path.scored] = path.weight
        siblings: dict[int, int] = {} if not children else {int(path.tokens[0]): 0}
        for token, own in zip(path.tokens.tolist(), weight.tolist(), strict=True):
            node = siblings.get(token)
            if node is None:
                node = siblings[token] = len(tokens)
                tokens.append(token)
                weights.append(0.0)
                children.append({})
            weights[node] += own
            siblings = children[node]
    order: list[int] = []  # depth first
    parent, position, end = [], [], [0] * len(tokens)
    stack: list[tuple[int, int, int]] = [(0, -1, 0)]  # node, place of parent, depth
    while stack:
        node, above, depth = stack.pop()
        place = len(order)
        order.append(node)
        parent.append(above)
        position.append(depth)
        below = [(child, place, depth + 1) for child in children[node].values()]
        stack.extend(reversed(below))
    for place in reversed(range(len(order))):
        end[place] = max(end[place], place + 1)
        if parent[place] >= 0:
            end[parent[place]] = max(end[parent[place]], end[place])
    weight = np.asarray(weights, np.float32)[order]
    scored = np.flatnonzero(weight).astype(np.int32)
    segment = paths[0].segment[0] if len(paths[0].segment) else 0
    return Tree(
        np.asarray(tokens, np.int32)[order],
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        np.asarray(end, np.int32),
        scored,
        np.full(len(scored), segment, np.int32),
        weight[scored],
    )


def group_by_trunk(pairs: Sequence[IdPair], row_length: int) -> list[list[int]]:
    """Groups pairs that can share one tree of at most `row_length` tokens.

    Args:
      pairs: preferences in any order.
      row_length: most tokens of a tree.

    Returns:
      Lists of indices into `pairs`, each a valid argument of `trajectory_tree`;
      every pair is in exactly one.

    Raises:
      ValueError: when a single pair alone is longer than `row_length`.
    """
    groups: list[list[int]] = []
    trunks: list[tuple[int, ...]] = []
    sizes: list[int] = []
    by_root: dict[tuple[int, ...], list[int]] = {}  # first context → group numbers
    lengths: dict[int, None] = {}  # lengths of those contexts, ascending
    for i in sorted(range(len(pairs)), key=lambda i: len(pairs[i].context)):
        pair = pairs[i]
        alone = len(pair.context) + len(pair.chosen) + len(pair.rejected)
        if alone > row_length:
            raise ValueError(
                f"pair {i} has {alone} tokens; expected at most row_length="
                f"{row_length}. Raise train.row_length or drop the pair."
            )
        near = (g for n in lengths for g in by_root.get(pair.context[:n], ()))
        for g in near:
            start = len(trunks[g])
            both = pair.context + pair.chosen
            grown = sizes[g] + max(len(both) - start, 0) + len(pair.rejected)
            short = min(len(both), start)
            if both[:short] == trunks[g][:short] and grown <= row_length:
                groups[g].append(i)
                trunks[g] = max(both, trunks[g], key=len)
                sizes[g] = grown
                break
        else:
            by_root.setdefault(pair.context, []).append(len(groups))
            lengths[len(pair.context)] = None
            groups.append([i])
            trunks.append(pair.context + pair.chosen)
            sizes.append(alone)
    return groups


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
    rows: list[list[int]] = []
    room: list[int] = []
    for index, tree in enumerate(trees):
        size = len(tree.tokens)
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
    filled = fill(trees, row_length)
    return len(filled), _most_scored(trees, filled)


def _most_scored(trees: Sequence[Tree], filled: list[list[int]]) -> int:
    return max((sum(len(trees[i].scored) for i in row) for row in filled), default=0)


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
      rows: R, at least the rows needed; default exactly those.
      scored: S, at least the scored tokens of any row; default exactly those.

    Raises:
      ValueError: when a tree or the batch does not fit.
    """
    filled = fill(trees, row_length)
    needed, most = len(filled), _most_scored(trees, filled)
    rows = needed if rows is None else rows
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
