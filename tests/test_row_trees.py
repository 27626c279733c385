"""Many rows as trees: made when they are asked for, and the same ones each time."""

import collections
import random
import threading
import tracemalloc

import numpy as np
import pytest
from runs import one_device_mesh

from stepjax import forest, records, sft
from stepjax.judge import comparisons
from stepjax.lm import train
from stepjax.records import Solution
from stepjax.row_trees import RowTrees, SharedTrees, tree_sizes
from stepjax.worlds import arithmetic, arithmetic_data

ROW = 120


def solution(number, problem):
    return arithmetic_data.solution(f"i{number}", problem, (), random.Random(number))


def written(tmp_path, count):
    """A file of so many solutions, and what it holds."""
    path = tmp_path / "ift.jsonl"
    rows = [solution(n, p) for n, p in enumerate(arithmetic.problems(count, seed=4))]
    records.write_jsonl(path, rows)
    return path, rows


def judgments(count):
    """Two judgments for each of so many problems, in another order than theirs."""
    rows = [
        row
        for n, problem in enumerate(arithmetic.problems(count, seed=5))
        for row in arithmetic_data.comparisons(f"e{n}", problem, random.Random(n))
    ]
    random.Random(0).shuffle(rows)
    return rows


def path_of(row):
    """The tree of a row that is a name and a length."""
    name, length = row.problem, int(row.answer)
    return forest.path_tree([ord(name)] + [1] * (length - 1), [0] + [1] * (length - 1))


def sized(*lengths):
    names = "abcdefgh"[: len(lengths)]
    return [Solution(n, n, (), str(m)) for n, m in zip(names, lengths, strict=True)]


