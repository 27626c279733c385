"""Config and weights of GGUF files, against the arrays that were written."""

import builtins
import itertools
import json

import gguf
import jax
import numpy as np
import pytest
from gguf_models import KINDS, sizes, tensors, write_gguf

from stepjax.lm import (
    families,
    gguf_files,
    gguf_tensors,
    hf_config,
    parameter_tensors,
    sharding,
)
from stepjax.lm import model as lm

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
}
TABLE = {"token_embd.weight": np.zeros((40, 64), np.float32)}

pytestmark = pytest.mark.usefixtures("quick_compiles")


def read(path, shardings=None):
    file = gguf_files.GgufFile(path)
    config = gguf_files.config_from_gguf(file)
    return config, gguf_files.load_gguf(file, config, shardings)


def expected_params(config, held):
    """The tree of parameters that the arrays of a file make."""
    layers = range(config.num_layers)

    def stack(name):
        return np.stack([held[f"blk.{layer}.{name}"] for layer in layers])

    def matrix(name, *shape):
        turned = stack(f"{name}.weight").swapaxes(1, 2)
        return turned.reshape(len(turned), *shape)

    width, heads, kv = config.hidden_size, config.num_heads, config.num_kv_heads
    size, inner = config.head_dim, config.intermediate_size
    tree = {
        "embedding": held["token_embd.weight"],
        "final_norm": {"scale": held["output_norm.weight"]},
        "layers": {
            "attention_norm": {"scale": stack("attn_norm.weight")},
            "mlp_norm": {"scale": stack("ffn_norm.weight")},
            "query": matrix("attn_q", width, heads, size),
            "key": matrix("attn_k", width, kv, size),
            "value": matrix("attn_v", width, kv, size),
            "out": matrix("attn_output", heads, size, width),
            "gate": matrix("ffn_gate", width, inner),
            "up": matrix("ffn_up", width, inner),
            "down": matrix("ffn_down", inner, width),
        },
    }
    if not config.tie_embeddings:
        tree["unembedding"] = held["output.weight"]
    if config.qk_norm:
        for path, letter in {"query": "q", "key": "k"}.items():
            tree["layers"][f"{path}_norm"] = {
                "scale": stack(f"attn_{letter}_norm.weight")
            }
    if config.post_norms:
        for path, name in {"attention": "attention", "mlp": "ffw"}.items():
            norm = {"scale": stack(f"post_{name}_norm.weight")}
            tree["layers"][f"{path}_post_norm"] = norm
    if config.qkv_bias:
        for path, letter, count in (
            ("query", "q", heads),
            ("key", "k", kv),
            ("value", "v", kv),
        ):
            bias = stack(f"attn_{letter}.bias")
            tree["layers"][f"{path}_bias"] = bias.reshape(-1, count, size)
    return tree


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    "family, kind",
    [
        *itertools.product(("llama", "qwen2"), KINDS),
        *itertools.product(("qwen3", "gemma3"), ("F32", "Q8_0", "Q4_K")),
    ],
)
def test_every_type_of_tensor_gives_the_numbers_that_were_written(
    family, kind, tmp_path
):
    held = write_gguf(tmp_path / "a.gguf", family, kind)
    config, params = read(tmp_path / "a.gguf")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert_same(params, expected_params(config, held))


@pytest.mark.parametrize(
    "kind, steps", [("Q8_0", 254), ("Q4_1", 15), ("Q4_0", 15), ("F16", 2000)]
)
def test_numbers_lie_within_half_a_step_of_what_was_quantised(kind, steps, tmp_path):
    arrays = tensors("llama", sizes("llama", kind))
    write_gguf(tmp_path / "a.gguf", "llama", kind, arrays=arrays)
    config, params = read(tmp_path / "a.gguf")
    wanted = expected_params(config, arrays)
    error = np.abs(params["layers"]["query"] - wanted["layers"]["query"]).max()
    largest = np.abs(wanted["layers"]["query"]).max()
    assert 0 < error < 1.1 * largest / steps * (2 if kind == "Q4_0" else 1)


