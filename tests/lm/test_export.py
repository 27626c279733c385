"""What an export keeps of the model's earlier files, and how it is verified."""

import dataclasses
import json

import chat_tokenizers
import jax
import ml_dtypes
import numpy as np
import pytest
from golden_models import GOLDEN, copy_golden
from safetensors.numpy import load_file, save_file

from stepjax.lm import export, hf_config, sharding, tokenizer, weights
from stepjax.lm import model as lm

UP = "model.layers.1.mlp.up_proj.weight"


def load(directory):
    config = hf_config.config_from_hf(directory)
    return config, weights.load_hf(directory, config)


def read(path):
    return json.loads(path.read_text())


def source_folder(path, config_json, generation=None):
    """A folder with a tokenizer and what a model's earlier files say."""
    path.mkdir()
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "config.json").write_text(json.dumps(config_json))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_what_the_decoder_does_not_need_is_carried_through(tmp_path):
    config, params = load(GOLDEN / "llama")
    earlier = read(GOLDEN / "llama" / "config.json") | {
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "pad_token_id": 2,
        "attention_dropout": 0.25,
        "dtype": "float16",
        "transformers_version": "9",
        "rms_norm_eps": 5.0,  # what the decoder does need comes from the decoder
    }
    sampling = {"temperature": 0.7, "top_p": 0.8, "do_sample": True}
    generation = sampling | {"eos_token_id": 9, "bos_token_id": 5}
    source = source_folder(
        tmp_path / "in", earlier, generation | {"_from_model_config": True}
    )
    arguments = {"tokenizer_directory": source, "stop_ids": (3, 4)}
    export.save_hf(
        params, config, tmp_path / "out", pad_id=0, context_length=64, **arguments
    )
    made = read(tmp_path / "out" / "config.json")
    ids = {"bos_token_id": 1, "eos_token_id": [3, 4], "pad_token_id": 2}
    for key, value in ids.items():
        assert made[key] == value, key
    assert made["max_position_embeddings"] == 8192
    assert made["attention_dropout"] == 0.25
    assert made["rms_norm_eps"] == config.rms_norm_eps
    assert made["torch_dtype"] == "float32"
    assert not {"dtype", "transformers_version"} & made.keys()
    again = read(tmp_path / "out" / "generation_config.json")
    assert again == sampling | ids
    # Without a generation_config.json, transformers takes its settings of config.json.
    (source / "generation_config.json").unlink()
    (source / "config.json").write_text(json.dumps(earlier | {"top_k": 20}))
    export.save_hf(params, config, tmp_path / "second", **arguments)
    again = read(tmp_path / "second" / "generation_config.json")
    assert again == {"top_k": 20} | ids
    template = tmp_path / "out" / "chat_template.jinja"
    assert template.read_text() == "{{ messages }}"
    assert hf_config.config_from_hf(tmp_path / "out") == config


def test_a_model_without_earlier_files_gets_the_arguments(tmp_path):
    config, params = load(GOLDEN / "qwen2")
    arguments = {"stop_ids": (3,), "pad_id": 0, "context_length": 64}
    export.save_hf(params, config, tmp_path / "out", **arguments)
    made = read(tmp_path / "out" / "config.json")
    assert made["max_position_embeddings"] == 64
    assert (made["pad_token_id"], made["bos_token_id"]) == (0, None)
    assert made["eos_token_id"] == 3
    export.save_hf(params, config, tmp_path / "bare")
    assert "max_position_embeddings" not in read(tmp_path / "bare" / "config.json")


@pytest.mark.parametrize("name", ["llama", "llama3_tied"])
def test_rotary_positions_keep_the_form_of_the_earlier_file(name, tmp_path):
    config, params = load(GOLDEN / name)
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    forms = {
        "old": {"rope_theta": 1.0, "rope_scaling": None},
        "new": {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}},
    }
    for form, earlier in forms.items():
        source = source_folder(tmp_path / form, earlier)
        target = tmp_path / f"out_{form}"
        export.save_hf(params, config, target, tokenizer_directory=source)
        made = read(target / "config.json")
        assert (made["rope_theta"], made["rope_scaling"]) == (
            config.rope_theta,
            scaling,
        )
        theta = {"rope_theta": config.rope_theta}
        expected = (scaling or {"rope_type": "default"}) | theta
        assert made.get("rope_parameters") == (expected if form == "new" else None)
        assert hf_config.config_from_hf(target) == config


@pytest.mark.parametrize("name", ["qwen2", "llama3_tied"])
def test_bfloat16_in_and_out_is_the_same_bytes(name, tmp_path):
    directory = copy_golden(name, tmp_path / "in")
    tensors = load_file(directory / "model.safetensors")
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "tokenizer.json").write_text("{}")
    folders = [directory, tmp_path / "out", tmp_path / "again"]
    for before, after in zip(folders, folders[1:], strict=False):
        config, params = load(before)
        export.save_hf(
            params,
            config,
            after,
            tokenizer_directory=before,
            stop_ids=(3, 4),
            dtype="bfloat16",
        )
        written = load_file(after / "model.safetensors")
        assert written.keys() == tensors.keys()
        for key, array in tensors.items():
            assert written[key].tobytes() == array.tobytes(), key
    for path in folders[1].iterdir():
        assert path.read_bytes() == (folders[2] / path.name).read_bytes(), path.name


