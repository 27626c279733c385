"""Hugging Face directories of Qwen2 and Llama models, read and written.

Parameters are float32 on the host, matrices as [in, out] where the files hold
[out, in], heads apart, and the layers stacked on a leading axis.
"""

import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stepjax.lm.hf_config import (
    config_from_hf,
    config_to_hf,
    fitting_model_type,
    read_json,
)
from stepjax.lm.model import ModelConfig

__all__ = ["config_from_hf", "load_hf", "save_hf"]

_SHARD_BYTES = 5 * 10**9  # largest weight file, unless one tensor is larger
_FLOATS = ("F32", "BF16", "F16")
_SAVED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


class _Tensor(NamedTuple):
    """One parameter: where it is in the tree and in the files, per layer."""

    path: str  # "layers/..." has one tensor a layer, stacked in the tree
    name: str  # with "{layer}" for those
    shape: tuple[int, ...]  # ours, without the axis of layers
    stored: tuple[int, ...]  # in the file

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")

    @property
    def transposed(self) -> bool:
        return self.stacked and len(self.stored) == 2


def _tensors(config: ModelConfig) -> list[_Tensor]:
    embed, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
    table = (config.vocab_size, embed)
    found = [_Tensor("embedding", "model.embed_tokens.weight", table, table)]
    if not config.tie_embeddings:
        found.append(_Tensor("unembedding", "lm_head.weight", table, table))
    found.append(_Tensor("final_norm/scale", "model.norm.weight", (embed,), (embed,)))

    def layer(path, name, shape, stored):
        name = f"model.layers.{{layer}}.{name}"
        found.append(_Tensor(f"layers/{path}", name, shape, stored))

    layer("attention_norm/scale", "input_layernorm.weight", (embed,), (embed,))
    layer("mlp_norm/scale", "post_attention_layernorm.weight", (embed,), (embed,))
    projections = (
        ("query", "q", config.num_heads),
        ("key", "k", config.num_kv_heads),
        ("value", "v", config.num_kv_heads),
    )
    for path, letter, heads in projections:
        name, flat = f"self_attn.{letter}_proj", heads * size
        layer(path, f"{name}.weight", (embed, heads, size), (flat, embed))
        if config.qkv_bias:
            layer(f"{path}_bias", f"{name}.bias", (heads, size), (flat,))
    heads = config.num_heads
    stored = (embed, heads * size)
    layer("out", "self_attn.o_proj.weight", (heads, size, embed), stored)
    layer("gate", "mlp.gate_proj.weight", (embed, inner), (inner, embed))
    layer("up", "mlp.up_proj.weight", (embed, inner), (inner, embed))
    layer("down", "mlp.down_proj.weight", (inner, embed), (embed, inner))
    return found


def _names(config: ModelConfig) -> dict[str, tuple[_Tensor, int | None]]:
    """Returns file name of each tensor → (its entry, its layer or None)."""
    names = {}
    tensors = _tensors(config)
    for tensor in tensors:
        if not tensor.stacked:
            names[tensor.name] = (tensor, None)
    for index in range(config.num_layers):
        for tensor in tensors:
            if tensor.stacked:
                names[tensor.name.format(layer=index)] = (tensor, index)
    return names


def _tensor_files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the file of each tensor; empty when there are no weight files."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.exists():
        files = [single]
    elif index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index}: no weight_map; download it again.")
        files = [directory / name for name in sorted(set(shards.values()))]
    else:
        return {}
    located = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as handle:
                located.update(dict.fromkeys(handle.keys(), file))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{file}: missing or damaged ({error}); download it again."
            ) from error
    return located


