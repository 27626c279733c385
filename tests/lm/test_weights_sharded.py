"""Weights straight into sharded arrays, and on object storage."""

import sys

import fsspec  # noqa: F401  its registry is changed below
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from golden_models import GOLDEN

from stepjax.lm import export, hf_config, sharding, tensor_files, weights
from stepjax.lm import model as lm


def shardings(config, mesh):
    return sharding.param_shardings(mesh, lm.abstract_params(lm.Decoder(config)))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", ["qwen2", "llama3_tied", "gemma3_tied"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_parameters_are_read_into_their_shardings(name, shape, capfd):
    config = hf_config.config_from_hf(GOLDEN / name)
    splits = shardings(config, sharding.make_mesh(*shape))
    params = weights.load_hf(GOLDEN / name, config, splits)
    for array, split in zip(*map(jax.tree.leaves, (params, splits)), strict=True):
        assert array.sharding.is_equivalent_to(split, array.ndim)
    assert_same(params, weights.load_hf(GOLDEN / name, config))
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_tensors_are_rounded_while_they_are_read():
    name = "llama"
    config = hf_config.config_from_hf(GOLDEN / name)
    splits = shardings(config, sharding.make_mesh(2, 2, 2))
    half = [
        weights.load_hf(GOLDEN / name, config, x, "bfloat16") for x in (splits, None)
    ]
    whole = weights.load_hf(GOLDEN / name, config)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole)
    for params in half:
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
        assert_same(params, rounded)
    changed = rounded["layers"]["up"] != whole["layers"]["up"]
    assert changed.mean() > 0.5  # there was something to round


def test_norms_and_local_layers_on_eight_devices(one_device):
    config = hf_config.config_from_hf(GOLDEN / "gemma3_tied")
    mesh = sharding.make_mesh(2, 2, 2)
    tokens = np.random.default_rng(3).integers(0, 85, (8, 12))
    position = np.broadcast_to(np.arange(12), (8, 12))
    end = np.full((8, 12), 12)

    def hidden(mesh, params):
        @jax.jit
        def forward(params):
            decoder = lm.Decoder(config, mesh)
            return decoder.apply({"params": params}, tokens, position, end)

        return np.asarray(forward(params))

    params = weights.load_hf(GOLDEN / "gemma3_tied", config, shardings(config, mesh))
    expected = hidden(one_device, weights.load_hf(GOLDEN / "gemma3_tied", config))
    np.testing.assert_allclose(hidden(mesh, params), expected, atol=1e-4)


def test_every_row_is_read_once(monkeypatch):
    config = hf_config.config_from_hf(GOLDEN / "qwen2")
    read = []

    def counting(stored, first, last):
        read.append((str(stored.file), stored.start, first, last, stored.shape))
        return rows(stored, first, last)

    rows = tensor_files.Stored.rows
    monkeypatch.setattr(tensor_files.Stored, "rows", counting)
    splits = shardings(config, sharding.make_mesh(1, 4, 2))
    weights.load_hf(GOLDEN / "qwen2", config, splits)
    by_tensor = {}
    for file, start, first, last, shape in read:
        by_tensor.setdefault((file, start, shape), []).append((first, last))
    split = 0
    for (_, _, shape), ranges in by_tensor.items():
        ends = [(a, b) for a, b in sorted(ranges)]
        assert [a for a, _ in ends] == [0, *(b for _, b in ends[:-1])]
        assert ends[-1][1] == shape[0]  # nothing twice, nothing left out
        split += len(ends) > 1
    # What one of eight devices needs of the embedding is an eighth of its rows.
    assert max(b - a for *_, a, b, shape in read if shape == (96, 20)) == 12
    assert split > len(by_tensor) / 2


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs:// paths that are files of a folder."""

    class Storage(DirFileSystem):
        protocol = "gs"
        cachable = False
        root_marker = ""

        def __init__(self, **kwargs):
            local = LocalFileSystem(auto_mkdir=True)
            super().__init__(path=str(tmp_path / "gs"), fs=local)

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).removeprefix("gs://")

    (tmp_path / "gs").mkdir()
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Storage)
    monkeypatch.setenv("EPATH_USE_TF", "false")
    return tmp_path / "gs"


def test_object_storage_in_and_out(bucket):
    config = hf_config.config_from_hf(GOLDEN / "llama")
    params = weights.load_hf(GOLDEN / "llama", config)
    target = "gs://bucket/models/out"
    export.save_hf(params, config, target, stop_ids=(3,))
    names = sorted(path.name for path in (bucket / "bucket/models/out").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]
    assert hf_config.config_from_hf(target) == config
    assert_same(weights.load_hf(target, config), params)
    splits = shardings(config, sharding.make_mesh(1, 4, 2))
    assert_same(weights.load_hf(epath.Path(target), config, splits), params)
    with pytest.raises(ValueError, match="gs://bucket/models/out exists and is not"):
        export.save_hf(params, config, target)
    (bucket / "bucket/models/out/model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="gs://.*model.safetensors: missing or dam"):
        weights.load_hf(target, config)
    with pytest.raises(ValueError, match="gs://bucket/none/config.json: .*expected a"):
        hf_config.config_from_hf("gs://bucket/none")


def test_sharded_parameters_are_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SHARD_BYTES", 15_000)
    config = hf_config.config_from_hf(GOLDEN / "qwen2")
    splits = shardings(config, sharding.make_mesh(1, 4, 2))
    params = weights.load_hf(GOLDEN / "qwen2", config, splits)
    export.save_hf(params, config, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert_same(weights.load_hf(tmp_path / "out", config), params)
