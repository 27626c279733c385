"""Weight files and tokenizers of others: bounded, and within their folder."""

import json
import os
import struct

import chat_tokenizers
import pytest
from gguf_models import sizes, write_gguf
from golden_models import copy_golden

from stepjax.lm import gguf_files, hf_config, limits, tokenizer, weights

NORM = "model.norm.weight"


def load(folder):
    return weights.load_hf(folder, hf_config.config_from_hf(folder))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/abs.safetensors", "..", 5, None, [1]]
)
def test_an_index_cannot_leave_its_folder(tmp_path, name):
    folder = copy_golden("llama", tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"][NORM] = name
    index.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match="index.json: a tensor is in the file .*; expe"
    ):
        load(folder)


def test_an_index_that_names_another_file(tmp_path):
    folder = copy_golden("llama", tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"][NORM] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(data))
    found = (
        "tensor model.norm.weight is in model-00002-of-00003.safetensors and should "
    )
    with pytest.raises(ValueError, match=found):
        load(folder)


def rewritten(folder, change):
    """Changes the header of model.safetensors; `change` may return other bytes."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    raw = change(header) or json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + size :])
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h[NORM].update(data_offsets=[-8, 72]), "is at \\[-8, 72\\]"),
        (
            lambda h: h[NORM].update(data_offsets=[0, 80]),
            "begins at byte .* and not at",
        ),
        (lambda h: h[NORM].update(shape=[20.0]), "has the shape \\[20.0\\]"),
        (lambda h: b"[" * 100_000, "lists or objects within each other without end"),
        (lambda h: json.dumps(h).encode("utf-16"), "'utf-8' codec can't decode"),
        (lambda h: b'{"a": 1, "a": 2}', "the name 'a' is there twice"),
        (lambda h: b" " * (limits.HEADER_BYTES + 1), "a header of 33,554,433 bytes"),
    ],
)
def test_headers_are_not_believed(tmp_path, change, words):
    folder = rewritten(copy_golden("qwen2", tmp_path / "model"), change)
    with pytest.raises(ValueError, match=f"missing or damaged .*{words}.*Download it"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vocab_size", 10**12, "integer from 1 to 16,777,216"),
        ("num_hidden_layers", 10**12, "integer from 1 to 1,000"),
        ("rope_theta", 0.5, "number from 1 to 1e\\+12"),
        ("rms_norm_eps", 1e30, "number from 1e-12 to 0.1"),
        ("attention_bias", "x", "true or false"),
        ("max_position_embeddings", -1, "a positive integer"),
    ],
)
def test_numbers_of_a_config_are_bounded(tmp_path, name, value, words):
    folder = copy_golden("qwen2", tmp_path / "model", **{name: value})
    with pytest.raises(ValueError, match=f"config.json: {name}=.*; expected .*{words}"):
        hf_config.config_from_hf(folder)


def test_pipes_and_devices_in_a_folder_of_a_model(tmp_path):
    folder = copy_golden("qwen2", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(
        ValueError, match="model.safetensors: this is a pipe; expected "
    ):
        load(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="config.json: this is a device; expected an "):
        load(folder)


def test_a_special_token_that_no_file_has(tmp_path):
    folder = chat_tokenizers.write("qwen", tmp_path / "ids")
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text())
    file.write_text(json.dumps(stated | {"eos_token": "<|stop|>"}))
    with pytest.raises(
        ValueError, match="token '<.stop.>' is not in the vocabulary; e"
    ):
        tokenizer.load(folder)
    last = len(
        tokenizer.load(chat_tokenizers.write("qwen", tmp_path / "b")).token_bytes
    )
    for id, fits in ((last, True), (last + 50, False)):
        added = {str(id): {"content": "<|stop|>", "special": True}}
        config = {"added_tokens_decoder": added, "eos_token": "<|stop|>"}
        file.write_text(json.dumps(stated | config))
        if fits:
            assert tokenizer.load(folder).eos_id == last
        else:  # transformers would give it the id `last`
            with pytest.raises(ValueError, match="token '<.stop.>' is not in the voca"):
                tokenizer.load(folder)
    file.write_text(json.dumps(stated))
    (folder / "generation_config.json").write_text('{"eos_token_id": 999999}')
    with pytest.raises(
        ValueError, match="eos_token_id 999999 ends a generation and is"
    ):
        tokenizer.load(folder)


@pytest.mark.parametrize(
    ("at", "form", "number", "words"),
    [
        (8, "<Q", 2**63, "9223372036854775808 tensors and .* are too many"),
        (24, "<Q", 2**63, "9223372036854775808 bytes should follow byte 32"),
        (4, "<I", 3 << 24, "the byte order of another kind of machine"),
    ],
)
def test_counts_in_a_gguf_file(tmp_path, at, form, number, words):
    path = tmp_path / "a.gguf"
    write_gguf(path, "llama", "F32")
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, number)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"not a GGUF file .*{words}.*Download it again"
    ):
        gguf_files.GgufFile(path)


def test_lists_places_and_parts_of_a_gguf_file(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, "llama", "F32", ids={"x": [1, 2, 3]})
    content = bytearray(path.read_bytes())
    at = content.index(b"tokenizer.x") + len(b"tokenizer.x") + 8
    struct.pack_into("<Q", content, at, 2**40)  # how many numbers follow
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bytes should follow byte"):
        gguf_files.GgufFile(path)
    write_gguf(path, "llama", "F32")
    content = bytearray(path.read_bytes())
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 16
    struct.pack_into("<Q", content, at, 2**64 - 256)  # a place before the tensors
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a tensor is at 18446744073709551360, and"):
        gguf_files.GgufFile(path)
    struct.pack_into("<Q", content, at, 0)  # where another tensor is
    path.write_bytes(content)
    with pytest.raises(ValueError, match="they should lie between .* and .*Download"):
        gguf_files.GgufFile(path)
    meta = {"split.count": 2}
    write_gguf(path, "llama", "F32", meta=sizes("llama", "F32") | meta)
    with pytest.raises(
        ValueError, match="one of 2 files of a model; .*gguf-split --mer"
    ):
        gguf_files.GgufFile(path)
