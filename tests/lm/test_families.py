"""Which families a decoder fits, and which one an export is written as."""

import dataclasses
import json

import pytest
from golden_models import GOLDEN, copy_golden

from stepjax.lm import export, families, hf_config, weights


def config(name):
    return hf_config.config_from_hf(GOLDEN / name)


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("llama", {}, ["llama", "mistral"]),
        ("mistral", {}, ["mistral"]),
        ("mistral", {"sliding_window": 0}, ["llama", "mistral"]),
        ("qwen2", {}, ["qwen2"]),
        ("qwen2", {"sliding_window": 9}, []),
        ("qwen3_tied", {}, ["qwen3"]),
        ("qwen3_tied", {"qkv_bias": True}, []),
        ("gemma3_tied", {}, ["gemma3_text"]),
        ("gemma3_tied", {"post_norms": False}, []),
    ],
)
def test_what_a_config_can_be_written_as(name, changes, expected):
    changed = dataclasses.replace(config(name), **changes)
    assert families.fitting(changed) == expected


def test_the_family_that_is_wanted_and_fits_is_chosen():
    llama = config("llama")
    assert families.choose(llama) == "llama"
    assert families.choose(llama, None, "mistral") == "mistral"
    assert families.choose(llama, "qwen2", "mistral") == "mistral"
    odd = dataclasses.replace(llama, norm_offset=0.5)
    with pytest.raises(ValueError, match="norm_offset=0.5.* of no known family; expec"):
        families.choose(odd)


def test_each_sixth_layer_of_gemma_3_is_not_local():
    local = families.global_every(6, 13)
    assert [number for number, here in enumerate(local) if not here] == [5, 11]


def test_an_export_of_a_mistral_without_a_window_stays_a_mistral(tmp_path):
    source = copy_golden("mistral", tmp_path / "in", sliding_window=0)
    path = source / "config.json"
    path.write_text(
        path.read_text().replace('"sliding_window": 0', '"sliding_window": null')
    )
    (source / "tokenizer.json").write_text("{}")
    shape = hf_config.config_from_hf(source)
    assert shape.sliding_window == 0
    params = weights.load_hf(source, shape)
    export.save_hf(params, shape, tmp_path / "out", tokenizer_directory=source)
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["model_type"], made["sliding_window"]) == ("mistral", None)
    assert made["architectures"] == ["MistralForCausalLM"]
    export.verify_hf(params, shape, tmp_path / "out")
    arguments = {"tokenizer_directory": source, "model_type": "llama"}
    export.save_hf(params, shape, tmp_path / "llama", **arguments)
    made = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert made["architectures"] == ["LlamaForCausalLM"]
