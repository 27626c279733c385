"""What reading and writing Hugging Face directories refuses, and how."""

import dataclasses
import re

import numpy as np
import pytest
from golden_models import GOLDEN, copy_golden
from safetensors.numpy import load_file, save_file

from stepjax.lm import export, hf_config, weights

QUERY = "model.layers.1.self_attn.q_proj.weight"


def load(directory):
    return weights.load_hf(directory, hf_config.config_from_hf(directory))


def edit_tensors(directory, **changes):
    """Replaces tensors of model.safetensors; None removes one."""
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, path)


@pytest.mark.parametrize(
    "name, edits, message",
    [
        ("qwen2", {"model_type": "gpt2"}, "model_type='gpt2'.*one of .'llama', 'mis"),
        ("qwen2", {"model_type": None}, "model_type=None"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act='gelu'.*'silu'"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True.*false"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True.*false"),
        ("qwen2", {"layer_types": ["sliding_attention"]}, "layer_types=.*sliding"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config=.*4"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 9.0}},
            "yarn",
        ),
        (
            "llama",
            {"rope_parameters": {"full": {"rope_theta": 9.0}}},
            "one flat object",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5.*1.0"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "high_freq_factor=None; expected a positive number",
        ),
        ("qwen2", {"rope_theta": None}, "rope_theta=None; expected a positive number"),
        ("qwen2", {"num_key_value_heads": None}, "num_key_value_heads=None"),
        ("qwen2", {"num_key_value_heads": 3}, "num_heads=8.*num_kv_heads=3"),
        ("qwen2", {"hidden_size": "20"}, "hidden_size='20'; expected a positive int"),
        ("qwen2", {"vocab_size": True}, "vocab_size=True; expected a positive integer"),
        ("qwen2", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ("qwen2", {"rms_norm_eps": None}, "rms_norm_eps=None"),
        ("qwen2", {"tie_word_embeddings": "no"}, "tie_word_embeddings='no'"),
        ("qwen2", {"head_dim": None}, "hidden_size=20.*multiple of num_att.*heads=8"),
        ("llama", {"head_dim": 5}, "config.json: head_dim=5 is odd"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "factor=2.0 .*a rope_type that"),
        ("mistral", {"hidden_act": "relu"}, "hidden_act='relu'.*'silu'"),
        ("mistral", {"sliding_window": -1}, "sliding_window=-1; expected a positive"),
        ("mistral", {"attention_bias": True}, "attention_bias=True.*false"),
        ("qwen3_tied", {"attention_bias": True}, "attention_bias=True.*false"),
        ("qwen3_tied", {"mlp_bias": True}, "mlp_bias=True.*false"),
        ("qwen3_tied", {"use_sliding_window": True}, "use_sliding_window=True.*false"),
        ("qwen3_tied", {"model_type": "qwen3_moe"}, "model_type='qwen3_moe'.*'qwen3'"),
        ("qwen3_tied", {"num_experts": 8}, "num_experts=8.*none"),
        ("llama", {"num_local_experts": 8}, "num_local_experts=8.*none"),
        ("gemma3_tied", {"model_type": "gemma3"}, "model_type='gemma3'.*'gemma3_text'"),
        (
            "gemma3_tied",
            {"hidden_activation": "silu"},
            "hidden_activation='silu'.*gelu",
        ),
        (
            "gemma3_tied",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping=50.0.*none",
        ),
        (
            "gemma3_tied",
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping=30.0.*none",
        ),
        (
            "gemma3_tied",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention=True.*false",
        ),
        ("gemma3_tied", {"attention_bias": True}, "attention_bias=True.*false"),
        ("gemma3_tied", {"layer_types": ["full_attention"]}, "layer_types=.*3 entries"),
        (
            "gemma3_tied",
            {"layer_types": ["chunked_attention"] * 3},
            "layer_types=.*chun",
        ),
        (
            "gemma3_tied",
            {"rope_parameters": {"rope_theta": 9.0}},
            "rope_parameters=.*objects for .'full_attention'",
        ),
        (
            "gemma3_tied",
            {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2}}},
            "rope_parameters=.*no scaling locally",
        ),
        (
            "gemma3_tied",
            {"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}},
            "partial_rotary_factor=0.5.*1.0",
        ),
        (
            "gemma3_tied",
            {"query_pre_attn_scalar": 0},
            "query_pre_attn_scalar=0; expect",
        ),
    ],
)
def test_config_is_refused(name, edits, message, tmp_path):
    directory = copy_golden(name, tmp_path / "copy", **edits)
    with pytest.raises(ValueError, match=message):
        hf_config.config_from_hf(directory)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "config.json: No such file.*model directory"),
        ("{", "config.json: not JSON.*Download it again"),
        ("[1]", r"config.json: \[1\]; expected a JSON object"),
    ],
)
def test_config_file_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        hf_config.config_from_hf(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {QUERY: None},
            rf"{QUERY} is missing; expected shape \(48, 20\), found none",
        ),
        (
            {"lm_head.weight": None},
            r"lm_head.weight is missing; expected shape \(96, 20\), found none",
        ),
        (
            {"model.layers.3.mlp.up_proj.weight": np.zeros((28, 20), np.float32)},
            r"layers.3.mlp.up_proj.weight is extra; expected none, found shape "
            r"\(28, 20\)",
        ),
        (
            {"model.layers.0.self_attn.q_norm.weight": np.zeros(6, np.float32)},
            r"q_norm.weight is extra; expected none, found shape \(6,\)",
        ),
        (
            {QUERY: np.zeros((20, 48), np.float32)},
            rf"{QUERY} has a wrong shape; expected \(48, 20\), found \(20, 48\)",
        ),
        (
            {"model.layers.2.self_attn.k_proj.bias": np.zeros((12, 1), np.float32)},
            r"2.self_attn.k_proj.bias has a wrong shape; expected \(12,\), found "
            r"\(12, 1\)",
        ),
        ({QUERY: np.zeros((48, 20), np.int8)}, rf"{QUERY} is I8; expected one of"),
    ],
)
def test_tensors_are_refused(changes, message, tmp_path):
    directory = copy_golden("qwen2", tmp_path / "copy")
    edit_tensors(directory, **changes)
    with pytest.raises(ValueError, match=message):
        load(directory)


