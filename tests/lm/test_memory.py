"""Contexts held again come back by a copy: counts, results, devices, shapes."""

import jax
import numpy as np
import pytest
from fakes import random_parameters
from small_models import FOUR_HEADS, SIX_TOKENS, some_ids

from stepjax.lm import generate, memory, sharding
from stepjax.lm import model as lm
from stepjax.lm.memory import Tree
from stepjax.lm.sampler import Sampler

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="session")
def params():
    return random_parameters(lm.abstract_params(FOUR_HEADS))


ROOTS = [some_ids(slot, 10 + slot) for slot in range(8)]
LEFT, RIGHT, DEEP = some_ids(20, 7), some_ids(21, 5), some_ids(22, 9)


def branch(slot, *steps):
    return sum(steps, ROOTS[slot])


def answers(sampler, slots):
    """Samples and scores behind what the slots hold."""
    prompts = [[some_ids(30, 1), some_ids(31, 1)] for _ in slots]
    paths = np.array([[(slot, 0), (slot, 1)] for slot in slots], np.uint32)
    samples = sampler.sample(prompts, paths, SIX_TOKENS, slots=slots)
    rows = [[some_ids(32, 3), some_ids(33, 6)] for _ in slots]
    scored = np.full((len(slots), 2), 2)
    return samples, sampler.score(rows, scored, vocab=48, slots=slots)


# The tree of token ids.


def test_tree_finds_the_longest_known_prefix_and_gives_new_ids_places_in_a_row():
    tree = Tree(10)
    assert tree.find([5, 6]) == []
    assert tree.add([5, 6, 7]) == (0, 0, 3)
    assert tree.add([5, 6, 8, 9]) == (2, 3, 2)  # two ids are known
    assert tree.add([5, 6, 7]) == (3, 5, 0)
    assert tree.add([6, 7]) == (0, 5, 2)  # the same ids after others are others
    assert tree.find([5, 6, 7, 1]) == [0, 1, 2]
    assert tree.find([5, 6, 8, 9]) == [0, 1, 3, 4]
    assert tree.find([6, 7]) == [5, 6]
    assert len(tree) == 7


def test_full_tree_takes_what_there_is_room_for():
    tree = Tree(4)
    assert tree.add([1, 2, 3]) == (0, 0, 3)
    assert tree.add([1, 5, 6, 7]) == (1, 3, 1)
    assert tree.add([1, 5, 6, 7]) == (2, 4, 0)
    assert tree.add([9]) == (0, 4, 0)
    assert tree.find([1, 5, 6, 7]) == [0, 3] and len(tree) == 4


# Exact counts.


def test_going_back_and_forth_computes_each_token_once(params, one_device):
    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 60, remember=100)
    plain = Sampler(FOUR_HEADS, params, one_device, 2, 60)
    counts = []
    for steps in ([LEFT], [RIGHT], [LEFT, DEEP], [RIGHT], [], [LEFT, DEEP], [LEFT]):
        for each in (sampler, plain):
            each.hold({0: branch(0, *steps), 1: branch(1, *steps)})
            assert each.held == [branch(0, *steps), branch(1, *steps)]
        counts.append((sampler.computed, sampler.restored, plain.computed))
    # Of both slots: 10 and 11 of the roots, 7 left, 5 right, 9 deep.
    left, right, deep = 2 * 7, 2 * 5, 2 * 9
    once = 21 + left + right + deep
    assert counts == [
        (21 + left, 0, 21 + left),
        (21 + left + right, 0, 21 + left + right),
        (once, left, once + left),
        (once, left + right, once + left + right),
        (once, left + right, once + left + right),
        (once, 2 * left + right + deep, once + 2 * left + right + deep),
        (once, 2 * left + right + deep, once + 2 * left + right + deep),
    ]
    assert (plain.restored, sampler.fed_tokens, sampler.new_tokens) == (0, 0, 0)


def test_each_slot_goes_its_own_way_and_remembers_its_own(params, one_device):
    sampler = Sampler(FOUR_HEADS, params, one_device, 3, 60, remember=60)
    sampler.hold({0: branch(0, LEFT), 2: branch(2, LEFT)})
    sampler.hold({0: branch(0, RIGHT)})
    sampler.hold({1: branch(0, LEFT)})  # another slot knows these ids, this one not
    assert (sampler.computed, sampler.restored) == (17 + 19 + 5 + 17, 0)
    sampler.hold({0: branch(0, LEFT, [3]), 1: branch(0, RIGHT), 2: branch(2)})
    assert (sampler.computed, sampler.restored) == (58 + 1 + 5, 7)


