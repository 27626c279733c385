"""Forest rows: one rule of who sees whom, and packing that loses nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepjax import forest
from stepjax.forest import IdPair
from stepjax.lm import attention
from stepjax.lm import model as lm

CONFIG = lm.ModelConfig(
    vocab_size=23,
    hidden_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=28,
)

# 0 ─ 1 ─ 2 ─ 3      6 ─ 7      8 is padding
#     └── 4 ─ 5
HAND_DRAWN = (6, 6, 4, 4, 6, 6, 8, 8, 9)
SEEN = """
x........
xx.......
xxx......
xxxx.....
xx..x....
xx..xx...
......x..
......xx.
........x
""".split()

FIRST = IdPair((1, 2), (3,), (7, 8))
SECOND = IdPair((1, 2, 3, 4), (5, 6), (9,))  # the step 4 between them has no pair


def mask_of(subtree_end):
    """The rule of the module docstring, once more in numpy."""
    index = np.arange(len(subtree_end))
    query, key = index[:, None], index[None, :]
    return (key <= query) & (query < np.asarray(subtree_end)[None, :])


def path_to(parent, index):
    """Indices from the root to `index`."""
    path = []
    while index >= 0:
        path.append(int(index))
        index = parent[index]
    return path[::-1]


def ancestors(parent):
    """Who is on whose path, [n, n] bool, from the parents alone."""
    seen = np.zeros((len(parent), len(parent)), bool)
    for i in range(len(parent)):
        seen[i, path_to(parent, i)] = True
    return seen


def random_tree(rng, size):
    """A tree of any form, depth first: every token continues some open path."""
    parent, position, open_path = [-1], [0], [0]
    for i in range(1, size):
        del open_path[rng.integers(1, len(open_path) + 1) :]
        parent.append(open_path[-1])
        position.append(len(open_path))
        open_path.append(i)
    end = [max(j for j in range(size) if i in path_to(parent, j)) for i in range(size)]
    nothing = np.zeros(0, np.int32)
    return forest.Tree(
        rng.integers(0, CONFIG.vocab_size, size).astype(np.int32),
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        np.asarray(end, np.int32) + 1,
        nothing,
        nothing,
        nothing.astype(np.float32),
    )


def solution(rng, prompt, steps, pairs, first=0):
    """Pairs of one solution; `pairs` maps a step's number to its branch's length."""

    def draw(n):
        return tuple(int(x) for x in rng.integers(first, CONFIG.vocab_size, n))

    texts, context, found = [draw(n) for n in steps], draw(prompt), []
    for number, text in enumerate(texts):
        if number in pairs:
            found.append(IdPair(context, text, draw(pairs[number])))
        context += text
    return found


# The rule.


def test_a_token_sees_its_own_path_and_nothing_else():
    plain = (9,) * 9
    mask = attention.forest_mask(jnp.asarray([HAND_DRAWN, plain]))
    expected = [[c == "x" for c in row] for row in SEEN]
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_array_equal(mask[1], np.tri(9, dtype=bool))
    parent = [-1, 0, 1, 2, 1, 4, -1, 6, -1]
    np.testing.assert_array_equal(expected, ancestors(parent))


@functools.cache
def parameters():
    """Random parameters with lively attention, made without a compilation."""
    rng = np.random.default_rng(0)
    shapes = lm.unboxed(lm.abstract_params(lm.Decoder(CONFIG)))

    def draw(path, leaf):
        normal = rng.normal(size=leaf.shape).astype(np.float32)
        return 1 + 0.1 * normal if "scale" in str(path) else 0.4 * normal

    return jax.tree_util.tree_map_with_path(draw, shapes)


@jax.jit
def hidden_states(params, tokens, position, subtree_end):
    model = lm.Decoder(CONFIG)
    return model.apply({"params": params}, tokens, position, subtree_end)


def test_hidden_states_in_a_forest_are_those_of_each_path_alone():
    rng = np.random.default_rng(1)
    trajectories = [
        solution(rng, 5, (3, 2, 4), {0: 2, 1: 5, 2: 1}),
        solution(rng, 3, (2, 2, 3, 1), {1: 4, 3: 2}),
    ]
    trees = [forest.trajectory_tree(pairs) for pairs in trajectories]
    trees += [random_tree(rng, size) for size in (17, 12, 9, 1)]
    trees += [forest.path_tree(rng.integers(0, 23, 11), [0] * 10 + [1])]
    rows = forest.pack(trees, 40)
    assert rows.tokens.shape == (3, 40)
    packed = hidden_states(parameters(), rows.tokens, rows.position, rows.subtree_end)

    paths = []  # (row, indices) from each root to each leaf
    for row, parent in enumerate(rows.parent):
        leaves = set(range(40)) - set(parent.tolist())
        paths += [(row, path_to(parent, leaf)) for leaf in sorted(leaves)]
    assert len({i for row, path in paths for i in [(row, k) for k in path]}) == 120
    longest = max(len(path) for _, path in paths)
    assert len(paths) > 20 and longest >= 11
    tokens = np.zeros((len(paths), longest), np.int32)
    for number, (row, path) in enumerate(paths):
        tokens[number, : len(path)] = rows.tokens[row, path]
    position = np.tile(np.arange(longest), (len(paths), 1))
    causal = np.full_like(position, longest)  # what pads a path comes after it
    alone = hidden_states(parameters(), tokens, position, causal)

    worst = max(
        np.abs(alone[number, : len(path)] - packed[row, np.asarray(path)]).max()
        for number, (row, path) in enumerate(paths)
    )
    assert worst <= 1e-5
    # Without the rule, with each row as one plain sequence, the numbers differ.
    wrong = hidden_states(
        parameters(), rows.tokens, rows.position, np.full_like(rows.position, 40)
    )
    assert np.abs(wrong - packed).max() > 0.5


# Trees.


def test_a_path_is_scored_where_it_has_weight():
    tree = forest.path_tree([5, 6, 7, 8], [0, 0, 1, 0.25], segment=3)
    expected = forest.Tree(
        tokens=[5, 6, 7, 8],
        parent=[-1, 0, 1, 2],
        position=[0, 1, 2, 3],
        subtree_end=[4, 4, 4, 4],
        scored=[2, 3],
        segment=[3, 3],
        weight=[1, 0.25],
    )
    for got, want in zip(tree, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert {str(x.dtype) for x in tree} == {"int32", "float32"}


def test_a_trajectory_is_a_trunk_with_branches():
    #  1 ─ 2 ─ 3 ─ 4 ─ 5 ─ 6
    #      └ 7 ─ 8 └ 9
    tree = forest.trajectory_tree([FIRST, SECOND])
    np.testing.assert_array_equal(tree.tokens, [1, 2, 7, 8, 3, 4, 9, 5, 6])
    np.testing.assert_array_equal(tree.parent, [-1, 0, 1, 2, 1, 4, 5, 5, 7])
    np.testing.assert_array_equal(tree.position, [0, 1, 2, 3, 2, 3, 4, 4, 5])
    np.testing.assert_array_equal(tree.subtree_end, [9, 9, 4, 4, 9, 9, 7, 9, 9])
    sums = dict(zip(tree.scored.tolist(), tree.segment.tolist(), strict=True))
    assert sums == {4: 0, 2: 1, 3: 1, 7: 2, 8: 2, 6: 3}
    assert tree.weight.tolist() == [1.0] * 6


def test_segments_follow_the_order_given_not_the_depth():
    tree = forest.trajectory_tree([SECOND, FIRST], first_segment=10)
    np.testing.assert_array_equal(tree.tokens, [1, 2, 7, 8, 3, 4, 9, 5, 6])
    sums = dict(zip(tree.scored.tolist(), tree.segment.tolist(), strict=True))
    assert sums == {7: 10, 8: 10, 6: 11, 4: 12, 2: 13, 3: 13}


@pytest.mark.parametrize(
    ("tokens", "weights", "message"),
    [
        ([1, 2], [0], "2 tokens and 1 weights; expected equal"),
        ([], [], "0 tokens and 0 weights; expected equal, nonzero"),
        ([1, 2], [0.5, 1], "first token has weight 0.5; expected 0"),
    ],
)
def test_bad_paths_are_refused(tokens, weights, message):
    with pytest.raises(ValueError, match=message):
        forest.path_tree(tokens, weights)


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
        forest.trajectory_tree([SECOND, pair])


# Grouping and packing.


def test_a_solution_shares_one_tree():
    rng = np.random.default_rng(2)
    mine = solution(rng, 30, (6,) * 7, {n: 6 for n in range(7) if n != 3})
    other = solution(rng, 25, (5, 5), {0: 4, 1: 4})
    mixed = [mine[4], other[1], *mine[:4], mine[5], other[0]]
    groups = forest.group_by_trunk(mixed, 200)
    assert sorted(map(sorted, groups)) == [[0, 2, 3, 4, 5, 6], [1, 7]]
    tree = forest.trajectory_tree([mixed[i] for i in max(groups, key=len)])
    # The prompt and seven steps once, and six branches: 30 + 7 * 6 + 6 * 6.
    assert len(tree.tokens) == 108
    assert sum(2 * len(p.context) + 12 for p in mine) == 6 * 108  # one by one
    # A prompt may be shorter than any step.
    short = solution(rng, 1, (3, 2, 2), {0: 1, 2: 2})
    assert forest.group_by_trunk(short[::-1], 200) == [[1, 0]]


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
    groups = forest.group_by_trunk(pairs, length)
    assert sorted(i for group in groups for i in group) == list(range(len(pairs)))
    trees, order = [], []
    for group in groups:
        trees.append(forest.trajectory_tree([pairs[i] for i in group], 2 * len(order)))
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


def test_packing_shifts_trees_and_pads_the_rest():
    trees = [
        forest.trajectory_tree([FIRST]),  # 1 2 (7 8) 3
        forest.path_tree([4, 5, 6], [0, 1, 0.5], segment=2),
        forest.path_tree([9, 9], [0, 1], segment=3),
    ]
    rows = forest.pack(trees, 8, rows=3, scored=6)
    expected = forest.Rows(
        tokens=[[1, 2, 7, 8, 3, 4, 5, 6], [9, 9, 0, 0, 0, 0, 0, 0], [0] * 8],
        parent=[[-1, 0, 1, 2, 1, -1, 5, 6], [-1, 0] + [-1] * 6, [-1] * 8],
        position=[[0, 1, 2, 3, 2, 0, 1, 2], [0, 1] + [0] * 6, [0] * 8],
        subtree_end=[[5, 5, 4, 4, 5, 8, 8, 8], [2, 2, 3, 4, 5, 6, 7, 8], range(1, 9)],
        scored=[[2, 3, 4, 6, 7, 0], [1, 0, 0, 0, 0, 0], [0] * 6],
        segment=[[1, 1, 0, 2, 2, 0], [3, 0, 0, 0, 0, 0], [0] * 6],
        weight=[[1, 1, 1, 1, 0.5, 0], [1, 0, 0, 0, 0, 0], [0] * 6],
    )
    for got, want in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(got, np.asarray(want))
    tight = forest.pack(trees, 8)
    assert tight.tokens.shape == (2, 8) and tight.scored.shape == (2, 5)
    empty = forest.pack([], 4, rows=2)
    assert empty.tokens.shape == (2, 4) and empty.weight.tolist() == [[0.0], [0.0]]


def test_what_does_not_fit_is_refused():
    tree = forest.path_tree([1, 2, 3, 4, 5], [0, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="tree 1 has 5 tokens; expected at most .*=4"):
        forest.fill([forest.path_tree([1, 2], [0, 1]), tree], 4)
    message = "needs 2 rows and 4 scored tokens per row; expected at most"
    with pytest.raises(ValueError, match=f"{message} 1 and 4"):
        forest.pack([tree, tree], 9, rows=1)
    with pytest.raises(ValueError, match=f"{message} 2 and 3"):
        forest.pack([tree, tree], 9, scored=3)
    long = IdPair((1, 2, 3), (4, 5), (6,))
    with pytest.raises(ValueError, match="pair 1 has 6 tokens; .*row_length=5. Raise"):
        forest.group_by_trunk([FIRST, long], 5)
    assert forest.group_by_trunk([FIRST, long], 6) == [[0], [1]]


def test_buckets():
    sizes = [forest.bucket(n) for n in range(18)]
    assert sizes == [1, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 24]
    assert [forest.bucket(n, 4) for n in (1, 4, 5, 9, 17, 33)] == [4, 4, 8, 12, 24, 48]
    for size in range(1, 3000):
        assert 0 <= forest.bucket(size) - size <= forest.bucket(size) / 3


def test_merged_paths_share_what_they_begin_with():
    one = forest.path_tree([7, 1, 2, 3], [0, 0, 1, 2])
    two = forest.path_tree([7, 1, 4], [0, 0, 3])
    three = forest.path_tree([7, 1, 2, 5], [0, 0, 0.5, 1])
    tree = forest.merge([one, two, three])
    assert tree.tokens.tolist() == [7, 1, 2, 3, 5, 4]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 2, 1]
    assert tree.position.tolist() == [0, 1, 2, 3, 3, 2]
    assert tree.subtree_end.tolist() == [6, 6, 5, 4, 5, 6]
    assert tree.scored.tolist() == [2, 3, 4, 5]
    assert tree.weight.tolist() == [1.5, 2, 1, 3]


def test_a_path_merged_with_itself_has_twice_its_weights():
    path = forest.path_tree([7, 1, 2], [0, 0, 1])
    tree = forest.merge([path, path])
    assert tree.tokens.tolist() == [7, 1, 2]
    assert tree.weight.tolist() == [2]


@pytest.mark.parametrize("paths", [[], [[7, 1], [8, 1]]])
def test_paths_without_a_common_first_token_are_not_merged(paths):
    with pytest.raises(ValueError, match="begin with the same token"):
        forest.merge([forest.path_tree(ids, [0, 1]) for ids in paths])