def load_hf(directory: str | os.PathLike, config: ModelConfig) -> dict[str, Any]:
    """Reads the weights of a Hugging Face directory, tensor by tensor.

    ``rotary_emb.inv_freq`` buffers of old files are skipped, and so is an
    ``lm_head.weight`` beside tied embeddings when it equals them.

    Args:
      directory: holds model.safetensors, or model.safetensors.index.json and its
        shards; float32, bfloat16 or float16.
      config: from `config_from_hf`.

    Returns:
      The decoder's parameters, a nested dict of float32 numpy arrays; the arrays of
      "layers" lead with the axis of layers.

    Raises:
      ValueError: for missing, damaged or quantised files, and for a tensor that is
        missing, extra or of a wrong shape.
    """
    directory = pathlib.Path(directory)
    located = _tensor_files(directory)
    if not located:
        raise ValueError(
            f"{directory}: no model.safetensors or model.safetensors.index.json; "
            "convert other weight files with transformers' save_pretrained."
        )
    names = _names(config)
    head = "lm_head.weight"
    copied = config.tie_embeddings and head in located
    for name in sorted(names.keys() - located.keys()):
        raise ValueError(
            f"{directory}: tensor {name} is missing; expected shape "
            f"{names[name][0].stored}, found none. Download the weights again, or "
            "take the config.json that belongs to them."
        )
    for name in sorted(located.keys() - names.keys()):
        if name.endswith("rotary_emb.inv_freq") or (copied and name == head):
            continue
        with safe_open(located[name], framework="numpy") as handle:
            shape = tuple(handle.get_slice(name).get_shape())
        raise ValueError(
            f"{directory}: tensor {name} is extra; expected none, found shape {shape}. "
            "The decoder has no place for it: take the config.json that belongs to "
            "the weights, or another checkpoint."
        )
    flat = {}
    for tensor in _tensors(config):
        leading = (config.num_layers,) if tensor.stacked else ()
        flat[tensor.path] = np.empty(leading + tensor.shape, np.float32)
    for file in sorted(set(located.values())):
        with safe_open(file, framework="numpy") as handle:
            for name in sorted(names.keys() & set(handle.keys())):
                tensor, layer = names[name]
                array = _read_tensor(handle, name, tensor.stored, directory)
                array = array.T if tensor.transposed else array
                into = flat[tensor.path] if layer is None else flat[tensor.path][layer]
                into[...] = array.reshape(tensor.shape)
    if copied:
        embedding = flat["embedding"]
        with safe_open(located[head], framework="numpy") as handle:
            array = _read_tensor(handle, head, embedding.shape, directory)
        if not np.array_equal(array.astype(np.float32), embedding):
            raise ValueError(
                f"{directory}: {head} differs from model.embed_tokens.weight though "
                "config.json says tie_word_embeddings=true; expected equal tensors. "
                "Set tie_word_embeddings=false if the model really has both."
            )
    return traverse_util.unflatten_dict(flat, sep="/")


def _read_tensor(handle, name, expected, directory) -> np.ndarray:
    part = handle.get_slice(name)
    shape, kind = tuple(part.get_shape()), part.get_dtype()
    if shape != expected:
        raise ValueError(
            f"{directory}: tensor {name} has a wrong shape; expected {expected}, found "
            f"{shape}. Take the config.json that belongs to the weights."
        )
    if kind not in _FLOATS:
        raise ValueError(
            f"{directory}: tensor {name} is {kind}; expected one of {_FLOATS}. Use a "
            "checkpoint that is not quantised."
        )
    return handle.get_tensor(name)


