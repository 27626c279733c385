"""What a run refuses to keep."""

import types

import jax
import jax.numpy as jnp
import pytest
from fakes import random_parameters
from small_models import small_decoder

from stepjax.lm import model as lm
from stepjax.run.monitor import Monitor
from stepjax.run.run import Run


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_parameters_that_are_not_finite_are_not_committed(tmp_path, bad):
    model = small_decoder(24)
    params = jax.tree.map(jnp.asarray, random_parameters(lm.abstract_params(model)))
    monitor = Monitor(tmp_path, quiet=True)
    run = types.SimpleNamespace(model=model, monitor=monitor, loaded=set())
    run._fixed = {}, {}  # no adapters
    Run.save(run, tmp_path / "M1", params)
    assert (tmp_path / "M1" / "params").is_dir()
    scale = params["final_norm"]["scale"].at[1].set(bad)
    damaged = params | {"final_norm": {"scale": scale}}
    words = "M2 after its training: 1 of the .* model.norm.weight are NaN or infinite"
    with pytest.raises(ValueError, match=f"{words}.*lower the learning rate"):
        Run.save(run, tmp_path / "M2", damaged)
    assert not (tmp_path / "M2").exists()
