"""Folders of Hugging Face models, and GGUF files, that are hostile or merely wrong."""

import functools
import json
import math
import os
import random
import struct

import numpy as np
from fuzz import Case
from gguf_models import write_gguf
from golden_models import copy_golden

from stepjax.lm import gguf_files, gguf_tokenizer, hf_config, weights

NORM = "model.norm.weight"
NUMBERS = (10**13, 2**63, -1, 0, 1e-50, 10**400, "7", [7], True, math.nan, math.inf)
SHAPE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "rope_theta"),
    *("rms_norm_eps", "initializer_range", "max_position_embeddings"),
)
FLAGS = ("tie_word_embeddings", "attention_bias", "use_sliding_window")
NAMES = (
    *("../outside.safetensors", "/dev/zero", "a/b.safetensors", "..", "", 5, None),
    *([1], {}, True, "x\0.safetensors", "a" * 5000, "gs://b/x.safetensors"),
)
DEEP = (b"[" * 100_000, b'{"a":' * 100_000)
# Values of a tensor's entry in the header that no tensor has.
ENTRIES = {
    "data_offsets": ([-8, 72], [0], [0, 80, 0], ["0", "80"], [0.0, 80.0], None, {})
    + ([2**70, 2**70 + 80], [80, 0], "ab", [True, 81]),
    "shape": ([20.0], ["20"], [-20], [2**62, 2**62], [[20]], 20, None, [20, True], [0])
    + ([], [1] * 100_000),
    "dtype": (5, None, ["F32"], {}, "F64", "I8", "nonsense"),
}


def load(folder):
    return weights.load_hf(folder, hf_config.config_from_hf(folder))


def _replaced(draw, folder):
    """A pipe, a device, a folder or a dangling link in the place of a file."""
    file = folder / draw.choice(("config.json", "model.safetensors"))
    file.unlink()
    kind = draw.choice(("pipe", "/dev/zero", "/dev/full", "folder", "/nowhere", "loop"))
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file.name if kind == "loop" else kind)
    return f"{file.name} is {kind}"


def _config(draw, folder):
    file = folder / "config.json"
    data = json.loads(file.read_text())
    name = draw.choice((*SHAPE, *FLAGS, "model_type", "rope_scaling", "layer_types"))
    if name in SHAPE:
        value = draw.choice(NUMBERS)
    elif name in FLAGS:
        value = draw.choice(("x", 5, [], {}, -1, 0.5))
    else:
        value = draw.choice(([1], 5, "x", [{}], {"rope_type": "llama3", "factor": 0}))
    data[name] = value
    file.write_text(json.dumps(data))
    return f"config.json {name} = {str(value)[:20]}"


def _text(draw, folder):
    """A config.json that is no JSON to the letter."""
    file = folder / "config.json"
    good = file.read_bytes().rstrip()
    what, content = draw.choice(
        [
            ("empty", b""),
            ("deep", draw.choice(DEEP)),
            ("cut off", good[: draw.randrange(1, len(good) - 1)]),
            ("UTF-16", good.decode().encode("utf-16")),
            ("a name twice", good[:-1] + b', "vocab_size": 5}'),
            ("a list", b"[]"),
            ("a number too long", b'{"vocab_size": ' + b"9" * 5000 + b"}"),
        ]
    )
    file.write_bytes(content)
    return f"config.json: {what}"


def _header(draw, folder):
    """Changes the header of model.safetensors, or what is around it."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    way = draw.randrange(10)
    raw, what = None, ""
    if way < 4:
        name = draw.choice(sorted(ENTRIES))
        value = draw.choice(ENTRIES[name])
        header[NORM][name] = value
        what = f"{name} = {str(value)[:20]}"
    elif way == 4:
        at = draw.randrange(0, 20)
        number = draw.choice((math.nan, math.inf, -math.inf))
        first = header[NORM]["data_offsets"][0] + 4 * at
        data[first : first + 4] = struct.pack("<f", number)
        what = f"a weight is {number}"
    elif way == 5:
        header[NORM]["data_offsets"] = header["model.layers.0.input_layernorm.weight"][
            "data_offsets"
        ]
        what = "two tensors in one place"
    elif way == 6:
        what, raw = draw.choice(
            [
                ("deep", draw.choice(DEEP)),
                ("UTF-16", json.dumps(header).encode("utf-16")),
                ("a list", b"[]"),
                (
                    "a name twice",
                    f'{json.dumps(header)[:-1]}, "{NORM}": {{}}}}'.encode(),
                ),
                ("a long one", b" " * (33 * 2**20)),
            ]
        )
    elif way == 7:
        data += b"\0" * draw.randrange(1, 50)
        what = "bytes at the end"
    elif way == 8:
        del data[-draw.randrange(1, 500) :]
        what = "cut off"
    else:
        what = "a length of the header"
    raw = json.dumps(header).encode() if raw is None else raw
    length = len(raw) if way < 9 else draw.choice((0, 1, 2**63, len(raw) + 10**9))
    file.write_bytes(length.to_bytes(8, "little") + raw + data)
    return f"model.safetensors: {what}"


def _index(draw, folder):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    way = draw.randrange(4)
    if way == 0:
        index["weight_map"] = value = draw.choice(([1], 5, None, {}, "x"))
    elif way == 1:
        value = draw.choice(NAMES)
        index["weight_map"][NORM] = value
    elif way == 2:
        value = "another file"
        index["weight_map"][NORM] = "model-00001-of-00003.safetensors"
    else:
        value = draw.choice(DEEP)
    text = value if way == 3 else json.dumps(index).encode()
    file.write_bytes(text)
    return f"index: {str(value)[:20]}"


def folder_case(seed, folder):
    """One folder of a Hugging Face model."""
    draw = random.Random(seed)
    way = draw.choice((_replaced, _config, _config, _text, _header, _header, _index))
    family = "llama" if way is _index else "qwen2"
    model = copy_golden(family, folder / "model")
    if draw.random() < 0.1:
        return Case("nothing", False, functools.partial(load, model))
    if draw.random() < 0.1:
        file = draw.choice(sorted(model.glob("*.safetensors")))
        content = bytearray(file.read_bytes())
        at = draw.randrange(len(content))
        content[at] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        return Case(f"bit of byte {at}", None, functools.partial(load, model))
    what = way(draw, model)
    return Case(what, True, functools.partial(load, model), (str(model),))


def _tokens(pieces):
    return {
        "ggml.model": "llama",
        "ggml.tokens": pieces,
        "ggml.scores": [0.0] * len(pieces),
        "ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259),
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
    }


@functools.cache
def _whole(place):
    """Bytes of a small GGUF file; written once."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdefgh"]
    path = place / "whole.gguf"
    write_gguf(path, "llama", "F32", ids=_tokens(pieces))
    return path.read_bytes()


