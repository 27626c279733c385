"""Writes Hugging Face directories, for transformers and vLLM.

Tensors are gathered one at a time and each host writes its own weight files, so that
no host ever holds the model. The directory may be local or on object storage (gs://).
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import PartitionSpec
from safetensors import numpy as safetensors_numpy
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from stepjax.lm import addresses, families, generation_config, hosts, tokenizer, unknown
from stepjax.lm.hf_config import config_from_hf, config_to_hf
from stepjax.lm.json_files import read_json
from stepjax.lm.model_config import ModelConfig
from stepjax.lm.parameter_tensors import parameter_tensors, tensor_names
from stepjax.lm.tokenizer import FILES
from stepjax.lm.weights import load_hf

PROMPTS = "stepjax_prompts.json"  # the texts that an exported model was trained with
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
    pad_id: int | None = None,
    context_length: int | None = None,
    dtype: str = "float32",
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Writes a Hugging Face directory that transformers and vLLM load.

    A local directory appears whole or not at all: it is written under a temporary name
    beside the target and renamed. On object storage config.json is written last, so a
    directory without one is incomplete. On several hosts all of them call this, and
    all must see the directory.

    What the decoder does not need (context length, bos and pad ids, settings of
    sampling, chat template) comes from the config.json, the generation_config.json and
    the further files in `tokenizer_directory`. A run keeps those of its M0 there.

    Args:
      params: the decoder's parameters, numpy or jax arrays.
      config: their config.
      directory: target; must not exist, or be an empty directory.
      tokenizer_directory: where to copy tokenizer files from, and the rest of what
        the model's earlier files say; None copies nothing.
      model_type: a family of `families.FAMILIES`; None takes that of the earlier files
        if it fits the config, else the first that fits.
      stop_ids: token ids that end a generation, the end-of-sequence id first.
      bos_id: beginning-of-sequence id; None takes that of the earlier files.
      pad_id: padding id, if the earlier files have none.
      context_length: ``max_position_embeddings``, if the earlier files have none. None
        takes it from the scaling of Llama 3, else leaves it to transformers' default.
      dtype: "float32" (exact) or "bfloat16" (rounded to nearest even).
      prompts: the texts that the model was trained with, by the names of
        `prompts.Templates`. They are written to `PROMPTS`, and "solve" becomes the
        chat template, so that a user's message is the bare text of a problem. With
        "chat" = "template", the chat template of the earlier files goes around it.

    Raises:
      ValueError: for a target in use, params that do not fit the config, a model
        type that does not fit the config, ids outside the vocabulary, another
        dtype, or a tokenizer_directory without tokenizer files.
    """
    directory = epath.Path(directory)
    remote = addresses.is_address(directory)
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
    fitting = families.fitting(config)
    if model_type is not None and model_type not in fitting:
        raise ValueError(
            f"model_type={model_type!r} does not fit the model; expected one of "
            f"{fitting}. Leave model_type out."
        )
    for token in (*stop_ids, bos_id, pad_id):
        if token is not None and not 0 <= token < config.vocab_size:
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
        pad_id=pad_id,
        dtype=dtype,
        context_length=context_length,
        model_type=model_type,
        earlier=_earlier_config(tokenizer_directory),
    )
    generation = generation_config.of_model(data, stop_ids, tokenizer_directory)
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
        _write_json(temporary / generation_config.NAME, generation)
        for file in copies:
            file.copy(temporary / file.name, overwrite=True)
        if prompts is not None:
            _write_prompts(prompts, tokenizer_directory, temporary)
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


def verify_hf(
    params: Any,
    config: ModelConfig,
    directory: str | os.PathLike,
    *,
    stop_ids: Sequence[int] = (),
    dtype: str = "float32",
    shardings: Any = None,
) -> str:
    """Reads an exported directory again and compares everything with the model.

    On several hosts all of them call this.

    Args:
      params: the decoder's parameters, as `save_hf` was given them.
      config: their config.
      directory: what `save_hf` wrote.
      stop_ids: as `save_hf` was given them.
      dtype: as `save_hf` was given it; the parameters are rounded to it first.
      shardings: of the parameters, as in `weights.load_hf`; None for numpy arrays.

    Returns:
      One sentence that says what was compared.

    Raises:
      ValueError: for files that cannot be read, and for any difference.
    """
    found = config_from_hf(directory)
    for name, value in dataclasses.asdict(config).items():
        numerics = ("dtype", "remat", "attention", "embedding_std")
        if name not in numerics and getattr(found, name) != value:
            raise ValueError(
                f"{directory}: config.json gives {name}={getattr(found, name)!r}; "
                f"expected {value!r}. {_AGAIN}"
            )
    again = traverse_util.flatten_dict(load_hf(directory, found, shardings), sep="/")
    for path, array in traverse_util.flatten_dict(params, sep="/").items():
        different = int(_different(array, again[path], _SAVED[dtype]))
        if different:
            raise ValueError(
                f"{directory}: {different} numbers of the parameter {path} differ from "
                f"the model's; expected none after rounding to {dtype}. {_AGAIN}"
            )
    settings = read_json(epath.Path(directory) / generation_config.NAME)
    if (settings.get("eos_token_id") or []) != list(stop_ids):
        raise ValueError(
            f"{directory}: generation_config.json has "
            f"eos_token_id={settings.get('eos_token_id')}; expected {list(stop_ids)}. "
            f"{_AGAIN}"
        )
    numbers = sum(array.size for array in jax.tree.leaves(params))
    return (
        f"read again: {len(tensor_names(config))} tensors with "
        f"{numbers:,} numbers equal the model's, rounded "
        f"to {dtype}; config.json and the stop ids {list(stop_ids)} are the model's"
    )