def test_sampled_steps_are_appended_and_remembered_without_being_computed(
    params, one_device
):
    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 60, remember=60)
    paths = np.zeros((2, 3, 2), np.uint32)
    paths[..., 1] = range(3)

    def expand(contexts):
        sampler.hold(dict(enumerate(ids[:-1] for ids in contexts)))
        prompts = [[ids[-1:]] * 3 for ids in contexts]
        return sampler.sample(prompts, paths, SIX_TOKENS).tokens.tolist()

    first = expand(ROOTS[:2])
    assert (sampler.computed, sampler.fed_tokens, sampler.new_tokens) == (19, 6, 36)
    children = [
        [root + tokens for tokens in of_root]
        for root, of_root in zip(ROOTS, first, strict=False)
    ]
    expand([of_root[0] for of_root in children])
    assert (sampler.computed, sampler.restored) == (19, 0)  # appended
    expand([of_root[1] for of_root in children])
    # All but the last of the second child's 6 tokens; the first child begins otherwise.
    assert all(a[0] != b[0] for a, b, _ in first)
    assert (sampler.computed, sampler.restored) == (19 + 2 * 5, 0)
    expand([of_root[0] for of_root in children])
    assert (sampler.computed, sampler.restored) == (29, 2 * 5)
    assert (sampler.fed_tokens, sampler.new_tokens) == (4 * 6, 4 * 36)


def test_fed_tokens_count_what_is_shared_once_and_no_last_token_of_a_score(
    params, one_device
):
    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 60)
    sampler.hold({0: ROOTS[0]})
    rows = [[[1, 2, 3, 4], [1, 2, 3, 5, 6], [7, 8], []]]
    paths = np.zeros((1, 4, 2), np.uint32)
    sampler.sample(rows, paths, SIX_TOKENS, slots=[0])
    assert sampler.fed_tokens == 4 + 5 + 2
    sampler.sample(rows, paths, SIX_TOKENS, slots=[0], share=(2,))
    assert sampler.fed_tokens == 11 + (3 + 1 + 2) + (1 + 1)  # [7] is also a lead
    scored = np.array([[1, 1, 1, 0]])
    sampler.score(rows, scored, vocab=48, slots=[0])
    assert sampler.fed_tokens == 19 + 3 + 4 + 1
    assert sampler.computed == 10


# Results.


@pytest.fixture(scope="module")
def both_ways(params, one_device):
    """What follows two branches: computed, and after others copied back."""
    sampler = Sampler(FOUR_HEADS, params, one_device, 4, 60, remember=40)
    steps = {0: (LEFT, DEEP), 1: (RIGHT, LEFT), 3: (DEEP,)}
    sampler.hold({slot: branch(slot, *steps[slot]) for slot in steps})
    before = answers(sampler, list(steps))
    contexts = jax.tree.map(np.asarray, sampler.contexts)
    sampler.hold({slot: branch(slot, some_ids(40 + slot, 16)) for slot in steps})
    between = answers(sampler, list(steps))
    computed = sampler.computed
    sampler.hold({slot: branch(slot, *steps[slot]) for slot in steps})
    assert sampler.computed == computed
    assert sampler.restored == 16 + 12 + 9
    return sampler, contexts, before, between, answers(sampler, list(steps))


def test_results_after_a_restore_are_bitwise_those_before(both_ways):
    sampler, contexts, before, between, after = both_ways
    for slot, size in ((0, 26), (1, 23), (3, 22)):
        for old, new in zip(contexts, sampler.contexts, strict=True):
            held = np.s_[:, slot, :, :size]
            np.testing.assert_array_equal(old[held], np.asarray(new)[held])
            assert np.abs(old[held]).min(-1).max() > 0
    for a, b in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(before[1], after[1])
    assert (before[0].tokens != between[0].tokens).any(-1).all()


def test_results_after_a_restore_are_those_of_a_fresh_sampler(
    both_ways, params, one_device
):
    *_, after = both_ways
    fresh = Sampler(FOUR_HEADS, params, one_device, 4, 60)
    # In one piece, where the other sampler computed and copied step by step.
    fresh.hold({s: branch(s, *steps) for s, steps in ((0, (LEFT, DEEP)), (3, (DEEP,)))})
    fresh.hold({1: branch(1, RIGHT, LEFT)})
    samples, scores = answers(fresh, [0, 1, 3])
    np.testing.assert_array_equal(samples.tokens, after[0].tokens)
    np.testing.assert_allclose(samples.logps, after[0].logps, atol=2e-4)
    np.testing.assert_allclose(scores, after[1], atol=2e-4)


def test_full_memory_computes_the_rest_again_and_stays_right(params, one_device):
    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 60, remember=20)
    walk = ([LEFT], [RIGHT], [LEFT], [RIGHT, DEEP], [LEFT])
    counts = []
    for steps in walk:
        sampler.hold({0: branch(0, *steps)})
        counts.append((sampler.computed, sampler.restored))
    # Room for 10 tokens of the root, 7 of the left, 3 of the right.
    assert counts == [(17, 0), (22, 0), (22, 7), (22 + 2 + 9, 10), (33, 17)]
    sampler.hold({0: branch(0, RIGHT, DEEP)})
    assert (sampler.computed, sampler.restored) == (33 + 2 + 9, 20)
    samples, scores = answers(sampler, [0])
    fresh = Sampler(FOUR_HEADS, params, one_device, 2, 60)
    fresh.hold({0: branch(0, RIGHT, DEEP)})
    expected, expected_scores = answers(fresh, [0])
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_allclose(scores, expected_scores, atol=2e-4)