def test_every_value_of_the_config_comes_from_the_file(tmp_path):
    write_gguf(tmp_path / "a.gguf", "llama", "F32")
    config = gguf_files.config_from_gguf(gguf_files.GgufFile(tmp_path / "a.gguf"))
    assert config == lm.ModelConfig(
        vocab_size=40,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        rope_theta=700.0,
        rms_norm_eps=float(np.float32(1e-3)),
        qkv_bias=False,
        tie_embeddings=False,
    )
    meta = sizes("qwen2", "F32", **{"attention.head_count_kv": 4})
    arrays = tensors("qwen2", meta, tied=True, vocab=48)
    write_gguf(tmp_path / "b.gguf", "qwen2", "F32", meta=meta, arrays=arrays)
    other, params = read(tmp_path / "b.gguf")
    assert (other.vocab_size, other.tie_embeddings, other.qkv_bias) == (48, True, True)
    assert other.num_kv_heads == 4
    assert "unembedding" not in params


def test_qwen3_and_gemma_3_have_their_own_values(tmp_path):
    write_gguf(tmp_path / "a.gguf", "qwen3", "F32")
    config, _ = read(tmp_path / "a.gguf")
    assert (config.qk_norm, config.post_norms, config.qkv_bias) == (True, False, False)
    assert families.fitting(config) == ["qwen3"]
    changes = {
        "block_count": 7,
        "attention.sliding_window": 512,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    meta = sizes("gemma3", "F32", **changes)
    arrays = tensors("gemma3", meta, tied=True)
    write_gguf(tmp_path / "b.gguf", "gemma3", "F32", meta=meta, arrays=arrays)
    config, _ = read(tmp_path / "b.gguf")
    assert config == lm.ModelConfig(
        vocab_size=40,
        hidden_size=64,
        num_layers=7,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        rope_theta=700.0,
        rope_scaling=(("factor", 8.0), ("rope_type", "linear")),
        rms_norm_eps=float(np.float32(1e-3)),
        qkv_bias=False,
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        activation="gelu_tanh",
        scale_embeddings=True,
        query_scalar=None,
        local_layers=(True, True, True, True, True, False, True),
        local_rope_theta=10000.0,
        sliding_window=512,
        tie_embeddings=True,
    )


def test_the_largest_gemma_3_scales_its_scores_in_another_way(tmp_path):
    changes = {"block_count": 62, "attention.key_length": 8, "embedding_length": 64}
    meta = sizes("gemma3", "F32", **changes)
    write_gguf(tmp_path / "a.gguf", "gemma3", "F32", meta=meta, arrays={}, extra=TABLE)
    config = gguf_files.config_from_gguf(gguf_files.GgufFile(tmp_path / "a.gguf"))
    assert (config.head_dim, config.query_scalar, config.local_layers) == (8, 16, ())


def test_a_window_of_a_mistral_file_is_read(tmp_path):
    meta = sizes("llama", "F32", **{"attention.sliding_window": 99})
    write_gguf(tmp_path / "a.gguf", "llama", "F32", meta=meta)
    config, _ = read(tmp_path / "a.gguf")
    assert (config.sliding_window, families.fitting(config)) == (99, ["mistral"])


@pytest.mark.parametrize("family", sorted(gguf_files.ARCHITECTURES))
def test_tensors_are_named_as_the_gguf_package_names_them(family):
    kind = gguf_files.ARCHITECTURES[family]
    values = families.FAMILIES[kind].all_values
    config = lm.ModelConfig(**SHAPE, **values)
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[family]
    theirs = gguf.get_tensor_name_map(architecture, SHAPE["num_layers"])
    for name in parameter_tensors.tensor_names(config):
        stem, ending = name.rsplit(".", 1)
        written = f"{theirs.get_name(stem)}.{ending}"
        assert gguf_tensors.hugging_face_name(written, family) == name


def test_values_that_the_format_lets_be_missing(tmp_path):
    left_out = {"attention.head_count_kv": None, "rope.freq_base": None}
    meta = sizes("llama", "F32", **left_out)
    arrays = tensors("llama", meta | {"llama.attention.head_count_kv": 4})
    write_gguf(tmp_path / "a.gguf", "llama", "F32", meta=meta, arrays=arrays)
    config = gguf_files.config_from_gguf(gguf_files.GgufFile(tmp_path / "a.gguf"))
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert config.rope_theta == 10000.0


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_positions_of_llama_3_are_recognised(factor, tmp_path):
    meta = sizes("llama", "F32", **{"rope.freq_base": 500000.0})
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    table = []
    for length in wavelength:  # the formula of Llama 3.1
        smooth = (8192 / length - 1.0) / (4.0 - 1.0)
        if length < 8192 / 4.0:
            table.append(1.0)
        elif length > 8192 / 1.0:
            table.append(factor)
        else:
            table.append(1 / ((1 - smooth) / factor + smooth))
    extra = {"rope_freqs.weight": np.array(table, np.float32)}
    write_gguf(tmp_path / "a.gguf", "llama", "F32", meta=meta, extra=extra)
    config, _ = read(tmp_path / "a.gguf")
    assert dict(config.rope_scaling) == {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    extra["rope_freqs.weight"][3] *= 1.01
    write_gguf(tmp_path / "b.gguf", "llama", "F32", meta=meta, extra=extra)
    with pytest.raises(ValueError, match="rope_freqs.weight scales the positions"):
        read(tmp_path / "b.gguf")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["Q4_1", "BF16"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_tensors_are_read_into_their_shardings(family, kind, shape, tmp_path):
    held = write_gguf(tmp_path / "a.gguf", family, kind)
    file = gguf_files.GgufFile(tmp_path / "a.gguf")
    config = gguf_files.config_from_gguf(file)
    splits = sharding.param_shardings(
        sharding.make_mesh(*shape), lm.abstract_params(lm.Decoder(config))
    )
    params = gguf_files.load_gguf(file, config, splits)
    for array, split in zip(*map(jax.tree.leaves, (params, splits)), strict=True):
        assert array.sharding.is_equivalent_to(split, array.ndim)
    assert_same(params, expected_params(config, held))


def test_some_rows_of_a_permuted_tensor_are_those_of_the_whole(tmp_path):
    held = write_gguf(tmp_path / "a.gguf", "llama", "Q4_0")
    file = gguf_files.GgufFile(tmp_path / "a.gguf")
    tensor = file.tensors["blk.1.attn_k.weight"]
    source = gguf_tensors.GgufTensor(file.path, tensor, pairs=2)
    assert source.shape == (32, 64)
    for first, last in ((0, 32), (3, 5), (7, 23), (31, 32)):
        rows = source.rows(first, last)
        np.testing.assert_array_equal(rows, held["blk.1.attn_k.weight"][first:last])
    unchanged = gguf_tensors.GgufTensor(file.path, tensor).rows(0, 32)
    assert np.abs(unchanged - held["blk.1.attn_k.weight"]).max() > 0.1


@pytest.mark.parametrize(
    "family, changes",
    [
        ("qwen2", {}),
        ("llama", {"attention.sliding_window": 77}),
        ("qwen3", {"attention.key_length": 16}),
        ("gemma3", {"attention.sliding_window": 77}),
    ],
)
def test_a_config_json_made_of_a_file_is_the_same_config(family, changes, tmp_path):
    meta = sizes(family, "F32", **changes)
    write_gguf(tmp_path / "a.gguf", family, "F32", meta=meta)
    config = gguf_files.config_from_gguf(gguf_files.GgufFile(tmp_path / "a.gguf"))
    data = hf_config.config_to_hf(config, stop_ids=(1,), bos_id=None, dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert hf_config.config_from_hf(tmp_path) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention.head_count": None}, "head_count has the value none; expected"),
        ({"block_count": 0}, "block_count=0 is not supported; expected a number from"),
        ({"rope.freq_base": float("nan")}, "freq_base=nan is not supported"),
        ({"rope.freq_base": float("inf")}, "freq_base=inf is not supported"),
        ({"attention.layer_norm_rms_epsilon": "a"}, "the value 'a'; expected one of"),
        ({"attention.head_count_kv": 3}, "num_heads=4, num_kv_heads=3"),
        ({"attention.head_count_kv": [2, 1]}, r"the value \[2, 1\]; expected one of"),
        ({"rope.dimension_count": 8}, "dimension_count=8 is not supported.*size, 16"),
        ({"attention.value_length": 8}, "value_length=8 is not supported"),
        ({"rope.scaling.type": "yarn"}, "scaling.type='yarn' is not supported"),
        ({"rope.scale_linear": 2.0}, "scale_linear=2.0 is not supported"),
        ({"expert_count": 8}, "expert_count=8 is not supported; expected none"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not"),
        ({"feed_forward_length": 64}, "ffn_gate.weight has a wrong shape; expected"),
        ({"block_count": 3}, "model.layers.2.* is missing; expected shape"),
        ({"block_count": 1}, "tensor blk.1.attn_norm.weight is extra"),
    ],
)
def test_metadata_that_cannot_be_used(change, message, tmp_path):
    arrays = tensors("llama", sizes("llama", "F32"))
    # The tensors are those of the unchanged metadata.
    extra = write_gguf(tmp_path / "good.gguf", "llama", "F32", arrays=arrays)
    meta = sizes("llama", "F32", **change)
    write_gguf(tmp_path / "a.gguf", "llama", "F32", meta=meta, arrays={}, extra=extra)
    file = gguf_files.GgufFile(tmp_path / "a.gguf")
    with pytest.raises(ValueError, match=message):
        gguf_files.load_gguf(file, gguf_files.config_from_gguf(file))


def test_a_window_of_a_qwen_file_is_refused(tmp_path):
    meta = sizes("qwen3", "F32", **{"attention.sliding_window": 99})
    write_gguf(tmp_path / "a.gguf", "qwen3", "F32", meta=meta)
    with pytest.raises(ValueError, match="sliding_window=99 is not supported"):
        read(tmp_path / "a.gguf")


def test_other_architectures_are_refused(tmp_path):
    meta = sizes("gemma", "F32")
    arrays = tensors("gemma", meta)
    write_gguf(tmp_path / "a.gguf", "gemma", "F32", meta=meta, arrays=arrays)
    with pytest.raises(ValueError, match="architecture='gemma' is not supported"):
        read(tmp_path / "a.gguf")


def test_a_type_that_is_not_dequantised_is_refused(tmp_path):
    arrays = tensors("llama", sizes("llama", "F32"))
    integers = arrays.pop("blk.0.ffn_up.weight").astype(np.int32)
    extra = {"blk.0.ffn_up.weight": integers}
    write_gguf(tmp_path / "a.gguf", "llama", "F32", arrays=arrays, extra=extra)
    with pytest.raises(ValueError, match="ffn_up.weight has the type I32; expected"):
        read(tmp_path / "a.gguf")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    arrays = tensors("llama", sizes("llama", "F32"))
    arrays["blk.1.ffn_up.weight"][3, 4:6] = np.nan, np.inf
    write_gguf(tmp_path / "a.gguf", "llama", "F32", arrays=arrays)
    words = "a.gguf: 2 of the 6144 numbers of model.layers.1.mlp.up_proj.weight are NaN"
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "a.gguf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99])
def test_files_that_are_cut_off(share, tmp_path):
    write_gguf(tmp_path / "a.gguf", "llama", "F32")
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cut.gguf: damaged or not a GGUF file"):
        read(tmp_path / "cut.gguf")


def test_what_is_no_gguf_file(tmp_path):
    (tmp_path / "text").write_text("no tensors here " * 99)
    with pytest.raises(
        ValueError,
        match="text: damaged or not a GGUF file .it does not begin with GGUF",
    ):
        gguf_files.GgufFile(tmp_path / "text")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="no such file; expected a GGUF file"):
            gguf_files.GgufFile(path)
    with pytest.raises(ValueError, match="gs://b/a.gguf is not on a disk.*Copy it"):
        gguf_files.GgufFile("gs://b/a.gguf")


def test_without_the_gguf_package(monkeypatch, tmp_path):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name == "gguf":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'Run: pip install -e ".\[gguf\]"'):
        gguf_files.GgufFile(tmp_path / "a.gguf")
