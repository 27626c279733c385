"""Weights in and out of Hugging Face directories, against golden logits."""

import copy
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from golden_models import GOLDEN, copy_golden
from safetensors.numpy import load_file

from stepjax.lm import decode, export, hf_config, weights
from stepjax.lm import model as lm

CASES = (
    "qwen2",
    "qwen2_tied",
    "llama",
    "llama3_tied",
    "mistral",
    "qwen3_tied",
    "gemma3_tied",
)
TOLERANCE = 1e-4  # float32 on CPU; the logits have standard deviation 2
LLAMA3 = (
    ("factor", 4.0),
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 64),
    ("rope_type", "llama3"),
)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def golden(name):
    config = hf_config.config_from_hf(GOLDEN / name)
    expected = dict(np.load(GOLDEN / name / "expected.npz"))
    return config, weights.load_hf(GOLDEN / name, config), expected


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, position, subtree_end):
    hidden = lm.Decoder(config).apply({"params": params}, tokens, position, subtree_end)
    return lm.logits(params, hidden)


def row_logits(config, params, tokens, length):
    """Logits of sequences on separate rows; padding tokens see only themselves."""
    index = np.arange(tokens.shape[1])
    real = index < np.asarray(length)[:, None]
    position = np.where(real, index, 0)
    end = np.where(real, np.asarray(length)[:, None], index + 1)
    return np.asarray(_logits(config, params, tokens, position, end))


def flat(params):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize(
    "name, heads, theta, epsilon, bias, tied, scaling",
    [
        ("qwen2", 8, 700.0, 1e-3, True, False, None),
        ("qwen2_tied", 4, 90.0, 1e-6, True, True, None),
        ("llama", 4, 300.0, 1e-2, False, False, None),
        ("llama3_tied", 4, 500.0, 1e-5, False, True, LLAMA3),
    ],
)
def test_config_is_read(name, heads, theta, epsilon, bias, tied, scaling):
    config = hf_config.config_from_hf(GOLDEN / name)
    assert config == lm.ModelConfig(
        vocab_size=96,
        hidden_size=20,
        num_layers=3,
        num_heads=heads,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=28,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=epsilon,
        qkv_bias=bias,
        tie_embeddings=tied,
        dtype="float32",
        remat="none",
    )


@pytest.mark.parametrize(
    "name, values",
    [
        (
            "mistral",
            {"rope_theta": 300.0, "rms_norm_eps": 1e-4, "sliding_window": 16},
        ),
        (
            "qwen3_tied",
            {
                "rope_theta": 90.0,
                "rms_norm_eps": 1e-2,
                "qk_norm": True,
                "tie_embeddings": True,
            },
        ),
        (
            "gemma3_tied",
            {
                "rope_theta": 700.0,
                "rope_scaling": (("factor", 4.0), ("rope_type", "linear")),
                "rms_norm_eps": 1e-2,
                "qk_norm": True,
                "post_norms": True,
                "norm_offset": 1.0,
                "activation": "gelu_tanh",
                "scale_embeddings": True,
                "query_scalar": 9,
                "local_layers": (True, False, True),
                "local_rope_theta": 50.0,
                "sliding_window": 16,
                "tie_embeddings": True,
            },
        ),
    ],
)
def test_what_sets_a_family_apart_is_read(name, values):
    assert hf_config.config_from_hf(GOLDEN / name) == lm.ModelConfig(
        vocab_size=96,
        hidden_size=20,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=28,
        qkv_bias=False,
        **values,
    )


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_of_the_decoder(name):
    config, params, _ = golden(name)
    abstract = lm.abstract_params(lm.Decoder(config))
    wanted = flat(jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda: params)))
    unboxed = jax.tree.map(
        lambda x: x.value.shape, abstract, is_leaf=lambda x: hasattr(x, "names")
    )
    assert wanted == flat(unboxed)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("name", CASES)