def test_config_of_another_size_is_refused(tmp_path):
    directory = copy_golden("qwen2", tmp_path / "copy", vocab_size=90)
    with pytest.raises(ValueError, match=r"expected \(90, 20\), found \(96, 20\)"):
        load(directory)


def test_llama_with_attention_bias(tmp_path):
    directory = copy_golden("llama3_tied", tmp_path / "copy", attention_bias=True)
    random = np.random.default_rng(0)
    biases = {}
    for layer in range(3):
        for letter, size in (("q", 24), ("k", 12), ("v", 12)):
            name = f"model.layers.{layer}.self_attn.{letter}_proj.bias"
            biases[name] = random.normal(size=size).astype(np.float32)
    edit_tensors(directory, **biases)
    found = load(directory)["layers"]["key_bias"]
    assert found.shape == (3, 2, 6)
    np.testing.assert_array_equal(
        found[1].ravel(), biases["model.layers.1.self_attn.k_proj.bias"]
    )
    output = "model.layers.0.self_attn.o_proj.bias"
    edit_tensors(directory, **{output: np.zeros(20, np.float32)})
    with pytest.raises(ValueError, match=rf"{output} is extra.*shape \(20,\)"):
        load(directory)


def test_an_unembedding_beside_tied_embeddings(tmp_path):
    directory = copy_golden("llama3_tied", tmp_path / "copy")
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    edit_tensors(directory, **{"lm_head.weight": embedding}, **inverse)
    params = load(directory)
    assert sorted(params) == ["embedding", "final_norm", "layers"]
    np.testing.assert_array_equal(params["embedding"], embedding)
    edit_tensors(directory, **{"lm_head.weight": embedding + 1})
    with pytest.raises(ValueError, match="lm_head.weight differs.*tie_word_embeddings"):
        load(directory)


def test_weight_files_are_refused(tmp_path):
    directory = copy_golden("llama", tmp_path / "copy")
    shard = directory / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{shard.name}: missing or damaged"):
        load(directory)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: missing or damaged"):
        load(directory)
    index = directory / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json: no weight_map"):
        load(directory)
    index.unlink()
    with pytest.raises(ValueError, match="no model.safetensors or.*save_pretrained"):
        load(directory)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model_type": "llama"}, "model_type='llama' does not fit.*'qwen2'"),
        ({"dtype": "float16"}, "dtype='float16'; expected one of.*bfloat16"),
        ({"stop_ids": (3, 96)}, "token id 96 is outside.*0 to 95"),
        ({"bos_id": -1}, "token id -1 is outside"),
        ({"tokenizer_directory": "empty"}, "has none of.*tokenizer.json"),
    ],
)
def test_export_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    config = hf_config.config_from_hf(GOLDEN / "qwen2")
    params = weights.load_hf(GOLDEN / "qwen2", config)
    with pytest.raises(ValueError, match=message):
        export.save_hf(params, config, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_export_of_unfitting_params_is_refused(tmp_path):
    config = hf_config.config_from_hf(GOLDEN / "llama")
    params = weights.load_hf(GOLDEN / "llama", config)
    tied = dataclasses.replace(config, tie_embeddings=True)
    with pytest.raises(ValueError, match="parameter unembedding is extra"):
        export.save_hf(params, tied, tmp_path / "out")
    biased = dataclasses.replace(config, qkv_bias=True)
    with pytest.raises(ValueError, match="layers/key_bias is missing"):
        export.save_hf(params, biased, tmp_path / "out")
    deeper = dataclasses.replace(config, num_layers=4)
    message = r"norm/scale has a wrong shape; expected \(4, 20\), found \(3, 20\)"
    with pytest.raises(ValueError, match=message):
        export.save_hf(params, deeper, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_target_in_use_is_refused(tmp_path):
    config = hf_config.config_from_hf(GOLDEN / "llama")
    params = weights.load_hf(GOLDEN / "llama", config)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name in ("file", "full"):
        message = re.escape(f"{tmp_path / name} exists and is not empty")
        with pytest.raises(ValueError, match=message):
            export.save_hf(params, config, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    config = hf_config.config_from_hf(GOLDEN / "llama")
    params = weights.load_hf(GOLDEN / "llama", config)
    monkeypatch.setattr(export, "_SHARD_BYTES", 15_000)
    written = []

    def fail_on_second(arrays, file, metadata):
        written.append(file)
        if len(written) == 2:
            raise OSError("no space left on device")
        save_file(arrays, file, metadata)

    monkeypatch.setattr(export, "save_file", fail_on_second)
    with pytest.raises(OSError, match="no space left"):
        export.save_hf(params, config, tmp_path / "out")
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []
