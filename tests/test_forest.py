"""Forest rows: one rule of who sees whom, and packing that loses nothing."""

import functools

import forests
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepjax import forest, pair_trees
from stepjax.lm import attention, train
from stepjax.lm import model as lm

CONFIG = lm.ModelConfig(
    vocab_size=forests.VOCAB,
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


def random_tree(rng, size):
    """A tree of any form, depth first: every token continues some open path."""
    parent, position, open_path = [-1], [0], [0]
    for i in range(1, size):
        del open_path[rng.integers(1, len(open_path) + 1) :]
        parent.append(open_path[-1])
        position.append(len(open_path))
        open_path.append(i)
    end = [
        max(j for j in range(size) if i in forests.path_to(parent, j))
        for i in range(size)
    ]
    nothing = np.zeros(0, np.int32)
    return forest.Tree(
        rng.integers(0, forests.VOCAB, size).astype(np.int32),
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        np.asarray(end, np.int32) + 1,
        nothing,
        nothing,
        nothing.astype(np.float32),
    )


# The rule.


def test_a_token_sees_its_own_path_and_nothing_else():
    plain = (9,) * 9
    mask = attention.forest_mask(jnp.asarray([HAND_DRAWN, plain]))
    expected = [[c == "x" for c in row] for row in SEEN]
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_array_equal(mask[1], np.tri(9, dtype=bool))
    parent = [-1, 0, 1, 2, 1, 4, -1, 6, -1]
    np.testing.assert_array_equal(expected, forests.ancestors(parent))


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
        forests.solution(rng, 5, (3, 2, 4), {0: 2, 1: 5, 2: 1}),
        forests.solution(rng, 3, (2, 2, 3, 1), {1: 4, 3: 2}),
    ]
    trees = [pair_trees.trajectory_tree(pairs) for pairs in trajectories]
    trees += [random_tree(rng, size) for size in (17, 12, 9, 1)]
    trees += [forest.path_tree(rng.integers(0, 23, 11), [0] * 10 + [1])]
    rows = forest.pack(trees, 40)
    assert rows.tokens.shape == (3, 40)
    packed = hidden_states(parameters(), rows.tokens, rows.position, rows.subtree_end)

    paths = []  # (row, indices) from each root to each leaf
    for row, parent in enumerate(rows.parent):
        leaves = set(range(40)) - set(parent.tolist())
        paths += [(row, forests.path_to(parent, leaf)) for leaf in sorted(leaves)]
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


# Packing.


def test_packing_shifts_trees_and_pads_the_rest():
    trees = [
        pair_trees.trajectory_tree([forests.FIRST]),  # 1 2 (7 8) 3
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


def test_no_trees_are_a_row_of_padding():
    rows = forest.pack(forest.from_sequences([], []), 3)
    assert rows.tokens.shape == (1, 3) and rows.weight.tolist() == [[0.0]]
    np.testing.assert_array_equal(rows.subtree_end, [[1, 2, 3]])


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


# Sequences of any kind.

# Two prompts; a sequence that begins another one, twice the same, one without scores.
PROMPT = (1, 2, 3)
SEQUENCES = [
    (*PROMPT, 4, 5, 6),
    (*PROMPT, 4, 5),
    (7, 8, 9),
    (*PROMPT, 4, 5, 6),
    (*PROMPT, 4, 7, 7, 7),
    (*PROMPT, 9),
]
SCORED = [[n >= 3 for n in range(len(ids))] for ids in SEQUENCES]
SCORED[2] = [False, True, True]
SCORED[5] = [False] * 4


def test_sequences_share_every_token_that_they_begin_with():
    one, other = forest.from_sequences(SEQUENCES, SCORED)
    assert one.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 7, 7, 9]
    assert one.parent.tolist() == [-1, 0, 1, 2, 3, 4, 3, 6, 7, 2]
    assert one.position.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 3]
    assert one.subtree_end.tolist() == [10, 10, 10, 9, 6, 6, 9, 9, 9, 10]
    assert one.segment.tolist() == [0, 0, 0, 1, 1, 3, 3, 3, 4, 4, 4, 4]
    assert one.scored.tolist() == [3, 4, 5, 3, 4, 3, 4, 5, 3, 6, 7, 8]
    assert one.weight.tolist() == [1.0] * 12
    assert other.tokens.tolist() == [7, 8, 9]
    assert other.segment.tolist() == [2, 2] and other.scored.tolist() == [1, 2]
    assert {str(x.dtype) for x in one} == {"int32", "float32"}
    assert forest.from_sequences([], []) == []


@st.composite
def sequence_lists(draw):
    """Sequences of so few ids that they begin alike, and what is scored of each."""
    lists = st.lists(st.integers(0, 2), min_size=1, max_size=6)
    sequences = draw(st.lists(lists, max_size=8))
    scored = [[False] + [draw(st.booleans()) for _ in ids[1:]] for ids in sequences]
    return sequences, scored


