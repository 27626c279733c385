"""Sampling and scoring on eight devices give what one device gives."""

import jax
import numpy as np
import pytest
from fakes import random_parameters
from small_models import FOUR_HEADS, SIX_TOKENS, some_ids

from stepjax.lm import model as lm
from stepjax.lm import sharding
from stepjax.lm.sampler import Sampler

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="session")
def params():
    return random_parameters(lm.abstract_params(FOUR_HEADS))


def search_like(mesh, params):
    """Two steps of eight problems, and judgments and scores behind them."""
    sampler = Sampler(FOUR_HEADS, params, mesh, 8, 60)
    contexts = {slot: some_ids(30 + slot, 3 + slot) for slot in range(8)}
    paths = np.stack(np.indices((8, 2)), -1).astype(np.uint32)
    made = []
    for number in range(2):
        sampler.hold({slot: ids[:-1] for slot, ids in contexts.items()})
        prompts = [[contexts[slot][-1:]] * 2 for slot in range(8)]
        out = sampler.sample(prompts, paths, SIX_TOKENS._replace(seed=number))
        made.append(out)
        for slot, ids in contexts.items():
            count = 1 + (slot + number) % SIX_TOKENS.budget
            contexts[slot] = ids + out.tokens[slot, slot % 2, :count].tolist()
    sampler.hold({slot: ids[:-1] for slot, ids in contexts.items()})
    rows = [[some_ids(60 + g, n) for n in (2, 9)] for g in range(3)]
    rows = [group + [group[1] + [g]] for g, group in enumerate(rows)]
    rows = [group + [group[0] + [g, 5]] for g, group in enumerate(rows)]
    rows = [[a, d, b, c] for a, b, c, d in rows]  # two and two begin alike
    made.append(
        sampler.sample(
            rows,
            np.stack(np.indices((3, 4)), -1).astype(np.uint32),
            SIX_TOKENS._replace(seed=5),
            slots=[3, 0, 7],
            share=(4, 2),
        )
    )
    scored = np.array([[1, 2, 3, 1], [0, 0, 2, 4], [1, 1, 2, 2]])
    return made, sampler.score(rows, scored, vocab=48, slots=[3, 0, 7], share=(4, 2))


@pytest.fixture(scope="module")
def on_one_device(params, one_device):
    return search_like(one_device, params)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_one_device_and_eight_give_the_same_tokens(params, on_one_device, shape, capfd):
    mesh = sharding.make_mesh(*shape)
    assert mesh.size == 8
    shardings = sharding.param_shardings(mesh, lm.abstract_params(FOUR_HEADS))
    eight, eight_scores = search_like(mesh, jax.device_put(params, shardings))
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    one, one_scores = on_one_device
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.count, b.count)
        np.testing.assert_allclose(a.logps, b.logps, atol=2e-4)
        assert len(np.unique(a.tokens)) > 10
    np.testing.assert_allclose(one_scores, eight_scores, atol=2e-4)
    assert eight_scores.shape == (3, 4) and eight_scores[1, 0] == 0