def test_logits_on_separate_rows(name):
    config, params, expected = golden(name)
    found = row_logits(config, params, expected["tokens"], expected["length"])
    assert list(expected["length"]) == [11, 7]
    for row, length in enumerate(expected["length"]):
        difference = np.abs(found[row, :length] - expected["logits"][row, :length])
        assert difference.max() < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_logits_packed_into_one_row(name):
    config, params, expected = golden(name)
    first, second = expected["length"]
    tokens, logits = (
        np.concatenate([expected[key][0, :first], expected[key][1, :second]])[None]
        for key in ("tokens", "logits")
    )
    position = np.concatenate([np.arange(first), np.arange(second)])[None]
    end = np.repeat([first, first + second], [first, second])[None]
    found = np.asarray(_logits(config, params, tokens, position, end))
    assert np.abs(found - logits).max() < TOLERANCE


@pytest.mark.parametrize(
    "name, change",
    [
        ("qwen2", {"rope_theta": 10000.0}),
        ("qwen2", {"rms_norm_eps": 1e-6}),
        ("qwen2_tied", {"rope_theta": 10000.0}),
        ("llama", {"rope_theta": 10000.0}),
        ("llama", {"rms_norm_eps": 1e-6}),
        ("llama3_tied", {"rope_scaling": None}),
        ("mistral", {"rope_theta": 10000.0}),
        ("qwen3_tied", {"rms_norm_eps": 1e-6}),
        ("gemma3_tied", {"rope_scaling": None}),
        ("gemma3_tied", {"norm_offset": 0.5}),
        ("gemma3_tied", {"activation": "silu"}),
        ("gemma3_tied", {"scale_embeddings": False}),
        ("gemma3_tied", {"query_scalar": None}),
        ("gemma3_tied", {"local_layers": (True, True, False)}),
        ("gemma3_tied", {"local_rope_theta": 700.0}),
    ],
)
def test_golden_logits_show_every_config_value(name, change):
    config, params, expected = golden(name)
    config = dataclasses.replace(config, **change)
    found = row_logits(config, params, expected["tokens"], expected["length"])
    assert np.abs(found[0] - expected["logits"][0]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_cached_decoding_equals_the_full_forward(name):
    config, params, _ = golden(name)
    random = np.random.default_rng(5)
    groups, width, context_size, prefix_size, more = 2, 3, 6, 3, 2
    context_length = np.array([5, 3])
    prefix_length = np.array([[3, 1, 2], [2, 3, 0]])
    context = random.integers(0, 85, (groups, context_size))
    suffix = random.integers(0, 85, (groups, width, prefix_size + more))
    start = prefix_size - prefix_length

    def empty(width, size):  # garbage that the masks must hide
        shape = (3, groups, config.num_kv_heads, width, size, config.head_dim)
        return lm.KeyValues(*jnp.full((2, *shape), 9.0))

    @functools.partial(jax.jit, static_argnames="reach")
    def step(params, tokens, start, shared, suffix=None, reach=None):
        hidden, made = decode.forward(
            config, params, tokens, start, shared, suffix=suffix, reach=reach
        )
        return lm.logits(params, hidden), made

    nothing = decode.Shared(empty(1, 1), jnp.zeros((groups, 1), jnp.int32))
    at_once = jnp.zeros((groups, 1), jnp.int32)
    on_context, made = step(params, context[:, None], at_once, (nothing,))
    shared = (decode.Shared(made, jnp.asarray(context_length)[:, None]),)
    own = decode.Suffix(empty(width, prefix_size + more + 1), jnp.int32(0))
    pieces = []
    lengths = [prefix_size] + [1] * more
    for low, size in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        part, results = suffix[..., low : low + size], []
        # Keys that are not written yet may be read, and must not count.
        for reach in (int(low + size), None):
            found, made = step(params, part, start, shared, own, reach=reach)
            results.append(found)
        np.testing.assert_allclose(*results, atol=TOLERANCE)
        pieces.append(found)
        own = decode.write(own, made)
    on_suffix = np.concatenate(pieces, axis=2)

    length = context_length[:, None] + prefix_length + more
    tokens = np.zeros((groups, width, length.max()), np.int64)
    for group, row in np.ndindex(groups, width):
        own = suffix[group, row, start[group, row] :]
        path = np.concatenate([context[group, : context_length[group]], own])
        tokens[group, row, : len(path)] = path
    full = row_logits(config, params, tokens.reshape(6, -1), length.reshape(6))
    full = full.reshape(groups, width, -1, 96)
    for group, row in np.ndindex(groups, width):
        shared = context_length[group]
        found = np.concatenate(
            [on_context[group, 0, :shared], on_suffix[group, row, start[group, row] :]]
        )
        assert len(found) == length[group, row]
        assert np.abs(found - full[group, row, : len(found)]).max() < TOLERANCE


@pytest.mark.parametrize("limit", [5 * 10**9, 15_000])
@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_again_is_exact(name, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SHARD_BYTES", limit)
    config, params, _ = golden(name)
    export.save_hf(jax.tree.map(jnp.asarray, params), config, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    if limit < 10**6:
        assert len(files) >= 4
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        index = tmp_path / "out" / "model.safetensors.index.json"
        total = json.loads(index.read_text())["metadata"]["total_size"]
        assert total == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    else:
        assert files == ["model.safetensors"]
    assert hf_config.config_from_hf(tmp_path / "out") == config
    again = flat(weights.load_hf(tmp_path / "out", config))
    assert again.keys() == flat(params).keys()
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)


def test_bfloat16_files_hold_the_nearest_values(tmp_path):
    config, params, _ = golden("qwen2")
    export.save_hf(params, config, tmp_path / "out", dtype="bfloat16")
    again = flat(weights.load_hf(tmp_path / "out", config))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for path, leaf in flat(params).items():
        error = np.abs(again[path] - leaf)
        assert (error <= np.abs(leaf) * 2.0**-8).all()
        assert error.max() > 0


def test_the_other_files_of_an_export(tmp_path):
    config, params, _ = golden("llama3_tied")
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").write_text('{"a": 1}')
    (source / "notes.txt").write_text("not a tokenizer file")
    (tmp_path / "out").mkdir()  # an empty target is fine
    arguments = {"tokenizer_directory": source, "stop_ids": (7, 3), "bos_id": 1}
    export.save_hf(params, config, tmp_path / "out", **arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"a": 1}'
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": [7, 3], "pad_token_id": None}
    assert generation == ids
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert data["architectures"] == ["LlamaForCausalLM"]
    assert data["eos_token_id"] == [7, 3]
    assert data["max_position_embeddings"] == 256  # 4 * 64
    (source / "config.json").write_text('{"max_position_embeddings": 200}')
    export.save_hf(params, config, tmp_path / "second", **arguments)
    data = json.loads((tmp_path / "second" / "config.json").read_text())
    assert data["max_position_embeddings"] == 200


def test_both_spellings_of_rotary_positions(tmp_path):
    old = dict(LLAMA3)
    old["type"] = old.pop("rope_type")
    edits = {"rope_parameters": None, "rope_theta": 500, "rope_scaling": old}
    directory = copy_golden("llama3_tied", tmp_path / "old", **edits)
    assert hf_config.config_from_hf(directory) == golden("llama3_tied")[0]


def test_keys_that_old_llama_files_leave_out(tmp_path):
    left_out = {"num_key_value_heads": None, "head_dim": None, "rope_parameters": None}
    left_out |= {"tie_word_embeddings": None, "attention_bias": None}
    directory = copy_golden("llama", tmp_path / "copy", hidden_size=32, **left_out)
    config = hf_config.config_from_hf(directory)
    assert (config.num_kv_heads, config.head_dim) == (4, 8)
    assert config.rope_theta == 10000.0
    assert config.tie_embeddings is False
    assert config.qkv_bias is False


GEMMA3_OF_EARLIER_FILES = {
    "rope_parameters": None,
    "layer_types": None,
    "sliding_window_pattern": 2,
    "rope_theta": 700.0,
    "rope_local_base_freq": 50,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}


def test_the_earlier_spelling_of_gemma_3(tmp_path):
    edits = GEMMA3_OF_EARLIER_FILES | {"tie_word_embeddings": None}
    directory = copy_golden("gemma3_tied", tmp_path / "old", **edits)
    assert hf_config.config_from_hf(directory) == golden("gemma3_tied")[0]


def test_a_mistral_file_without_a_window_has_that_of_transformers(tmp_path):
    directory = copy_golden("mistral", tmp_path / "copy", sliding_window=None)
    config = golden("mistral")[0]
    found = hf_config.config_from_hf(directory)  # the key is left out
    assert found == dataclasses.replace(config, sliding_window=4096)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    found = hf_config.config_from_hf(directory)
    assert found == dataclasses.replace(config, sliding_window=0)


GEMMA3 = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
LIVE = [
    ("Qwen2", {"rope_theta": 1e6}),
    ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    ("Llama", {"rope_theta": 500.0, "rope_scaling": dict(LLAMA3)}),
    ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    ("Mistral", {"rope_theta": 300.0, "sliding_window": None}),
    ("Mistral", {"tie_word_embeddings": True, "sliding_window": 16}),
    ("Qwen3", {"rope_theta": 90.0}),
    ("Qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    ("Gemma3Text", GEMMA3 | {"tie_word_embeddings": False}),
    ("Gemma3Text", GEMMA3 | {"rms_norm_eps": 1e-3}),
]


def live_model(family, differences):
    """A random model of transformers, its tokens and its logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 70,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "initializer_range": 0.3,
    }
    config = getattr(transformers, f"{family}Config")(
        **(sizes | copy.deepcopy(differences))
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # fresh biases are 0 and fresh norms 1
                weight.add_(0.3 * torch.randn(weight.shape))
    tokens = np.random.default_rng(1).integers(0, 70, (2, 13))
    return model, tokens, live_logits(model, tokens)


def live_logits(model, tokens):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.asarray(tokens)).logits.float().numpy()


@pytest.mark.parametrize("family, differences", LIVE)
def test_live_models_of_transformers(family, differences, tmp_path):
    model, tokens, expected = live_model(family, differences)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    config = hf_config.config_from_hf(tmp_path / "theirs")
    params = weights.load_hf(tmp_path / "theirs", config)
    found = row_logits(config, params, tokens, [13, 9])
    assert expected.std() > 0.5
    assert np.abs(found[0] - expected[0]).max() < TOLERANCE
    assert np.abs(found[1, :9] - expected[1, :9]).max() < TOLERANCE


@pytest.mark.parametrize("family, differences", LIVE)
def test_transformers_loads_an_export(family, differences, tmp_path, monkeypatch):
    model, tokens, expected = live_model(family, differences)
    monkeypatch.setattr(export, "_SHARD_BYTES", 20_000)
    model.save_pretrained(tmp_path / "theirs")
    config = hf_config.config_from_hf(tmp_path / "theirs")
    params = weights.load_hf(tmp_path / "theirs", config)
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    earlier = {"tokenizer_directory": tmp_path / "theirs"}  # and its config.json
    stops = {"stop_ids": (5, 9), "bos_id": 2}
    export.save_hf(params, config, tmp_path / "ours", **stops, **earlier)
    transformers = pytest.importorskip("transformers")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(loaded) is type(model)
    assert loaded.dtype == model.dtype
    assert loaded.generation_config.eos_token_id == [5, 9]
    assert loaded.generation_config.bos_token_id == 2
    kept, made = (x.config.to_dict() for x in (model, loaded))
    ids = {"bos_token_id", "eos_token_id", "_name_or_path"}
    assert {key for key in kept if kept[key] != made[key]} <= ids
    assert np.abs(live_logits(loaded, tokens) - expected).max() < 1e-6