def test_forgetting_a_slot_makes_room_for_another_problem(params, one_device):
    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 60, remember=22)
    sampler.hold({0: branch(0, LEFT, RIGHT), 1: branch(1, LEFT)})
    sampler.hold({0: branch(0), 1: branch(1)})
    computed = sampler.computed
    sampler.forget(0)
    sampler.hold({0: branch(0, LEFT), 1: branch(1, LEFT)})
    # The root was held; its left child was forgotten, that of the other slot was not.
    assert (sampler.computed - computed, sampler.restored) == (7, 7)
    sampler.forget(0)
    other = branch(0)[:4] + some_ids(50, 12)  # begins like the problem before it
    sampler.hold({0: other})
    assert (sampler.computed - computed, sampler.restored) == (7 + 12, 7)
    sampler.hold({0: other[:8]})
    sampler.hold({0: other})
    assert (sampler.computed - computed, sampler.restored) == (19, 7 + 8)
    samples, _ = answers(sampler, [0])
    fresh = Sampler(FOUR_HEADS, params, one_device, 2, 60)
    fresh.hold({0: other})
    np.testing.assert_array_equal(samples.tokens, answers(fresh, [0])[0].tokens)


def test_a_context_that_is_too_long_is_refused_before_anything_is_lost(
    params, one_device
):
    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 60, remember=20)
    sampler.hold({0: ROOTS[0]})
    with pytest.raises(ValueError, match="61 tokens; expected at most 60"):
        sampler.hold({0: ROOTS[1], 1: some_ids(1, 61)})
    assert sampler.held == [ROOTS[0], []]
    with pytest.raises(ValueError, match="remember=-1; expected 0 or more"):
        Sampler(FOUR_HEADS, params, one_device, 2, 60, remember=-1)


# Devices and shapes.


def walk_of_eight(mesh, params):
    """Eight slots go apart and come back; what follows."""
    sampler = Sampler(FOUR_HEADS, params, mesh, 8, 60, remember=24)
    for turn in range(3):
        sampler.hold(
            {
                slot: branch(slot, (LEFT, RIGHT, DEEP)[(slot + turn) % 3])
                for slot in range(8)
            }
        )
    sampler.hold({slot: branch(slot, (LEFT, RIGHT, DEEP)[slot % 3]) for slot in (1, 6)})
    return sampler, answers(sampler, list(range(8)))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_give_what_one_gives(params, one_device, shape, capfd):
    mesh = sharding.make_mesh(*shape)
    assert mesh.size == 8
    shardings = sharding.param_shardings(mesh, lm.abstract_params(FOUR_HEADS))
    eight, (samples, scores) = walk_of_eight(mesh, jax.device_put(params, shardings))
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    one, (expected, expected_scores) = walk_of_eight(one_device, params)
    assert eight.restored == one.restored > 0 and eight.computed == one.computed
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_allclose(samples.logps, expected.logps, atol=2e-4)
    np.testing.assert_allclose(scores, expected_scores, atol=2e-4)
    for pool, contexts in zip(eight._memory.pool, eight.contexts, strict=True):
        parts = pool.addressable_shards[0].data.shape
        assert parts[1:3] == contexts.addressable_shards[0].data.shape[1:3]
        assert parts[1] * parts[2] == 8 * 2 // 8  # slots x heads, over the devices


def test_a_copy_between_devices_needs_no_exchange(params):
    mesh = sharding.make_mesh(2, 2, 2)
    sampler = Sampler(FOUR_HEADS, params, mesh, 8, 60, remember=24)
    pool, contexts = sampler._memory.pool, sampler.contexts
    numbers = jax.device_put(np.zeros((3, 8), np.int32), sharding.split_rows(mesh, 1))
    places = jax.device_put(np.zeros((8, 60), np.int32), sharding.split_rows(mesh))
    programs = (
        memory.remember.lower(pool, contexts, *numbers, length=64),
        memory.restore.lower(contexts, pool, places),
    )
    for program in programs:
        text = program.compile().as_text()
        for exchange in ("all-gather", "all-reduce", "all-to-all", "collective-perm"):
            assert exchange not in text


def test_few_shapes_are_compiled_and_none_without_memory(params, one_device):
    programs = (memory.remember, memory.restore)

    def compiled():
        return [program._cache_size() for program in programs]

    jax.clear_caches()
    plain = Sampler(FOUR_HEADS, params, one_device, 2, 200)
    # 3 to 90 tokens, no two of them with the same first one.
    steps = [[seed, *some_ids(seed, 3 * seed - 1)] for seed in range(1, 31)]
    for step in steps:
        plain.hold({0: branch(0, step)})
    assert compiled() == [0, 0] and plain._memory is None
    extended = generate.extend._cache_size()

    sampler = Sampler(FOUR_HEADS, params, one_device, 2, 200, remember=2000)
    for step in steps + steps[::-1]:
        sampler.hold({0: branch(0, step)})
    assert sampler.computed == 10 + sum(map(len, steps))
    assert sampler.restored == sum(map(len, steps[:-1]))
    # Up to 64 tokens, up to 128 tokens; all restores are one program.
    assert compiled() == [2, 1]
    assert generate.extend._cache_size() == extended