def test_float16_is_read_exactly_and_float64_is_refused(tmp_path):
    directory = copy_golden("llama3_tied", tmp_path / "in")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, path)
    found = load(directory)[1]["layers"]["up"][1]
    np.testing.assert_array_equal(found, tensors[UP].astype(np.float16).T)
    save_file({k: v.astype(np.float64) for k, v in tensors.items()}, path)
    with pytest.raises(ValueError, match="is F64; expected one of.*again in float32"):
        load(directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_export_is_verified(dtype, tmp_path):
    config, params = load(GOLDEN / "qwen2")
    same = {"stop_ids": (3, 4), "dtype": dtype}
    export.save_hf(params, config, tmp_path / "out", **same)
    said = export.verify_hf(params, config, tmp_path / "out", **same)
    count = sum(array.size for array in jax.tree.leaves(params))
    assert said == (
        f"read again: 39 tensors with {count:,} numbers equal the model's, rounded to "
        f"{dtype}; config.json and the stop ids [3, 4] are the model's"
    )
    mesh = sharding.make_mesh(1, 4, 2)
    splits = sharding.param_shardings(mesh, lm.abstract_params(lm.Decoder(config)))
    sharded = jax.device_put(params, splits)
    again = export.verify_hf(
        sharded, config, tmp_path / "out", shardings=splits, **same
    )
    assert again == said


def test_every_difference_of_an_export_is_found(tmp_path):
    config, params = load(GOLDEN / "llama3_tied")
    out = tmp_path / "out"
    export.save_hf(params, config, out, stop_ids=(3,))
    verify = {"stop_ids": (3,)}
    with pytest.raises(ValueError, match=r"eos_token_id=\[3\]; expected \[3, 4\]"):
        export.verify_hf(params, config, out, stop_ids=(3, 4))
    # The numbers of these parameters are not bfloat16 numbers.
    with pytest.raises(ValueError, match="numbers of the parameter embedding differ"):
        export.verify_hf(params, config, out, dtype="bfloat16", **verify)
    other = dataclasses.replace(config, rope_theta=501.0)
    with pytest.raises(ValueError, match="rope_theta=500.0; expected 501.0. Remove"):
        export.verify_hf(params, other, out, **verify)
    tensors = load_file(out / "model.safetensors")
    tensors[UP][3, 4:6] += 1
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match="2 numbers of the parameter layers/up differ"):
        export.verify_hf(params, config, out, **verify)
    tensors[UP][3, 4:7] = np.nan
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match=f"3 of the 560 numbers of {UP} are NaN or"):
        export.verify_hf(params, config, out, **verify)


@pytest.mark.parametrize(
    "name, place, words",
    [
        ("qwen2", ("final_norm", "scale"), "1 of the 20 numbers of model.norm.weight"),
        ("llama3_tied", ("layers", "up"), f"1 of the 560 numbers of {UP}"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(name, place, words, value):
    config, params = load(GOLDEN / name)
    weights.check_finite(params, config, "a model", "Train it again.")
    broken = jax.tree.map(np.copy, params)
    array = broken[place[0]][place[1]]
    array[(1,) * array.ndim] = value
    splits = sharding.param_shardings(
        sharding.make_mesh(1, 4, 2), lm.abstract_params(lm.Decoder(config))
    )
    for tree in (broken, jax.device_put(broken, splits)):
        with pytest.raises(ValueError) as error:
            weights.check_finite(tree, config, "a model", "Train it again.")
        message = f"a model: {words} are NaN or infinite; expected finite numbers only."
        assert str(error.value) == f"{message} Train it again."


@pytest.mark.parametrize(
    ("family", "model_type", "differs"),
    [
        ("qwen", "qwen2", False),
        ("smollm", "llama", False),
        ("llama3", "llama", False),
        ("llama3", "qwen2", True),  # digits in threes; Qwen2's are single
    ],
)
def test_other_ids_of_transformers_are_warned_of(tmp_path, family, model_type, differs):
    folder = chat_tokenizers.write(family, tmp_path / "t")
    own = tokenizer.load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    said = export.other_ids(folder, own, "{problem}\n")
    assert bool(said) == differs
    if differs:
        assert said.startswith("warning: AutoTokenizer of transformers reads ")
        assert f"PreTrainedTokenizerFast.from_pretrained({str(folder)!r})" in said


def test_the_ids_of_the_world_are_those_of_transformers(tmp_path, codec):
    codec.tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    # The texts with unknown characters are not compared: Qwen2's rules drop these.
    assert export.other_ids(tmp_path, codec.tokenizer, codec.templates.solve) == ""
    (tmp_path / "tokenizer.json").write_text("{}")
    said = export.other_ids(tmp_path, codec.tokenizer, codec.templates.solve)
    assert said.startswith("warning: transformers cannot read the tokenizer of ")
