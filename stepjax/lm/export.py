"""Writes Hugging Face directories, for transformers and vLLM.

Tensors are gathered one at a time and each host writes its own weight files, so that
no host ever holds the model. The directory may be local or on object storage (gs://).
"""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import PartitionSpec
from safetensors import numpy as safetensors_numpy
from safetensors.numpy import save_file

from stepjax.lm import hosts
from stepjax.lm.hf_config import config_to_hf, fitting_model_type
from stepjax.lm.model import ModelConfig
from stepjax.lm.tokenizer import FILES
from stepjax.lm.weights import parameter_tensors, tensor_names

_SHARD_BYTES = 5 * 10**9  # of the largest weight file, unless one tensor is larger
_SAVED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


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

    A local directory appears whole or not at all: it is written under a temporary name
    beside the target and renamed. On object storage config.json is written last, so a
    directory without one is incomplete. On several hosts all of them call this, and
    all must see the directory. The decoder does not need ``max_position_embeddings``:
    it is taken from the config.json beside the tokenizer files when there is one, else
    from the scaling of Llama 3, else left to transformers' default.

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
    directory = epath.Path(directory)
    remote = "://" in os.fspath(directory)
    directory = directory if remote else directory.absolute()
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
    temporary = directory if remote else directory.parent / f".{directory.name}.tmp"
    if hosts.first():
        if not remote and temporary.exists():
            temporary.rmtree()  # of an export that was killed
        temporary.mkdir(parents=True, exist_ok=True)
    hosts.barrier("export begun")
    try:
        _write_weights(flat, config, temporary, _SAVED[dtype])
        hosts.barrier("weights exported")
        if not hosts.first():
            return
        _write_json(temporary / "generation_config.json", generation)
        for file in copies:
            file.copy(temporary / file.name, overwrite=True)
        _write_json(temporary / "config.json", data)
        if remote:
            return
        for file in [*temporary.iterdir(), temporary]:
            _sync(file)
        os.rename(temporary, directory)
    except BaseException:
        if hosts.first():
            temporary.rmtree(missing_ok=True)
        raise
    _sync(directory.parent)


def _checked(params, config) -> dict[str, Any]:
    """Returns params by path once they fit the config."""
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {tensor.path: tensor for tensor in parameter_tensors(config)}
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


def _tokenizer_files(directory) -> list[epath.Path]:
    if directory is None:
        return []
    files = [epath.Path(directory) / name for name in FILES]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(
            f"tokenizer_directory={str(directory)!r} has none of {FILES}; "
            "expected a directory with tokenizer files."
        )
    return files


def _write_json(path: epath.Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _write_weights(flat, config, directory, dtype) -> None:
    """Writes one weight file, or several and their index.

    With n hosts, each host writes every n-th file and has one file in memory at a time;
    all hosts take part in gathering every tensor.
    """
    names = tensor_names(config)

    def size(entry):
        tensor, _ = entry
        return math.prod(tensor.stored) * dtype.itemsize

    plan = huggingface_hub.split_state_dict_into_shards_factory(
        names,
        get_storage_size=size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=_SHARD_BYTES,
    )
    for number, (file, inside) in enumerate(plan.filename_to_tensors.items()):
        mine, arrays = number % hosts.count() == hosts.index(), {}
        for name in inside:
            tensor, layer = names[name]
            array = _gather(flat[tensor.path], layer, dtype)
            if mine:
                if tensor.transposed:
                    array = array.reshape(tensor.stored[::-1]).T
                arrays[name] = np.ascontiguousarray(array.reshape(tensor.stored))
        if mine:
            _write_tensors(arrays, directory / file)
    if plan.is_sharded and hosts.first():
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(directory / "model.safetensors.index.json", index)


def _gather(leaf, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """Returns a parameter, or its part of one layer, on every host."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:

        def take(x, n):
            return (x if layer is None else x[n]).astype(dtype)

        whole = jax.sharding.NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return np.asarray(jax.jit(take, out_shardings=whole)(leaf, layer or 0))
    return np.asarray(leaf if layer is None else leaf[layer]).astype(dtype)


def _write_tensors(arrays: dict[str, np.ndarray], file: epath.Path) -> None:
    metadata = {"format": "pt"}
    if "://" in os.fspath(file):
        file.write_bytes(safetensors_numpy.save(arrays, metadata))
        return
    save_file(arrays, file, metadata=metadata)
    os.chmod(file, 0o666 & ~_umask())  # save_file makes it private


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: epath.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
