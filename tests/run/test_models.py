"""Models of a run that are read only to sample from them."""

import dataclasses
import shutil

import device_memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import assert_same, random_parameters
from gguf_models import sizes, tensors, write_gguf
from runs import copy_run
from small_models import small_decoder
from tiny_config import changed

from stepjax.lm import export, files, sharding
from stepjax.lm import model as lm
from stepjax.run import models
from stepjax.run.manifest import read
from stepjax.run.run import Run
from stepjax.run.stage import Damaged

pytestmark = pytest.mark.usefixtures("quick_runs")
FORMS = pytest.mark.parametrize("form", ["full", "int8"])


def open_run(folder, form="int8", **changes):
    options = changed(search__weights=form, **changes)
    return Run(options, folder, keep=True, locks=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("sampled") / "run").dir.path


@FORMS
def test_a_finished_model_is_never_there_in_float32(finished, form, monkeypatch):
    run = open_run(finished, form)
    folder = run.dir.model(1)
    with device_memory.most(monkeypatch) as found:
        params = run.sampling_params(1)
    final = device_memory.size(params)
    assert folder in run.loaded and max(found) > final
    with device_memory.most(monkeypatch) as of_old:
        whole = run.load(folder)
        expected = run.for_sampling(whole)
    assert_same(params, expected)
    layers = run.model.config.num_layers
    largest = max(map(device_memory.size, jax.tree.leaves(whole["layers"]))) // layers
    largest = max(largest, device_memory.size(whole["embedding"]))
    bound = final + largest + 1000
    assert max(found) <= bound < max(of_old)


def test_a_damaged_model_is_named_with_its_remedy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run = open_run(tmp_path / "run")
    folder = run.dir.model(2)
    with pytest.raises(ValueError, match="M9 is not finished; expected an earlier"):
        run.sampling_params(9)
    path = folder / "manifest.json"
    digests = read(path)
    shutil.rmtree(folder / "params")
    shutil.copytree(run.dir.model(1) / "params", folder / "params")
    words = r"array \['.* is not the one that was saved .*; expected the model as it"
    for load in (run.sampling_params, run.params):
        with pytest.raises(Damaged, match=words) as error:
            load(2)
        assert "`stepjax run` on the same --workdir makes it again" in str(error.value)
    assert read(path) == digests and folder not in run.loaded


def test_numbers_that_are_not_finite_do_not_sample(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run = open_run(tmp_path / "run")
    params, folder = run.params(1), run.dir.model(1)
    gate = params["layers"]["gate"].at[1, 2, 3].set(jnp.nan)
    bad = {**params, "layers": {**params["layers"], "gate": gate}}
    arrays = models.checkpoint.save_tree(folder / "params", bad)
    made = files.read_json(folder / "manifest.json") | {"arrays": arrays}
    files.write_json(folder / "manifest.json", made)
    said = []
    for load in (
        run.sampling_params,
        lambda number: run.for_sampling(run.load(folder)),
    ):
        with pytest.raises(ValueError, match="the model: 1 of the 512 numb") as error:
            load(1)
        assert not isinstance(error.value, Damaged)
        said.append(str(error.value))
    assert said[0] == said[1] and "lower the learning rate" in said[0]


def write_hf(codec, folder):
    config = small_decoder(136, layers=3).config
    config = dataclasses.replace(config, tie_embeddings=False)
    params = random_parameters(lm.abstract_params(lm.Decoder(config)))
    export.save_hf(params, config, folder)
    codec.tokenizer.save(folder)
    return f"hf:{folder}"


def write_gguf_file(codec, folder):
    folder.mkdir()
    meta = sizes("llama", "Q8_0")
    arrays = tensors("llama", meta, vocab=136)
    write_gguf(folder / "m.gguf", "llama", "Q8_0", meta=meta, arrays=arrays)
    codec.tokenizer.save(folder)
    return f"gguf:{folder / 'm.gguf'}"


@FORMS
@pytest.mark.parametrize("write", [write_hf, write_gguf_file])
def test_m0_is_read_into_the_form_of_sampling(
    write, form, codec, tmp_path, monkeypatch
):
    init = write(codec, tmp_path / "m0")
    changes = {"model__init": init, "model__dtype": "bfloat16"}
    run = open_run(tmp_path / "run", form, **changes)
    monkeypatch.setattr(sharding, "on_this_host", None)
    monkeypatch.setattr(Run, "params", None)
    params = run.sampling_params(0)
    monkeypatch.undo()
    assert_same(params, run.for_sampling(run.params(0)))
    query = params["layers"]["query"]
    assert query.dtype == (np.int8 if form == "int8" else jnp.bfloat16)


def test_on_several_hosts_a_model_is_read_as_for_training(finished, monkeypatch):
    run = open_run(finished)
    expected = run.sampling_params(1)
    monkeypatch.setattr(models.hosts, "count", lambda: 2)
    assert not models.in_pieces(run.model)
    monkeypatch.setattr(models, "sampled", None)
    assert_same(run.sampling_params(1), expected)
