"""Pairs along one search as a tree: grouped, laid out, and nothing lost."""

import numpy as np
import pytest
from forests import FIRST, SECOND, ancestors, mask_of, path_to, solution
from hypothesis import given, settings
from hypothesis import strategies as st

from stepjax import forest, pair_trees
from stepjax.forest import IdPair


def test_a_trajectory_is_a_trunk_with_branches():
    #  1 ─ 2 ─ 3 ─ 4 ─ 5 ─ 6
    #      └ 7 ─ 8 └ 9
    tree = pair_trees.trajectory_tree([FIRST, SECOND])
    np.testing.assert_array_equal(tree.tokens, [1, 2, 7, 8, 3, 4, 9, 5, 6])
    np.testing.assert_array_equal(tree.parent, [-1, 0, 1, 2, 1, 4, 5, 5, 7])
    np.testing.assert_array_equal(tree.position, [0, 1, 2, 3, 2, 3, 4, 4, 5])
    np.testing.assert_array_equal(tree.subtree_end, [9, 9, 4, 4, 9, 9, 7, 9, 9])
    sums = dict(zip(tree.scored.tolist(), tree.segment.tolist(), strict=True))
    assert sums == {4: 0, 2: 1, 3: 1, 7: 2, 8: 2, 6: 3}
    assert tree.weight.tolist() == [1.0] * 6


def test_segments_follow_the_order_given_not_the_depth():
    tree = pair_trees.trajectory_tree([SECOND, FIRST], first_segment=10)
    np.testing.assert_array_equal(tree.tokens, [1, 2, 7, 8, 3, 4, 9, 5, 6])
    sums = dict(zip(tree.scored.tolist(), tree.segment.tolist(), strict=True))
    assert sums == {7: 10, 8: 10, 6: 11, 4: 12, 2: 13, 3: 13}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (IdPair((1, 2, 4), (5,), (6,)), r"pair 1 \(context of 3 tokens\) does not lie"),
        (IdPair((1, 2), (4,), (6,)), r"pair 1 \(context of 2 tokens\) does not lie"),
        (IdPair((), (1,), (6,)), "0 context, 1 chosen and 1 rejected tokens"),
        (IdPair((1, 2), (3,), ()), "2 context, 1 chosen and 0 rejected tokens"),
    ],
)
def test_pairs_off_the_trunk_or_with_empty_parts_are_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        pair_trees.trajectory_tree([SECOND, pair])


def test_a_pair_longer_than_a_row_is_refused():
    long = IdPair((1, 2, 3), (4, 5), (6,))
    with pytest.raises(ValueError, match="pair 1 has 6 tokens; .*row_length=5. Raise"):
        pair_trees.group_by_trunk([FIRST, long], 5)
    assert pair_trees.group_by_trunk([FIRST, long], 6) == [[0], [1]]


def test_a_solution_shares_one_tree():
    rng = np.random.default_rng(2)
    mine = solution(rng, 30, (6,) * 7, {n: 6 for n in range(7) if n != 3})
    other = solution(rng, 25, (5, 5), {0: 4, 1: 4})
    mixed = [mine[4], other[1], *mine[:4], mine[5], other[0]]
    groups = pair_trees.group_by_trunk(mixed, 200)
    assert sorted(map(sorted, groups)) == [[0, 2, 3, 4, 5, 6], [1, 7]]
    tree = pair_trees.trajectory_tree([mixed[i] for i in max(groups, key=len)])
    # The prompt and seven steps once, and six branches: 30 + 7 * 6 + 6 * 6.
    assert len(tree.tokens) == 108
    assert sum(2 * len(p.context) + 12 for p in mine) == 6 * 108  # one by one
    # A prompt may be shorter than any step.
    short = solution(rng, 1, (3, 2, 2), {0: 1, 2: 2})
    assert pair_trees.group_by_trunk(short[::-1], 200) == [[1, 0]]


IDS = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)


@st.composite
def pair_lists(draw):
    """Pairs of a few solutions in any order; so few ids that prefixes collide."""
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        context = draw(st.lists(st.integers(0, 1), min_size=1, max_size=11))
        context = tuple(context)
        for _ in range(draw(st.integers(1, 5))):
            step = draw(IDS)
            if draw(st.booleans()):
                pairs.append(IdPair(context, step, draw(IDS)))
            context += step
    return draw(st.permutations(pairs))


def sequence(tree_or_row, segment):
    """The whole path that ends with the last scored token of a segment."""
    real = tree_or_row.weight > 0
    scored = tree_or_row.scored[real & (tree_or_row.segment == segment)]
    path = path_to(tree_or_row.parent, scored.max())
    assert sorted(scored) == path[-len(scored) :]
    assert [tree_or_row.position[i] for i in path] == list(range(len(path)))
    return tuple(tree_or_row.tokens[path].tolist()), len(scored)


@settings(max_examples=150, deadline=None, database=None)
@given(pair_lists(), st.integers(0, 40))
def test_every_pair_is_in_one_group_and_every_row_fits(pairs, spare):
    sizes = [len(p.context) + len(p.chosen) + len(p.rejected) for p in pairs]
    length = max(sizes, default=1) + spare
    groups = pair_trees.group_by_trunk(pairs, length)
    assert sorted(i for group in groups for i in group) == list(range(len(pairs)))
    trees, order = [], []
    for group in groups:
        trees.append(
            pair_trees.trajectory_tree([pairs[i] for i in group], 2 * len(order))
        )
        order += group
        assert len(trees[-1].tokens) <= length
    filled = forest.fill(trees, length)
    assert sorted(i for row in filled for i in row) == list(range(len(trees)))
    rows = forest.pack(trees, length, rows=len(filled) + 1)
    assert (rows.weight > 0).sum() == sum(
        len(p.chosen) + len(p.rejected) for p in pairs
    )
    for number in range(len(filled) + 1):
        row = forest.Tree(*(array[number] for array in rows))
        np.testing.assert_array_equal(mask_of(row.subtree_end), ancestors(row.parent))
        for segment in np.unique(row.segment[row.weight > 0]):
            pair = pairs[order[segment // 2]]
            step = pair.rejected if segment % 2 else pair.chosen
            assert sequence(row, segment) == (pair.context + step, len(step))