@settings(max_examples=150, deadline=None, database=None)
@given(sequence_lists(), st.none() | st.integers(0, 12))
def test_every_sequence_is_one_path_of_one_tree(drawn, spare):
    sequences, scored = drawn
    longest = max(map(len, sequences), default=1)
    length = None if spare is None else longest + spare
    trees = forest.from_sequences(sequences, scored, length)
    found = {}
    for tree in trees:
        np.testing.assert_array_equal(
            forests.mask_of(tree.subtree_end), forests.ancestors(tree.parent)
        )
        assert length is None or len(tree.tokens) <= length
        paths = [forests.path_to(tree.parent, n) for n in range(len(tree.tokens))]
        assert [len(path) - 1 for path in paths] == tree.position.tolist()
        prefixes = {tuple(tree.tokens[path].tolist()) for path in paths}
        assert len(prefixes) == len(paths)  # no token is there twice
        for segment in set(tree.segment.tolist()):
            places = tree.scored[tree.segment == segment]
            ends = paths[places[-1]]
            assert [at for at in ends if at in places] == places.tolist()
            assert segment not in found
            found[segment] = tree.tokens[ends].tolist(), tree.position[places].tolist()
    expected = {}
    for number, (ids, mask) in enumerate(zip(sequences, scored, strict=True)):
        at = [n for n, counts in enumerate(mask) if counts]
        if at:
            expected[number] = ids[: at[-1] + 1], at
    assert found == expected
    if length is None:
        distinct = {tuple(ids[: n + 1]) for ids in sequences for n in range(len(ids))}
        assert sum(len(tree.tokens) for tree in trees) == len(distinct)


def plain_logps(params, sequences):
    """Log-probability of each token but the first, in plain rows, [R, T - 1]."""
    longest = max(map(len, sequences))
    tokens = jnp.array([[*ids] + [0] * (longest - len(ids)) for ids in sequences])
    position = jnp.tile(jnp.arange(longest), (len(sequences), 1))
    causal = jnp.full_like(position, longest)
    hidden = hidden_states(params, tokens, position, causal)
    logps = jax.nn.log_softmax(hidden[:, :-1] @ lm.unembedding(params).T)
    return jnp.take_along_axis(logps, tokens[:, 1:, None], 2)[..., 0]


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("row_length", [24, 8])
def test_sequences_in_trees_have_the_numbers_of_plain_rows(row_length):
    rng = np.random.default_rng(3)
    prompt = rng.integers(0, forests.VOCAB, 5).tolist()
    drawn = [prompt + rng.integers(0, 3, 3).tolist() for _ in range(9)]
    sequences = [*SEQUENCES, *drawn]
    scored = [*SCORED, *([False] * 5 + [True] * 3 for _ in drawn)]
    trees = forest.from_sequences(sequences, scored, row_length)
    rows = jax.tree.map(jnp.asarray, forest.pack(trees, row_length))
    used, plain = sum(len(tree.tokens) for tree in trees), sum(map(len, sequences))
    assert used < plain and len(trees) > 2 + (row_length < 24)
    # The weights of a loss, so that the gradient of each token counts.
    weight = jnp.asarray(rng.normal(size=(len(sequences), 8)), jnp.float32)

    def in_trees(params):
        logps = train.scored_logps(lm.Decoder(CONFIG), params, rows)
        at = jnp.take_along_axis(rows.position, rows.scored, 1)
        return (weight[rows.segment, at] * logps).sum(), logps

    counts = np.zeros((len(sequences), 8), bool)
    for number, mask in enumerate(scored):
        counts[number, : len(mask)] = mask

    def alone(params):
        logps = plain_logps(params, sequences)
        used = weight[:, 1:] * counts[:, 1:]
        return (used * logps).sum(), logps

    both = [jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (in_trees, alone)]
    ((loss, logps), slope), ((expected, each), expected_slope) = (
        f(parameters()) for f in both
    )
    for number, own in enumerate(each):
        mine = logps[(rows.segment == number) & (rows.weight > 0)]
        own = own[counts[number, 1:]]
        np.testing.assert_allclose(mine, own, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for got, want in zip(
        jax.tree.leaves(slope), jax.tree.leaves(expected_slope), strict=True
    ):
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    ("ids", "scored", "message"),
    [
        ([[1, 2]], [], "1 sequences and 0 lists of scores; expected one"),
        ([[1], []], [[0], []], "sequence 1 has 0 tokens .*at least one token"),
        ([[1, 2]], [[0]], r"sequence 0 has 2 tokens and scores of shape \(1,\)"),
        ([[1, 2]], [[0, 0.5]], "sequence 0 has the score 0.5; expected True"),
        ([[1, 2]], [[0, -1]], "sequence 0 has the score -1; expected True"),
        ([[1, 2]], [[1, 1]], "first token of sequence 0 is scored; expected False"),
        ([[1, -100]], [[0, 0]], "sequence 0 has the token id -100; .*of padding"),
        ([[1, 2**31]], [[0, 1]], "sequence 0 has the token id 2147483648; expected"),
        ([[1], [1.5, 2]], [[0], [0, 1]], r"sequence 1 is \[1.5, 2\]; expected a list"),
        ([[1, 2**63]], [[0, 1]], "numbers from 0 to 2147483647, its token ids"),
        # Sequences of two prompts in a list for each prompt.
        ([[[1, 2], [1]]], [[[0, 1], [0]]], r"sequence 0 is \[\[1, 2\], \[1\]\]; exp"),
        ([[1, 2]], [[0, [1, 0]]], r"sequence 0 has 2 tokens and scores of shape \(\)"),
        (["ab"], [[0, 1]], "sequence 0 is 'ab'; expected a list of whole numbers"),
        ([1, 2], [[0], [0]], "sequence 0 is 1; expected a list of whole numbers"),
        ([[1], [1] * 5], [[0], [0] * 5], "sequence 1 has 5 .*row_length=4. Make the"),
    ],
)
def test_bad_sequences_are_refused(ids, scored, message):
    with pytest.raises(ValueError, match=message):
        forest.from_sequences(ids, scored, 4)