def same(one, other):
    for got, want in zip(one, other, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


# Which trees.


def test_rows_that_are_too_long_are_dropped_by_name():
    rows = sized(3, 3, 6, 6, 3)
    kept = RowTrees(rows, path_of, 5, "ift")
    assert [chr(tree.tokens[0]) for tree in kept] == ["a", "b", "e"]
    assert [kept.id(place) for place in range(3)] == ["a", "b", "e"]
    assert kept.dropped == ["c", "d"]
    assert kept.sizes.tolist() == [[3, 2]] * 3
    every = RowTrees(rows, path_of, 6, "ift")
    assert len(every) == 5 and every.dropped == []
    assert len(RowTrees([], path_of, 6, "ift")) == 0
    with pytest.raises(
        ValueError, match="shortest eft row has 3 tokens; .*length=2. R"
    ):
        RowTrees(rows, path_of, 2, "eft")


@pytest.mark.parametrize("row_length", [ROW, 400])
def test_rows_of_a_file_have_the_trees_of_rows_in_memory(codec, tmp_path, row_length):
    path, ift = written(tmp_path, 70)
    eft = judgments(9)
    records.write_jsonl(tmp_path / "eft.jsonl", eft)
    kind = comparisons()
    files = (
        records.Rows(path, Solution),
        records.Rows(tmp_path / "eft.jsonl", kind.record),
    )
    how = {"example": kind.example, "row_length": row_length, "verdict_weight": 3.0}
    for share in (False, True):
        lazy = sft.examples(*files, codec, **how, share=share)
        held = sft.examples(ift, eft, codec, **how, share=share)
        assert lazy.dropped == held.dropped
        for name in ("ift", "eft"):
            trees = list(held.trees[name])
            assert len(trees) == lazy.sizes[name]
            assert tree_sizes(trees).tolist() == lazy.trees[name].sizes.tolist()
            for place, tree in enumerate(trees):
                same(lazy.trees[name][place], tree)
        # One by one, as `sft.solution_tree` and `sft.judgment_tree` make them.
        for tree, row in zip(lazy.trees["ift"], ift, strict=True):
            same(tree, sft.solution_tree(codec, row))
    paths = [sft.judgment_tree(codec, kind.example(codec, row), 3.0) for row in eft]
    by_problem = collections.defaultdict(list)
    for row, path in zip(eft, paths, strict=True):
        by_problem[row.problem].append(path)
    if row_length == 400:  # one tree for the two judgments of a problem
        for tree, own in zip(lazy.trees["eft"], by_problem.values(), strict=True):
            same(tree, forest.merge(own))
        lengths = [sum(len(p.tokens) for p in own) for own in by_problem.values()]
        assert lazy.plain["eft"].tolist() == lengths


def test_a_problem_with_one_row_has_the_tree_of_the_row():
    paths = RowTrees(sized(3, 4, 5), path_of, 9, "eft")
    shared = SharedTrees(paths, "xyz", 9)
    assert [shared.id(place) for place in range(3)] == ["a", "b", "c"]
    for tree, path in zip(shared, paths, strict=True):
        same(tree, path)
    assert shared.plain.tolist() == [3, 4, 5]
    assert len(SharedTrees([], [], 9)) == 0


# Not before they are asked for.


class Counted(collections.UserList):
    """Rows that note which of them are read."""

    def __init__(self, rows):
        super().__init__(rows)
        self.reads = []

    def __iter__(self):
        return iter(self.data)

    def __getitem__(self, number):
        self.reads.append(number)
        return self.data[number]


def test_a_batch_reads_its_own_rows():
    rows = Counted(sized(3, 9, 4, 5, 3, 9, 3))
    trees = {"ift": RowTrees(rows, path_of, 6, "ift"), "eft": ()}
    assert rows.reads == []
    phase = sft.Phase("p", 1.0, 0.0, 2, 0, 0.0, 2, train.OptimizerOptions(1e-3))
    batch_at = sft.batch_function(
        phase, 0, trees, mesh=one_device_mesh(), row_length=6, micro_batches=1, seed=3
    )
    drawn = sft.rows_function(phase, 0, {"ift": 5, "eft": 0}, 3)
    fitting = [0, 2, 3, 4, 6]
    for step in (3, 0, 3):
        batch_at(step)
        assert rows.reads == [fitting[place] for _, place in drawn(step)]
        rows.reads.clear()


def test_a_row_that_has_changed_since_it_was_measured_is_an_error(tmp_path):
    path = tmp_path / "ift.jsonl"
    records.write_jsonl(path, sized(3, 4, 5))
    trees = RowTrees(records.Rows(path, Solution), path_of, 6, "ift")
    before = path.read_bytes()
    changes = (
        before.replace(b'"4"', b'"6"'),  # a row that is whole, and of the same bytes
        before.replace(b'"a", "p', b'"abc", "p'),  # the later rows begin elsewhere
        before[: before.index(b'{"id": "b"')],
    )
    for after in changes:
        assert after != before
        path.write_bytes(after)
        with pytest.raises(
            ValueError, match="ift.jsonl: the row at .* Put the file ba"
        ):
            trees[1]
    path.write_bytes(before)
    same(trees[1], path_of(sized(3, 4)[1]))


def test_what_is_gone_through_is_reported_and_not_kept():
    alive, most, lock = set(), [0], threading.Lock()

    class Row:
        def __init__(self, number):
            self.id = number
            with lock:
                alive.add(number)
                most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(self.id)

    class Rows(collections.abc.Sequence):
        def __len__(self):
            return 5000

        def __getitem__(self, number):
            if number >= 5000:
                raise IndexError(number)
            return Row(number)

    done = []
    tree = forest.path_tree([1, 2], [0, 1])
    kept = RowTrees(Rows(), lambda row: tree, 6, "ift", on_rows=done.append)
    assert len(kept) == sum(done) == 5000 and len(done) > 5
    assert most[0] < 1100 and len(alive) < 600


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def tree_of(row):
        tokens = list(row.problem.encode())
        return forest.path_tree(tokens, [0.0] + [1.0] * (len(tokens) - 1))

    sizes, path = [], tmp_path / "ift.jsonl"
    for count in (1000, 1000, 5000):  # the first time, modules are loaded
        rows = (Solution(f"row {n}", "why? " * 200, (), "1") for n in range(count))
        records.write_jsonl(path, rows)
        del rows
        tracemalloc.start()
        trees = RowTrees(records.Rows(path, Solution), tree_of, 1000, "ift")
        sizes.append(tracemalloc.get_traced_memory())
        tracemalloc.stop()
        assert len(trees) == count
    row, tree = path.stat().st_size / count, sum(part.nbytes for part in trees[0])
    (_, _), (small, low), (large, high) = sizes
    assert (large - small) / 4000 < 40 and (high - low) / 4000 < 200
    assert row > 1000 and tree > 10_000