def save_hf(
    params: Any,
    config: ModelConfig,
    directory: str | os.PathLike,
    *,
    tokenizer_directory: str | os.PathLike | None = None,
    model_type: str | None = None,
    stop_ids: Sequence[int] = (),
    bos_id: int | None = None,
    dtype: str = "float32",
) -> None:
    """Writes a Hugging Face directory that transformers and vLLM load.

    The directory appears whole or not at all: it is written beside the target and
    renamed. ``max_position_embeddings``, which the decoder has no use for, is taken
    from the config.json beside the tokenizer files when there is one; otherwise it
    is what Llama 3's scaling reaches, or left to transformers' default.

    Args:
      params: the decoder's parameters, numpy or jax arrays.
      config: their config.
      directory: target; must not exist, or be an empty directory.
      tokenizer_directory: where to copy tokenizer files from; None copies none.
      model_type: "qwen2" (with qkv_bias) or "llama" (without); None takes the one
        that fits.
      stop_ids: token ids that end a generation, the end-of-sequence id first.
      bos_id: beginning-of-sequence id, None when there is none.
      dtype: "float32" (exact) or "bfloat16" (rounded to nearest even).

    Raises:
      ValueError: for a target in use, params that do not fit the config, a model
        type that does not fit its biases, ids outside the vocabulary, another
        dtype, or a tokenizer_directory without tokenizer files.
    """
    directory = pathlib.Path(os.path.abspath(directory))
    in_use = directory.exists() and not directory.is_dir()
    if in_use or (directory.is_dir() and any(directory.iterdir())):
        raise ValueError(
            f"{directory} exists and is not empty; expected a new or an empty "
            "directory. Choose another one or remove it first."
        )
    if dtype not in _SAVED:
        raise ValueError(f"dtype={dtype!r}; expected one of {tuple(_SAVED)}.")
    stop_ids = tuple(int(token) for token in stop_ids)
    bos_id = None if bos_id is None else int(bos_id)
    fitting = fitting_model_type(config)
    if model_type not in (None, fitting):
        raise ValueError(
            f"model_type={model_type!r} with qkv_bias={config.qkv_bias}; expected "
            f"{fitting!r}. Leave model_type out."
        )
    for token in (*stop_ids, *(() if bos_id is None else (bos_id,))):
        if not 0 <= token < config.vocab_size:
            raise ValueError(
                f"token id {token} is outside the vocabulary; expected 0 to "
                f"{config.vocab_size - 1}. Use the tokenizer of this model."
            )
    flat = _checked(params, config)
    copies = _tokenizer_files(tokenizer_directory)
    data = config_to_hf(
        config,
        stop_ids=stop_ids,
        bos_id=bos_id,
        dtype=dtype,
        beside=tokenizer_directory,
    )
    generation = {"bos_token_id": bos_id, "eos_token_id": list(stop_ids) or None}
    temporary = directory.parent / f".{directory.name}.tmp-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        _write_json(temporary / "config.json", data)
        _write_json(temporary / "generation_config.json", generation)
        for file in copies:
            shutil.copyfile(file, temporary / file.name)
        _write_weights(flat, config, temporary, _SAVED[dtype])
        for file in [*temporary.iterdir(), temporary]:
            _sync(file)
        os.rename(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(directory.parent)


def _checked(params, config) -> dict[str, Any]:
    """Returns params by path once they fit the config."""
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {tensor.path: tensor for tensor in _tensors(config)}
    for path in sorted(tensors.keys() ^ flat.keys()):
        word = "missing" if path in tensors else "extra"
        raise ValueError(
            f"parameter {path} is {word}; expected the tree of this config "
            f"(qkv_bias={config.qkv_bias}, tie_embeddings={config.tie_embeddings})."
        )
    for path, tensor in tensors.items():
        leading = (config.num_layers,) if tensor.stacked else ()
        if flat[path].shape != leading + tensor.shape:
            raise ValueError(
                f"parameter {path} has a wrong shape; expected "
                f"{leading + tensor.shape}, found {flat[path].shape}. Pass the config "
                "that the parameters were made with."
            )
    return flat


def _tokenizer_files(directory) -> list[pathlib.Path]:
    if directory is None:
        return []
    files = [pathlib.Path(directory) / name for name in _TOKENIZER_FILES]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(
            f"tokenizer_directory={str(directory)!r} has none of {_TOKENIZER_FILES}; "
            "expected a directory with tokenizer files."
        )
    return files


def _write_json(path: pathlib.Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _write_weights(flat, config, directory, dtype) -> None:
    """Writes one weight file, or shards and their index; one shard in memory."""
    names = _names(config)
    shards, size, total = [[]], 0, 0
    for name, (tensor, _) in names.items():
        count = int(np.prod(tensor.stored)) * dtype.itemsize
        if shards[-1] and size + count > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += count
        total += count
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = directory / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            file = directory / "model.safetensors"
        arrays = {}
        for name in shard:
            tensor, layer = names[name]
            leaf = flat[tensor.path]
            array = np.asarray(leaf if layer is None else leaf[layer])
            if tensor.transposed:
                array = array.reshape(tensor.stored[::-1]).T
            array = array.reshape(tensor.stored).astype(dtype)
            arrays[name] = np.ascontiguousarray(array)
            weight_map[name] = file.name
        save_file(arrays, file, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", file)  # save_file makes it private
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
