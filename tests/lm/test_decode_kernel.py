"""The kernel of decoding steps, in the interpreter of Pallas, against plain JAX."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters
from small_models import FOUR_HEADS, SIX_TOKENS, some_ids

from stepjax.lm import decode_kernel, sharding
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler

pytestmark = pytest.mark.usefixtures("quick_compiles")

LAYERS, GROUPS, HEADS, CACHES, QUERIES, SIZE = 2, 2, 3, 4, 5, 16


def cached(keys, begin, end, dtype="float32", seed=0):
    """Random queries and caches; what is not seen is large, or not a number at all."""
    draw = np.random.default_rng(seed).normal
    query = draw(size=(GROUPS, HEADS, CACHES, QUERIES, SIZE))
    key, value = draw(size=(2, LAYERS, GROUPS, HEADS, CACHES, keys, SIZE))
    at = np.arange(keys)
    behind = (at >= end[..., None])[:, None, ..., None]
    before = (at < begin[..., None])[:, None, ..., None]
    key, value = (np.where(behind, np.nan, x) for x in (key, value))
    key, value = (np.where(before, 1e3, x) for x in (key, value))
    query, key, value = (jnp.asarray(x, dtype) for x in (query, key, value))
    return query, decode_kernel.Cached(key, value, jnp.int32(1), begin, end)


def formula(query, level):
    """Mixed values and log-sums in float64, cache by cache."""
    query, key, value = (
        np.asarray(x, np.float64) for x in (query, level.key[1], level.value[1])
    )
    mixed, logsum = np.zeros(query.shape), np.full(query.shape[:-1], -1e30)
    for at in itertools.product(*map(range, query.shape[:3])):
        g, _, n = at
        seen = slice(int(level.begin[g, n]), int(level.end[g, n]))
        if seen.start < seen.stop:
            scores = query[at] @ key[at][seen].T / np.sqrt(SIZE)
            logsum[at] = np.log(np.exp(scores).sum(-1))
            mixed[at] = np.exp(scores - logsum[at][:, None]) @ value[at][seen]
    return mixed, logsum


@pytest.mark.parametrize(
    ("keys", "reach", "blocks"),
    [(70, 70, 1), (300, 257, 1), (2500, 2500, 3)],
)
def test_the_kernel_mixes_the_values_that_are_seen(keys, reach, blocks):
    ends = [[reach, 1, 0, reach // 3], [0, reach - 1, min(reach, 1024), 17]]
    begin = np.array([[0, 0, 0, 9], [0, 20, 3, 16]], np.int32)
    query, level = cached(keys, begin, np.array(ends, np.int32))
    grid, _, _ = decode_kernel.blocks(query, level.key, reach)
    assert grid[-1] == blocks
    found = decode_kernel.cached_attention(query, level, reach=reach, interpret=True)
    mixed, logsum = formula(query, level)
    empty = logsum < -1e29
    assert empty.any() and (~empty).sum() == 6 * HEADS * QUERIES
    np.testing.assert_allclose(found[0][~empty], mixed[~empty], atol=3e-6)
    np.testing.assert_allclose(found[1], logsum, rtol=1e-6, atol=3e-6)
    assert np.isfinite(found[0]).all()  # an empty cache gets no weight, so not NaN


def test_bfloat16_products_are_summed_in_float32():
    begin = np.zeros((GROUPS, CACHES), np.int32)
    query, level = cached(200, begin, begin + 200, "bfloat16")
    mixed, logsum = decode_kernel.cached_attention(
        query, level, reach=200, interpret=True
    )
    assert mixed.dtype == logsum.dtype == jnp.float32
    expected = formula(query, level)
    np.testing.assert_allclose(mixed, expected[0], atol=4e-3)  # bfloat16 weights
    np.testing.assert_allclose(logsum, expected[1], atol=3e-6)


@pytest.mark.parametrize(
    ("caches", "queries", "keys", "shape"),
    [
        (1, 42, 1792, (1, 896)),
        (1, 210, 16384, (1, 1024)),
        (1, 1000, 1792, (1, 256)),
        (6, 8, 129, (6, 144)),
        (6, 8, 257, (6, 272)),
        (30, 8, 896, (2, 896)),
        (7, 8, 300, (1, 304)),
        (1, 10**6, 500, (1, 16)),
    ],
)
def test_shapes_of_blocks(caches, queries, keys, shape):
    assert decode_kernel.block_shape(caches, queries, keys) == shape


def test_the_stated_bytes_are_those_of_the_blocks_that_are_moved():
    """`benchmarks/hlo.py` counts what the kernel states; here its blocks are walked."""
    begin, keys, reach = np.zeros((GROUPS, CACHES), np.int32), 2500, 2200
    query, level = cached(keys, begin, begin + reach, "bfloat16")
    grid, reads, writes = decode_kernel.blocks(query, level.key, reach)
    statistic = np.zeros((*query.shape[:3], 1, QUERIES), np.float32)
    arrays = [query, level.key, level.value, query.astype("float32"), statistic]

    def moved(end):
        total = 0
        for spec, array in zip([*reads, *writes], arrays, strict=True):
            shape, before = [size or 1 for size in spec.block_shape], None
            for turn in itertools.product(*map(range, grid)):
                place = spec.index_map(*turn, begin.ravel(), end.ravel(), [1])
                place = tuple(map(int, place))
                if place == before:
                    continue
                before = place
                inside = [
                    min(size, whole - at * size)
                    for at, size, whole in zip(place, shape, array.shape, strict=True)
                ]
                total += int(np.prod(inside)) * array.dtype.itemsize
        return total

    stated = decode_kernel.bytes_moved(query, level.key, reach)
    assert moved(begin + reach) == stated
    of_a_key = 2 * GROUPS * HEADS * CACHES * SIZE * 2  # and of its value
    whole = min(grid[-1] * 736, keys)  # the last block is read whole
    assert reads[1].block_shape[-2] == 736 and reach < whole == 2208
    assert stated - moved(begin + 100) == (whole - 736) * of_a_key


def candidates(sampler):
    """Three rows behind each context, that of slot 0 being empty."""
    paths = np.stack(np.indices((8, 3)), -1).astype(np.uint32)
    return sampler.sample([[[slot + 1]] * 3 for slot in range(8)], paths, SIX_TOKENS)


def judgments(sampler):
    """Four rows behind each context; rows 0 and 1 begin alike, and so do 2 and 3.

    In group 0 the last row is empty.
    """
    rows = [[some_ids(60 + g, n) for n in (2, 9)] for g in range(8)]
    rows = [[a, [*a, g], b, [*b, g, 5] if g else ()] for g, (a, b) in enumerate(rows)]
    paths = np.stack(np.indices((8, 4)), -1).astype(np.uint32)
    slots = [3, 0, 7, 1, 2, 4, 5, 6]
    return sampler.sample(rows, paths, SIX_TOKENS, slots=slots, share=(4, 2))


@pytest.mark.parametrize(
    ("work", "layers", "shape"),
    [(candidates, 5, (1, 1, 1)), (judgments, 2, (2, 2, 2))],
)
def test_sampling_with_the_kernel_gives_the_numbers_of_plain_jax(work, layers, shape):
    """A sampler on a CPU runs 5 layers one by one, and scans 2."""
    config = dataclasses.replace(FOUR_HEADS.config, num_layers=layers)
    assert config.num_heads > config.num_kv_heads > 1
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    boxed = lm.abstract_params(lm.Decoder(config))
    shardings = sharding.param_shardings(mesh, boxed)
    # Weights twice as large multiply the rounding of single sums by 30.
    params = jax.device_put(random_parameters(boxed, std=0.2), shardings)

    def run(attention):
        model = lm.Decoder(dataclasses.replace(config, attention=attention), mesh)
        sampler = Sampler(model, params, mesh, 8, 200)
        sampler.hold({slot: some_ids(30 + slot, 23 * slot) for slot in range(8)})
        return work(sampler)

    plain, kernel = run("auto"), run("kernel")
    np.testing.assert_array_equal(plain.tokens, kernel.tokens)
    np.testing.assert_array_equal(plain.count, kernel.count)
    np.testing.assert_allclose(plain.logps, kernel.logps, atol=2e-5)
    assert not np.array_equal(plain.logps, kernel.logps)  # two programs, so two sums
    assert len(np.unique(plain.tokens)) > 10


def test_auto_takes_the_kernel_on_v5p():
    def chosen(kind, device_kind, platform="tpu"):
        device = types.SimpleNamespace(device_kind=device_kind, platform=platform)
        mesh = types.SimpleNamespace(devices=np.array([device]))
        found = decode_kernel.choose(kind, mesh)
        return found and found.keywords["interpret"]

    assert decode_kernel.choose("auto", None) is None
    for v5p in ("TPU v5", "TPU v5p"):
        assert chosen("auto", v5p) is False
        assert chosen("chunks", v5p) is None
    for other in ("TPU v4", "TPU v5 lite", "TPU v6 lite"):
        assert chosen("auto", other) is None
        assert chosen("kernel", other) is False
    assert chosen("kernel", "cpu", "cpu") is True
    assert chosen("auto", "NVIDIA H100", "gpu") is None
