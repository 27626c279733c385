"""Pairs that are read for their batch: the same batches, and little memory."""

import dataclasses
import json
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import one_device_mesh
from test_dpo import MODEL, ROW, parameters, solution
from test_pair_trees import pair_lists

from stepjax import dpo, forest, pair_trees, preferences, records
from stepjax.forest import IdPair
from stepjax.judgment_pairs import JudgmentPair
from stepjax.lm import sharding
from stepjax.pairs import Pair


def solutions(count, seed=1):
    """Pairs of solutions of four steps; the third step of every other has no pair."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        branches = {n: 1 + n for n in range(4) if n != 2 or number % 2}
        found += solution(rng, 5 + number % 7, (2, 3, 2, 4), branches)
    return found


def counted(pairs):
    """Pairs as `Preferences`, and a list to which every number that is read goes."""
    reads = []

    def read(number):
        reads.append(number)
        return pairs[number]

    return preferences.Preferences(iter(pairs), read), reads


LAYOUT = {"batch_size": 6, "micro_batches": 2, "row_length": ROW, "epochs": 2}


def laid_out(pairs, **changes):
    layout = LAYOUT | {"mesh": one_device_mesh(), "seed": 3} | changes
    return dpo.make_batches(pairs, **layout)


def all_at_once(pairs, batch_size, micro_batches, row_length, epochs, seed=3):
    """All batches from the tokens of all pairs, as the method says."""
    groups = pair_trees.group_by_trunk(pairs, row_length)
    share = -(-batch_size // micro_batches)
    updates = []
    for epoch in range(epochs):
        shuffled = np.random.default_rng([seed, epoch]).permutation(len(groups))
        flat = [pairs[i] for g in shuffled for i in groups[g]]
        for start in range(0, len(flat), batch_size):
            own = flat[start : start + batch_size]
            parts = [own[n * share :][:share] for n in range(micro_batches)]
            updates.append([trees_of(part, row_length) for part in parts])
    sizes = [forest.size(trees, row_length) for parts in updates for trees in parts]
    most_rows, most_scored = np.max(sizes, axis=0).tolist()
    rows = forest.bucket(most_rows, sharding.row_multiple(one_device_mesh()))
    scored = forest.bucket(most_scored, 8)
    return [
        [forest.pack(trees, row_length, rows=rows, scored=scored) for trees in parts]
        for parts in updates
    ]


def trees_of(pairs, row_length):
    trees, segment = [], 0
    for group in pair_trees.group_by_trunk(pairs, row_length):
        trees.append(pair_trees.trajectory_tree([pairs[i] for i in group], segment))
        segment += 2 * len(group)
    return trees


def assert_same(found, expected):
    assert len(found) == len(expected)
    for batch, parts in zip(found, expected, strict=True):
        stacked = jax.tree.map(lambda *x: np.stack(x), *parts)
        for got, want in zip(batch.rows, stacked, strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


# The same batches.


@settings(max_examples=150, deadline=None, database=None)
@given(pair_lists(), st.integers(0, 40), st.data())
def test_groups_and_tree_sizes_are_those_of_the_tokens(pairs, spare, data):
    length = max((sum(map(len, dataclasses.astuple(p))) for p in pairs), default=1)
    length += spare
    lazy, _ = counted(pairs)
    numbers = data.draw(st.permutations(range(len(pairs))))
    numbers = numbers[: data.draw(st.integers(0, len(pairs)))]
    own = [pairs[n] for n in numbers]
    assert lazy.group(numbers, length) == pair_trees.group_by_trunk(own, length)
    expected = [(len(t.tokens), len(t.scored)) for t in trees_of(own, length)]
    assert lazy.trees(numbers, length) == expected


@settings(max_examples=40, deadline=None, database=None)
@given(pair_lists().filter(bool), st.integers(1, 7), st.integers(1, 3))
def test_any_pairs_give_the_same_batches(pairs, batch_size, micro_batches):
    layout = {"batch_size": batch_size, "micro_batches": micro_batches}
    layout |= {"row_length": 40, "epochs": 2}
    assert_same(laid_out(counted(pairs)[0], **layout), all_at_once(pairs, **layout))


@pytest.mark.parametrize("row_length", [ROW, 26])  # 26: several trees per solution
def test_solutions_give_the_same_batches(row_length):
    pairs = solutions(9)
    layout = LAYOUT | {"row_length": row_length}
    lazy, _ = counted(pairs)
    found = laid_out(lazy, **layout)
    assert_same(found, all_at_once(pairs, **layout))
    for batch in found:
        for m, lengths in enumerate(batch.lengths):
            rows = jax.tree.map(lambda x, m=m: x[m], batch.rows)
            expected = np.bincount(rows.segment[rows.weight > 0], minlength=6)
            np.testing.assert_array_equal(lengths, expected)
    assert found[0].reference.shape == found[0].lengths.shape == (2, 6)


# Read for their batch.


def test_a_pair_is_read_when_its_batch_is_asked_for():
    pairs = solutions(9)
    lazy, reads = counted(pairs)
    starts = [n for n in range(len(pairs)) if reads.count(n)]
    assert sorted(reads) == starts and len(starts) == 9  # the first of each solution
    assert [len(pairs[n].context) for n in starts] == [5 + n % 7 for n in range(9)]
    reads.clear()
    found = laid_out(lazy)
    assert len(found) == 2 * 6 and not reads
    order = dpo.order(lazy, 6, ROW, seed=3, epochs=2)
    for step in (7, 0, 7):
        found[step]
        assert reads == order[step].tolist() and len(set(reads)) == 6
        reads.clear()
    with pytest.raises(IndexError):
        found[12]


def test_solutions_that_begin_alike_are_compared_by_their_tokens():
    one = solution(np.random.default_rng(1), 5, (2, 3), {0: 1, 1: 2})
    context = one[0].context
    two = [IdPair(context, (9, 9), (8,)), IdPair((*context, 9, 9), (7,), (6, 6))]
    pairs = [*one, *solutions(2, seed=4), *two]
    lazy, reads = counted(pairs)
    reads.clear()
    groups = lazy.group(range(len(pairs)), ROW)
    assert groups == pair_trees.group_by_trunk(pairs, ROW)
    assert sorted(reads) == [0, 1, len(pairs) - 2, len(pairs) - 1]


def test_the_next_batch_is_laid_out_while_the_reference_works():
    pairs, events = solutions(6), []
    found = laid_out(pairs, epochs=1)

    def lay_out(step):
        events.append(f"batch {step}")
        return found[step]

    def on_batch(values):
        events.append("values")
        assert values.shape == (2, 6)

    batches = dpo.Batches(len(found), lay_out)
    arguments = MODEL, parameters(2), batches, one_device_mesh(), on_batch
    filled = dpo.with_reference(*arguments)
    assert len(found) == 4 and events == [
        "batch 0", "batch 1", "values", "batch 2", "values", "batch 3", "values",
        "values",
    ]  # fmt: skip
    events.clear()
    known = [batch.reference for batch in filled][:3]
    again = dpo.with_reference(*arguments, known)
    assert events[-2:] == ["batch 3", "values"]
    for one, other in zip(filled, again, strict=True):
        assert one.reference.any()
        for got, want in zip(*map(jax.tree.leaves, (one, other)), strict=True):
            np.testing.assert_array_equal(got, want)


# From files.


def row_of(number, pair, said="a verdict"):
    return Pair(
        id=f"q{number}/1",
        problem_id=f"q{number}",
        problem="¿Cuánto es 2 + 2?\u2028",
        step=1,
        steps=[],
        context_ids=list(pair.context),
        chosen_ids=list(pair.chosen),
        rejected_ids=list(pair.rejected),
        chosen="Step 1: vier",
        rejected="Step 1: fünf",
        scores=[1.0, 0.0],
        counts=[1, 1],
        candidates=["Step 1: vier", "Step 1: fünf"],
        best=0,
        worst=1,
        verdicts=[[0, 1, "A", said, None]] * 4,
        chosen_logp=-1.0,
        rejected_logp=-2.0,
        model="M1",
        iteration=1,
        seed_path=[0, 1],
    )


def judgment_of(number, pair):
    ids = map(list, (pair.context, pair.chosen, pair.rejected))
    parts = ("p", "a", "b", "A", *ids, "c", "r", ["A", "B"])
    return JudgmentPair(f"j{number}", *parts)


def test_pairs_of_two_files_are_those_of_the_files(tmp_path):
    pairs, others = solutions(5), solutions(2, seed=2)
    long = IdPair((1,) * ROW, (2,), (3,))
    rows = [row_of(n, pair) for n, pair in enumerate([*pairs[:4], long, *pairs[4:]])]
    records.write_jsonl(tmp_path / "pairs.jsonl", rows)
    text = (tmp_path / "pairs.jsonl").read_text("utf-8")
    (tmp_path / "pairs.jsonl").write_text("\n" + text.rstrip(), "utf-8")
    judgments = [judgment_of(n, pair) for n, pair in enumerate(others)]
    records.write_jsonl(tmp_path / "judgments.jsonl", judgments)
    files = preferences.PairFiles(
        [
            (tmp_path / "pairs.jsonl", Pair),
            (tmp_path / "judgments.jsonl", JudgmentPair),
        ],
        ROW,
    )
    lazy = files.pairs()
    assert list(lazy) == pairs + others and len(lazy) == len(pairs) + len(others)
    assert files.counts == [len(pairs) + 1, len(others)] and files.dropped == 1
    assert [files.row(n).id for n in (3, 4, len(pairs))] == ["q3/1", "q5/1", "j0"]
    assert_same(laid_out(lazy), all_at_once(pairs + others, **LAYOUT))


def test_a_damaged_row_is_named_before_any_batch(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [row_of(n, pair) for n, pair in enumerate(solutions(2))]
    files = preferences.PairFiles([(path, Pair)], ROW)
    records.write_jsonl(path, rows)
    lines = [line + "\n" for line in path.read_text("utf-8").split("\n")[:-1]]
    values = json.loads(lines[2]) | {"chosen_ids": [1, -1]}
    for line, message in (
        (lines[2][:50], r"pairs.jsonl:3: broken JSON"),
        (json.dumps(values) + "\n", r"pairs.jsonl:3 \(id q2/1\): field 'chosen_ids'"),
        (lines[0], r"pairs.jsonl:3: id 'q0/1' is at .*pairs.jsonl:1 already"),
    ):
        path.write_text("".join([*lines[:2], line, *lines[3:]]), "utf-8")
        with pytest.raises(ValueError, match=message):
            preferences.PairFiles([(path, Pair)], ROW).pairs()
    # Changed after it was checked.
    path.write_text("".join(lines), "utf-8")
    lazy = files.pairs()
    path.write_text("".join(lines).replace("{", "[", 1), "utf-8")
    with pytest.raises(ValueError, match="pairs.jsonl: the row at byte 0 has changed"):
        lazy[0]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    sizes = []
    for count in (60, 60, 600):  # the first time, modules are loaded
        pairs = solutions(count)
        rows = (row_of(n, pair, "reason " * 200) for n, pair in enumerate(pairs))
        records.write_jsonl(tmp_path / "pairs.jsonl", rows)
        del rows
        tracemalloc.start()
        lazy = preferences.PairFiles([(tmp_path / "pairs.jsonl", Pair)], ROW).pairs()
        batches = laid_out(lazy, epochs=1)
        for step in range(5):
            batches[step]
        sizes.append((tracemalloc.get_traced_memory()[1], len(pairs)))
        tracemalloc.stop()
    row = (tmp_path / "pairs.jsonl").stat().st_size / len(pairs)
    assert row > 5000
    (_, _), (small, few), (large, many) = sizes
    assert many == 10 * few > 2000
    per_pair = (large - small) / (many - few)
    assert per_pair < 500 < row / 10
