"""A plan of a run with adapters: what an update holds on one device."""

import jax
import pytest

from stepjax import config
from stepjax.lm import lora, sharding
from stepjax.lm import model as lm
from stepjax.planning import programs
from stepjax.settings import from_config


def traced(rank, reference="precomputed"):
    """Returns name → program of SFT and step-DPO on one device, in bfloat16."""
    c = config.default()
    c.model.vocab_size, c.model.dtype, c.lora.rank = 64, "bfloat16", rank
    c.train.row_length, c.search.max_step_tokens = 64, 16
    c.dpo.batch_size, c.dpo.reference = 2, reference
    settings = from_config(c)
    found = programs.programs(settings, jax.devices()[:1], ("sft", "dpo"))
    return settings, {program.name: program for program in found}


def sizes(settings):
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    model = lm.Decoder(programs.model_config(settings), mesh)
    return lora.counts(lm.unboxed(lm.abstract_params(model)))


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_an_update_holds_the_base_once_and_moments_of_adapters(name):
    (_, full), (settings, adapters) = traced(0), traced(4)
    fixed, trained = sizes(settings)
    # In full: value and two moments, float32. With adapters the base has 2 bytes each.
    saved = 12 * fixed - (2 * fixed + 12 * trained)
    assert full[name].arguments - adapters[name].arguments == saved
    # Forward and backward, but no gradient of the base: 4 of 6 parts.
    assert adapters[name].ideal / full[name].ideal == pytest.approx(4 / 6)


def test_a_reference_shares_the_base():
    (settings, stored), (_, live) = traced(4), traced(4, "live")
    fixed, trained = sizes(settings)
    assert live["dpo"].arguments - stored["dpo"].arguments == 2 * trained
    (_, stored), (_, live) = traced(0), traced(0, "live")
    assert live["dpo"].arguments - stored["dpo"].arguments == 2 * fixed