def _load_gguf(path, out):
    file = gguf_files.GgufFile(path)
    gguf_files.load_gguf(file, gguf_files.config_from_gguf(file))
    gguf_tokenizer.save_tokenizer(file, out)
    gguf_tokenizer.save_configs(file, out)


def _value(content, name):
    """Where the value of a key of the metadata begins, behind its type."""
    key = name.encode()
    return content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4


def _info(content, name="output_norm.weight"):
    """Where the axes of a tensor of one axis begin."""
    key = name.encode()
    return content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)


def _hostile(draw, content):
    """(what was done, whether it is wrong) to the bytes of a GGUF file, in place."""
    size = len(content)
    huge = draw.choice((2**63, 2**64 - 1, 10**12, size))
    block, count = _value(content, "llama.block_count"), "<I"
    tokens = _value(content, "tokenizer.ggml.tokens")
    scores = _value(content, "tokenizer.ggml.scores")
    axes = _info(content)
    places = {
        "count of tensors": (8, "<Q", huge),
        "count of values": (16, "<Q", huge),
        "length of the first key": (24, "<Q", huge),
        "version": (4, "<I", draw.choice((0, 1, 9, 3 << 24))),
        "magic": (0, "<I", 0),
        "length of a list of texts": (tokens + 4, "<Q", huge),
        "length of a list of numbers": (scores + 4, "<Q", huge),
        "type of a list": (scores, "<I", draw.choice((9, 13, 255, 2**31))),
        "length of a text in a list": (tokens + 12, "<Q", huge),
        "a score is NaN": (scores + 12, "<f", math.nan),
        "layers": (block, count, draw.choice((0, 2**32 - 1, 3))),
        "rms eps": (
            _value(content, "llama.attention.layer_norm_rms_epsilon"),
            "<f",
            draw.choice((math.nan, -1.0, 5.0, 0.0)),
        ),
        "heads": (_value(content, "llama.attention.head_count"), "<I", 2**31),
        "id of the end": (
            _value(content, "tokenizer.ggml.eos_token_id"),
            "<I",
            draw.choice((9**9, 2**32 - 1)),
        ),
        "axes of a tensor": (axes, "<I", draw.choice((5, 2**31))),
        "length of an axis": (axes + 4, "<Q", huge),
        "type of a tensor": (axes + 12, "<I", 9999),
        "place of a tensor": (axes + 16, "<Q", draw.choice((2**64 - 256, 0, 2**40))),
    }
    what = draw.choice(sorted(places))
    at, form, number = places[what]
    struct.pack_into(form, content, at, number)
    return f"{what} = {number}"


def gguf_case(seed, folder):
    """One GGUF file."""
    draw = random.Random(seed)
    content = bytearray(_whole(folder.parent))
    path, out = folder / "model.gguf", folder / "tokenizer"
    attempt = functools.partial(_load_gguf, path, out)
    chance = draw.random()
    named: tuple[str, ...] = (str(path),)
    if chance < 0.1:
        what, wrong, named = "nothing", False, ()
    elif chance < 0.2:
        at = draw.randrange(len(content))
        content[at] ^= 1 << draw.randrange(8)
        what, wrong, named = f"bit of byte {at}", None, ()
    elif chance < 0.35:
        del content[draw.randrange(len(content) - 64) :]
        what, wrong = f"cut off after {len(content)}", True
    elif chance < 0.45:
        content[-64:-60] = np.float32(draw.choice((math.nan, math.inf))).tobytes()
        what, wrong = "a weight that is not finite", True
    else:
        what, wrong = _hostile(draw, content), True
    path.write_bytes(content)
    return Case(what, wrong, attempt, named if wrong else ())
