"""Models that are read piece by piece: the same bits, checked, and never all at once.

The expected parameters are those that are read in float32 and then cast or rounded.
"""

import dataclasses
import functools

import device_memory
import jax
import numpy as np
import pytest
from fakes import assert_same, random_parameters
from golden_models import GOLDEN
from small_models import FOUR_HEADS

from stepjax.lm import checkpoint, hf_config, int8, pieces, sharding, weights
from stepjax.lm import model as lm
from stepjax.lm.parameter_tensors import tensor_names


def in_form(params, splits, form, dtype="bfloat16"):
    """Returns float32 parameters as `Run.for_sampling` makes them of such."""
    frozen = functools.partial(lm.frozen, dtype=dtype)
    if form == "full":
        return jax.device_put(frozen(params), splits)
    return jax.device_put(int8.quantised(params, frozen), int8.shardings(splits))


# Biases and an unembedding; norms of queries and keys, norms behind layers, and none.
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("qwen2", None),
        ("gemma3_tied", (2, 2, 2)),
        pytest.param("qwen2", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("gemma3_tied", None, marks=pytest.mark.slow),
    ],
)
def test_the_bits_are_those_of_parameters_that_were_all_there(
    name, shape, one_device, tmp_path, capfd
):
    source, mesh = GOLDEN / name, sharding.make_mesh(*shape) if shape else one_device
    config = hf_config.config_from_hf(source)
    splits = sharding.param_shardings(mesh, lm.abstract_params(lm.Decoder(config)))
    params = weights.load_hf(source, config, splits)
    digests = checkpoint.save_tree(tmp_path / "params", params)
    for form in ("full", "int8"):
        expected = in_form(params, splits, form)
        read = weights.load_hf(source, config, splits, "bfloat16", form)
        assert_same(read, expected)
        holders = pieces.holders(config, splits, "bfloat16", form)
        found = checkpoint.load_pieces(tmp_path / "params", holders, digests)
        assert_same(found[0], expected)
        assert not any(count.any() for count in found[1].values())
        assert ("query_scale" in read["layers"]) == (form == "int8")
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


CONFIG = dataclasses.replace(FOUR_HEADS.config, num_layers=12, tie_embeddings=True)
DECODER = lm.Decoder(CONFIG)


@functools.cache
def splits():
    return sharding.param_shardings(
        sharding.make_mesh(2, 2, 2), lm.abstract_params(DECODER)
    )


def parameters():
    params = random_parameters(lm.abstract_params(DECODER), 5)
    return jax.device_put(params, splits())


def holders(form="int8"):
    return pieces.holders(CONFIG, splits(), "bfloat16", form)


@pytest.mark.parametrize("form", ["full", "int8"])
def test_one_piece_of_float32_is_there_at_a_time(form, tmp_path, monkeypatch):
    params = parameters()
    digests = checkpoint.save_tree(tmp_path / "p", params)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    stacked = jax.tree.leaves(params["layers"])
    largest = max(map(device_memory.size, stacked)) // 12
    whole = device_memory.size(params)
    del params, stacked
    with device_memory.most(monkeypatch) as found:
        loaded, _ = checkpoint.load_pieces(tmp_path / "p", holders(form), digests)
    final = device_memory.size(loaded)
    bound = final + largest + 1000  # counts and sums of two pieces, on 8 devices
    assert largest > 10_000
    assert len(found) == 2 * len(tensor_names(CONFIG)) > 200
    assert final < max(found) <= bound
    del loaded
    with device_memory.most(monkeypatch) as found:  # the same, read as training does
        params = checkpoint.load_tree(tmp_path / "p", shapes, digests)
        sharding.on_this_host(in_form(params, splits(), form), in_splits(form))
    assert max(found) >= whole + final > 1.3 * bound


def in_splits(form):
    return int8.shardings(splits()) if form == "int8" else splits()


def exchange_layers(params):
    gate = params["layers"]["gate"]
    return {
        "layers": params["layers"] | {"gate": gate[np.array([1, 0, *range(2, 12)])]}
    }


def nudge(params):
    down = params["layers"]["down"]
    down = down.at[7, 3, 2].set(np.nextafter(np.asarray(down[7, 3, 2]), np.float32(9)))
    return {"layers": params["layers"] | {"down": down}}


def without_an_array(params):
    return {"layers": {k: v for k, v in params["layers"].items() if k != "up"}}


def another_shape(params):
    return {"embedding": params["embedding"][:40]}


def with_one_more(params):
    return {"layers": params["layers"] | {"more": params["embedding"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (exchange_layers, r"array \['layers'\]\['gate'\] is not the one .*\(1 differ"),
        (nudge, r"array \['layers'\]\['down'\] is not the one .* \(1 differ\)"),
        (without_an_array, r"array \['layers'\]\['up'\] is not the one .* \(1 differ"),
        (another_shape, r"array embedding is float32\(40, 32\); expected .*\(48, 32\)"),
        (with_one_more, None),
    ],
)
def test_a_changed_model_is_refused(change, message, tmp_path):
    params = parameters()
    digests = checkpoint.array_digests(params)
    saved = checkpoint.save_tree(tmp_path / "p", params | change(params))
    if message is None:  # what the manifest names and nobody reads
        digests, message = saved, r"\['layers'\]\['more'\] is not the one that was"
    with pytest.raises(ValueError, match=f"(?s){message}.*Delete the folder"):
        checkpoint.load_pieces(tmp_path / "p", holders(), digests)


def test_a_damaged_file_is_refused(tmp_path):
    digests = checkpoint.save_tree(tmp_path / "p", parameters())
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    with pytest.raises(ValueError, match="(?s)p cannot be read.*Delete the folder"):
        checkpoint.load_pieces(tmp_path / "p", holders(), digests)


@pytest.mark.parametrize("form", ["full", "int8"])
def test_numbers_that_are_not_finite_are_counted(form, tmp_path):
    params = parameters()
    up, norm = params["layers"]["up"], params["final_norm"]["scale"]
    up = up.at[5, 2, 1:4].set(np.nan).at[8, 0, 0].set(np.inf)
    changes = [
        (
            {"layers": params["layers"] | {"up": up}},
            "3 of the 1536 numbers of model.layers.5.mlp.up_proj.weight",
        ),
        (
            {"final_norm": {"scale": norm.at[3].set(np.inf)}},
            "1 of the 32 numbers of model.norm.weight",
        ),
    ]
    for number, (change, words) in enumerate(changes):
        bad, path = params | change, tmp_path / str(number)
        digests = checkpoint.save_tree(path, bad)
        _, counts = checkpoint.load_pieces(path, holders(form), digests)
        for check, given in ((weights.refuse, counts), (weights.check_finite, bad)):
            with pytest.raises(ValueError, match=f"it: {words} are NaN or infinite"):
                check(given, CONFIG, "it", "Train it again.")