def other_ids(
    directory: str | os.PathLike, own: tokenizer.Tokenizer, prompt: str
) -> str:
    """Returns a warning when transformers reads a few texts as other ids than we do.

    Of a folder of some types, such as qwen2, transformers takes the vocabulary only: it
    cuts texts into words by the rules of that type, whatever the tokenizer.json says.

    Args:
      directory: what `save_hf` wrote, on this machine.
      own: the tokenizer of the model.
      prompt: a text that the model is often given.

    Returns:
      Some sentences, or "" when all ids are the same.
    """
    try:
        theirs = AutoTokenizer.from_pretrained(
            os.fspath(directory), local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        return (
            f"warning: transformers cannot read the tokenizer of {directory}: {error}"
        )
    texts = (prompt, *_PROBES)
    lost = unknown.characters(own, texts)  # unknown tokens are not compared
    for text in (text for text, none in zip(texts, lost, strict=True) if not none):
        ids = own.encode_prompt(text, bos=False)
        found = theirs.encode(text, add_special_tokens=False)
        if ids != found:
            return (
                f"warning: AutoTokenizer of transformers reads {text[:60]!r} in "
                f"{directory} as {len(found)} tokens {found[:8]}..., and the model was "
                f"trained on the {len(ids)} tokens {ids[:8]}.... It reads every model "
                "of some types, such as qwen2, by the rules of that type. Use "
                f"PreTrainedTokenizerFast.from_pretrained({str(directory)!r}), which "
                "reads the tokenizer.json as it is."
            )
    return ""


_PROBES = (
    "12345 + 67.5 = 12412.5",
    "Step 1: They're here, don't  wait.\n\n\tSo \\frac{1}{2} of 3*(4-1)\n",
    "Gr\u00f6\u00dfe \u2264 \u4e2d\u6587",
)
_AGAIN = "Remove the directory and export again."


def _different(one, other, dtype: np.dtype):
    """Counts the numbers of `other` that are not those of `one`, rounded."""
    if isinstance(other, np.ndarray):
        return (np.asarray(one).astype(dtype).astype(np.float32) != other).sum()

    def count(a, b):
        return jnp.sum(a.astype(dtype).astype(jnp.float32) != b)

    whole = jax.sharding.NamedSharding(other.sharding.mesh, PartitionSpec())
    return jax.jit(count, out_shardings=whole)(one, other)  # on every host


def _checked(params, config) -> dict[str, Any]:
    """Returns params by path once they fit the config."""
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {tensor.path: tensor for tensor in parameter_tensors(config)}
    for path in sorted(tensors.keys() ^ flat.keys()):
        word = "missing" if path in tensors else "extra"
        raise ValueError(
            f"parameter {path} is {word}; expected the tree of this config "
            f"(qkv_bias={config.qkv_bias}, qk_norm={config.qk_norm}, "
            f"tie_embeddings={config.tie_embeddings})."
        )
    for path, tensor in tensors.items():
        shape = tensor.leading(config) + tensor.shape
        if flat[path].shape != shape:
            raise ValueError(
                f"parameter {path} has a wrong shape; expected {shape}, found "
                f"{flat[path].shape}. Pass the config that the parameters were made "
                "with."
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


def _earlier_config(directory) -> dict[str, Any]:
    """Returns what an earlier config.json of the model holds, {} without one."""
    file = None if directory is None else epath.Path(directory) / "config.json"
    return read_json(file) if file is not None and file.exists() else {}


def _write_prompts(prompts: Mapping[str, str], tokenizer_directory, directory) -> None:
    """Writes the prompts, and the chat template that puts "solve" around a problem."""
    text = json.dumps(dict(prompts), indent=2, ensure_ascii=False) + "\n"
    (directory / PROMPTS).write_text(text)
    own = tokenizer.load(tokenizer_directory)
    template = own.chat_template(prompts["solve"], around=prompts["chat"] == "template")
    (directory / "chat_template.jinja").write_text(template)
    config = directory / "tokenizer_config.json"
    kept = read_json(config) if config.exists() else {}
    if kept.pop("chat_template", None) is not None:  # the file takes its place
        _write_json(config, kept)


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
    if addresses.is_address(file):
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
