"""Trees of many rows: only the trees of one batch at a time are in memory.

A row of 400 tokens takes 10 kB as a tree. What laying out batches needs to know of all
rows is much less: how many tokens each has, and how many of them are scored.
`RowTrees` find both in one pass over the rows, and make a tree when it is asked for,
from a row that is read again. `SharedTrees` do the same with one tree for all rows of a
problem.
"""

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from stepjax import forest

_BLOCK = 512  # rows that are in memory while they are measured
_PART = 16  # of these, those that one thread measures without a pause


class RowTrees(Sequence[forest.Tree]):
    """The trees of the rows that fit a row of training; 12 bytes are kept for each.

    Attributes:
      sizes: tokens of each tree, and how many of them are scored, [N, 2] int32.
      dropped: ids of the rows that are too long.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        tree_of: Callable[[Any], forest.Tree],
        row_length: int,
        name: str,
        *,
        on_rows: Callable[[int], None] = lambda rows: None,
    ):
        """Goes through all rows once.

        Args:
          rows: of one kind, each with an `id`; `records.Rows` are read from their file.
          tree_of: a row → its tree, the same each time.
          row_length: most tokens of a tree; rows with more are left out.
          name: of the kind of rows, for the message.
          on_rows: called with how many rows were gone through since the last call.

        Raises:
          ValueError: when no row fits, or what reading the rows raises.
        """
        self._rows, self._tree_of = rows, tree_of
        self._numbers, sizes = array("i"), array("i")
        self.dropped: list[str] = []
        shortest = None
        for number, (id, size) in enumerate(_measured(rows, tree_of, on_rows)):
            if size[0] > row_length:
                self.dropped.append(id)
                shortest = min(size[0], shortest or size[0])
                continue
            self._numbers.append(number)
            sizes.extend(size)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        if self.dropped and not self._numbers:
            raise ValueError(
                f"the shortest {name} row has {shortest} tokens; expected at most "
                f"train.row_length={row_length}. Raise train.row_length."
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: int) -> forest.Tree:
        return self._tree_of(self.row(place))

    def row(self, place: int) -> Any:
        """Returns the row of a tree."""
        return self._rows[self._numbers[place]]

    def id(self, place: int) -> str:
        """Returns the id of the row of a tree."""
        return self.row(place).id


class SharedTrees(Sequence[forest.Tree]):
    """One tree for all rows of a problem; 20 bytes are kept for each row at most.

    Attributes:
      sizes: see `RowTrees`.
      plain: tokens of the rows of each tree, laid out one by one, [N] int32.
    """

    def __init__(
        self,
        paths: Sequence[forest.Tree],
        problems: Iterable[str],
        row_length: int,
        on_rows: Callable[[int], None] = lambda rows: None,
    ):
        """Makes each path once more, and keeps which of them share a tree.

        Args:
          paths: one per row; `RowTrees` are made from their rows again.
          problems: of each path. Of a problem only 8 bytes are looked at: a digest.
          row_length: most tokens of a tree; more rows of a problem begin another tree.
          on_rows: see `RowTrees`.
        """
        self._paths = paths
        self._members, bounds = array("i"), array("i", [0])
        sizes = array("i")
        for own in _of_each_problem(problems):
            for group, tree in _groups(paths, own, row_length):
                self._members.extend(group)
                bounds.append(len(self._members))
                sizes.extend(_size(tree))
            on_rows(len(own))
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self._bounds = bounds
        lengths = tree_sizes(paths)[np.array(self._members, np.int32), 0]
        sums = np.add.reduceat(lengths, bounds[:-1]) if len(lengths) else lengths
        self.plain = sums.astype(np.int32)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: int) -> forest.Tree:
        return _merged([self._paths[member] for member in self.members(place)])

    def members(self, place: int) -> list[int]:
        """Returns the places of the paths in a tree."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._members[self._bounds[place] : self._bounds[place + 1]].tolist()

    def id(self, place: int) -> str:
        """Returns the ids of the rows of a tree, with "+" between them."""
        return "+".join(self._paths.id(member) for member in self.members(place))


def tree_sizes(trees: Sequence[forest.Tree]) -> np.ndarray:
    """Returns tokens of each tree, and how many of them are scored, [N, 2] int32."""
    if isinstance(trees, RowTrees | SharedTrees):
        return trees.sizes
    return np.array(list(map(_size, trees)), np.int32).reshape(-1, 2)


def _size(tree: forest.Tree) -> tuple[int, int]:
    return len(tree.tokens), len(tree.scored)


def _measured(
    rows: Iterable[Any],
    tree_of: Callable[[Any], forest.Tree],
    on_rows: Callable[[int], None],
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the id of each row, and the tokens and scored tokens of its tree.

    Several threads make the trees, because a tokenizer lets others work while it works.
    """

    def measure(part: list) -> list[tuple[str, tuple[int, int]]]:
        return [(row.id, _size(tree_of(row))) for row in part]

    ahead = iter(rows)
    with futures.ThreadPoolExecutor() as pool:
        while block := list(itertools.islice(ahead, _BLOCK)):
            parts = [block[n : n + _PART] for n in range(0, len(block), _PART)]
            yield from itertools.chain.from_iterable(pool.map(measure, parts))
            on_rows(len(block))


def _of_each_problem(problems: Iterable[str]) -> Iterator[list[int]]:
    """Yields the places of each problem, ascending, in the order of the first ones."""
    digests = np.fromiter(map(_digest, problems), np.uint64)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    firsts = first[inverse]  # of each place, the first place of its problem
    order = np.argsort(firsts, kind="stable").astype(np.int32)
    ends = np.flatnonzero(np.diff(firsts[order], append=len(order))) + 1
    start = 0
    for end in ends.tolist():
        yield order[start:end].tolist()
        start = end


def _digest(problem: str) -> int:
    digest = hashlib.blake2b(problem.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _groups(
    paths: Sequence[forest.Tree], own: list[int], row_length: int
) -> Iterator[tuple[list[int], forest.Tree]]:
    """Yields (places, tree) of the trees that the paths of a problem make."""
    group, held = own[:1], [paths[own[0]]]
    merged = held[0]
    for place in own[1:]:
        path = paths[place]
        larger = forest.merge([*held, path])
        if len(larger.tokens) > row_length:
            yield group, merged
            group, held, larger = [], [], path
        group, held, merged = [*group, place], [*held, path], larger
    yield group, merged


def _merged(paths: list[forest.Tree]) -> forest.Tree:
    return paths[0] if len(paths) == 1 else forest.merge(paths)
