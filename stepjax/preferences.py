"""Many preferences, of which only those of the present batch are in memory.

A row of `pairs.jsonl` holds every verdict as text, some 8 kB. What laying out batches
needs to know of all rows is much less: how many tokens each part of a pair has, and
which pairs can share a tree (`stepjax.pair_trees`). `Preferences` finds both in one
pass over the pairs, and reads a pair when it is asked for. `PairFiles` are pairs that
lie in files, each found by its first byte.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from stepjax import records
from stepjax.forest import IdPair
from stepjax.pair_trees import check, group_by_trunk


class Preferences(Sequence[IdPair]):
    """Pairs that are read when they are asked for; 16 bytes are kept for each.

    Neighbours that lie on one trunk are a *run*: the pairs of a solution. Runs that
    begin alike, as two solutions of the same problem may, are a *family*. Only pairs of
    one family can share a tree. In a family of one run nothing but lengths decides
    which do; in a larger one their tokens are compared, and read for that.

    Attributes:
      sizes: tokens of context, chosen and rejected step of each pair, [N, 3] int32.
    """

    def __init__(self, pairs: Iterable[IdPair], read: Callable[[int], IdPair]):
        """Goes through all pairs once, and reads the first pair of each run again.

        Args:
          pairs: all of them, in their order.
          read: number of a pair → the same pair again.

        Raises:
          ValueError: when a part of a pair is empty, or what `pairs` raises.
        """
        self._read = read
        sizes, runs, firsts = array("i"), array("i"), array("i")
        trunk: tuple[int, ...] = ()
        for number, pair in enumerate(pairs):
            check(pair)
            both = pair.context + pair.chosen
            short = min(len(both), len(trunk))
            if not trunk or both[:short] != trunk[:short]:
                trunk = ()
                firsts.append(number)
            elif len(pair.context) < sizes[3 * firsts[-1]]:
                firsts[-1] = number  # the shortest context is the first of a trunk
            trunk = max(trunk, both, key=len)
            sizes.extend(map(len, (pair.context, pair.chosen, pair.rejected)))
            runs.append(len(firsts) - 1)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 3)
        of_run, self._mixed = self._families(np.array(firsts, np.int64))
        self._family = of_run[np.array(runs, np.int64)]

    def _families(self, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the family of each run, and for each family whether it has more.

        A family has the number of the run with its shortest context, with which the
        first contexts of all its runs begin. Contexts are compared by sums of their
        tokens times random 64-bit numbers.

        Args:
          firsts: the pair of each run with its shortest context, [runs].
        """
        family = np.zeros(len(firsts), np.int32)
        mixed = np.zeros(len(firsts), bool)
        lengths = self.sizes[firsts, 0]
        draw = np.random.default_rng(0)
        factors = draw.integers(2**64, size=lengths.max(initial=0), dtype=np.uint64)
        by_sum: dict[int, int] = {}  # of the shortest context of each family
        for run in np.argsort(lengths, kind="stable").tolist():
            context = np.array(self[firsts[run]].context, np.uint64) + np.uint64(1)
            sums = np.cumsum(context * factors[: len(context)]).tolist()
            known = by_sum.keys() & sums
            if known:
                family[run] = by_sum[known.pop()]
                mixed[family[run]] = True
            else:
                family[run] = by_sum[sums[-1]] = run
        return family, mixed

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> IdPair:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._read(int(number))

    def group(self, numbers: Sequence[int], row_length: int) -> list[list[int]]:
        """Returns `pair_trees.group_by_trunk` of some pairs, reading few of them.

        Args:
          numbers: of the pairs.
          row_length: most tokens of a tree; no pair alone has more.

        Returns:
          Lists of indices into `numbers`.
        """
        numbers = np.asarray(numbers, np.int64)
        families: dict[int, list[int]] = {}
        for at, family in enumerate(self._family[numbers].tolist()):
            families.setdefault(family, []).append(at)
        groups = []
        for family, own in families.items():
            if len(own) == 1:
                groups.append(own)
                continue
            look = self.__getitem__ if self._mixed[family] else self._same_lengths
            pairs = [look(number) for number in numbers[own].tolist()]
            grouped = group_by_trunk(pairs, row_length)
            groups += [[own[n] for n in group] for group in grouped]
        contexts = self.sizes[numbers, 0].tolist()
        return sorted(groups, key=lambda group: (contexts[group[0]], group[0]))

    def _same_lengths(self, number: int) -> IdPair:
        """Returns a pair of the same lengths, all of whose contexts are one trunk."""
        context, chosen, rejected = self.sizes[number].tolist()
        return IdPair((0,) * context, (0,) * chosen, (0,) * rejected)

    def trees(self, numbers: Sequence[int], row_length: int) -> list[tuple[int, int]]:
        """Returns (tokens, scored tokens) of the trees of some pairs, see `group`."""
        sizes = self.sizes[np.asarray(numbers, np.int64)].tolist()
        result = []
        for group in self.group(numbers, row_length):
            own = [sizes[n] for n in group]
            trunk = max(context + chosen for context, chosen, _ in own)
            scored = sum(chosen + rejected for _, chosen, rejected in own)
            result.append((trunk + sum(pair[2] for pair in own), scored))
        return result


def of_sequence(pairs: Sequence[IdPair]) -> Preferences:
    """Returns pairs as `Preferences`, if they are not that already."""
    if isinstance(pairs, Preferences):
        return pairs
    return Preferences(pairs, pairs.__getitem__)


class PairFiles:
    """The pairs of files of JSON lines that fit a row of training; 24 bytes for each.

    Attributes:
      counts: rows of each file.
      dropped: rows that are too long.
    """

    def __init__(
        self, files: Sequence[tuple[str | os.PathLike, type]], row_length: int
    ):
        """Remembers what to read.

        Args:
          files: each with the dataclass of its rows, which has `id` and `ids()`.
          row_length: most tokens of context, chosen and rejected step together.
        """
        self._files, self._row_length = list(files), row_length
        self._places = array("q")  # file, first byte and checksum of each pair
        self.counts = [0] * len(self._files)
        self.dropped = 0

    def pairs(self) -> Preferences:
        """Reads the files once, checking every row, and returns their pairs.

        Raises:
          ValueError: for a damaged row, with its file and line; see
            `records.read_jsonl`.
        """
        return Preferences(self._stream(), lambda number: self.row(number).ids())

    def _stream(self) -> Iterator[IdPair]:
        for file, (path, record_type) in enumerate(self._files):
            for start, checksum, row in records.read_placed(path, record_type):
                self.counts[file] += 1
                pair = row.ids()
                parts = pair.context, pair.chosen, pair.rejected
                if sum(map(len, parts)) > self._row_length:
                    self.dropped += 1
                    continue
                self._places.extend((file, start, checksum))
                yield pair

    def row(self, number: int):
        """Returns the row of a pair, as it lies in its file.

        Raises:
          ValueError: when it has been changed.
        """
        file, start, checksum = self._places[3 * number : 3 * number + 3]
        path, record_type = self._files[file]
        return records.read_at(path, start, record_type, checksum)
