"""Reads the weights of Hugging Face directories.

Parameters are float32, or in the type that is asked for. Matrices are [in, out] where
the files hold [out, in], heads have an axis of their own, and layers are stacked on a
leading axis. Tensors are read one by one, into sharded arrays when shardings are given:
each host reads some rows of each tensor and the devices exchange them, so that no host
ever holds the model. Directories may be local or on object storage (gs://...), through
`etils.epath`.
"""

import functools
import math
import os
import re
import reprlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from stepjax.lm import pieces
from stepjax.lm.json_files import read_json
from stepjax.lm.model_config import ModelConfig
from stepjax.lm.parameter_tensors import (
    EMBEDDING,
    Tensor,
    parameter_tensors,
    tensor_names,
)
from stepjax.lm.tensor_files import KINDS, Stored, stored_tensors


class Source(Protocol):
    """Where a tensor is read from: a safetensors file or a GGUF file.

    Attributes:
      file: path of the file.
      shape: as in the file.
    """

    @property
    def file(self) -> Any: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the rows first..last (not included) of the tensor."""
        ...


def _stored(directory: epath.Path) -> dict[str, Stored]:
    """Returns name → place of each tensor; {} when there are no weight files."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.exists():
        return stored_tensors(single)
    if not index.exists():
        return {}
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(
            f"{index}: no weight_map; expected the file of every tensor. Download it "
            "again."
        )
    for name in shards.values():
        if not _is_name(name):
            raise ValueError(
                f"{index}: a tensor is in the file {reprlib.repr(name)}; expected the "
                "name of a file in this folder, such as model-00001-of-00002."
                "safetensors. Download it again."
            )
    located: dict[str, Stored] = {}
    for name in sorted(set(shards.values())):
        found = stored_tensors(directory / name)
        for tensor in found:
            wanted = shards.get(tensor, name)
            if wanted == name and tensor in located:
                wanted = located[tensor].file.name
            if wanted != name:
                raise ValueError(
                    f"{index}: tensor {tensor} is in {name} and should be in {wanted}; "
                    "expected every tensor once, in the file that weight_map names. "
                    "Download the files again."
                )
        located |= found
    return located


def _is_name(value: Any) -> bool:
    """Whether a value is the name of a file, and no path that leaves its folder."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"[\w.+ -]{1,255}", value) is not None
        and value.endswith(".safetensors")
    )


def load_hf(
    directory: str | os.PathLike,
    config: ModelConfig,
    shardings: Any = None,
    dtype: str = "float32",
    form: str = "full",
) -> dict[str, Any]:
    """Reads the weights of a Hugging Face directory, tensor by tensor.

    ``rotary_emb.inv_freq`` buffers of old files are skipped, and so is an
    ``lm_head.weight`` beside tied embeddings when it equals them.

    Args:
      directory: holds model.safetensors, or model.safetensors.index.json and its
        shards; float32, bfloat16 or float16. Local, or gs://...
      config: from `hf_config.config_from_hf`.
      shardings: of the parameters, from `sharding.param_shardings`; on several hosts
        all of them call this. None reads into the host's memory.
      dtype: of the parameters; each tensor is rounded to it when it is read.
      form: "full"; or "int8", which needs shardings, for matrices of the layers that
        are rounded to integers when they are read, see `int8`.

    Returns:
      The decoder's parameters, a nested dict of arrays (numpy arrays without
      shardings). The first axis of the arrays under "layers" is the layer.

    Raises:
      ValueError: for missing, damaged or quantised files, and for a tensor that is
        missing, extra or of a wrong shape.
    """
    directory = epath.Path(directory)
    located = _stored(directory)
    if not located:
        raise ValueError(
            f"{directory}: no model.safetensors or model.safetensors.index.json; "
            "expected one of them. Convert other weight files with transformers' "
            "save_pretrained."
        )
    names = tensor_names(config)
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
        raise ValueError(
            f"{directory}: tensor {name} is extra; expected none, found shape "
            f"{located[name].shape}. The decoder has no place for it: take the "
            "config.json that belongs to the weights, or another checkpoint."
        )
    for name, (tensor, _) in names.items():
        _check_tensor(located[name], name, tensor.stored, directory)
    params, counts = place(located, config, shardings, dtype, form)
    if copied:
        table = names[EMBEDDING][0]
        _check_tensor(located[head], head, table.stored, directory)
        again = _read(located[head], table, (shardings or {}).get("embedding"))
        if not bool(_equal(again, params["embedding"])):
            raise ValueError(
                f"{directory}: {head} differs from model.embed_tokens.weight though "
                "config.json says tie_word_embeddings=true; expected equal tensors. "
                "Set tie_word_embeddings=false if the model really has both."
            )
    refuse(counts, config, directory, "Download the weights again.")
    return params


def place(
    sources: Mapping[str, Source],
    config: ModelConfig,
    shardings: Any = None,
    dtype: str = "float32",
    form: str = "full",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads every tensor of a decoder from its source into the tree of parameters.

    Args:
      sources: name in `tensor_names` → where the tensor is read from; of the shape
        that `Tensor.stored` says.
      config: of the decoder.
      shardings: as in `load_hf`.
      dtype: as in `load_hf`.
      form: as in `load_hf`.

    Returns:
      (the parameters, see `load_hf`; what `refuse` needs).
    """
    names = tensor_names(config)
    by_file = sorted(names, key=lambda name: (str(sources[name].file), name))
    if shardings is None:
        flat = {
            tensor.path: _empty(tensor.leading(config) + tensor.shape, None, dtype)
            for tensor in parameter_tensors(config)
        }
        for name in by_file:
            _put(flat, sources[name], *names[name])
        params = traverse_util.unflatten_dict(flat, sep="/")
        return params, _counts(params, config)
    holders = pieces.holders(config, shardings, dtype, form)
    arrays = {
        path: tuple(_empty(*target) for target in holder.targets)
        for path, holder in holders.items()
    }
    every = parameter_tensors(config)
    counts = {tensor.path: np.zeros(tensor.leading(config), int) for tensor in every}
    for name in by_file:
        tensor, layer = names[name]
        own = {"tensor": tensor, "holder": holders[tensor.path]}
        rows = _read(sources[name], tensor, holders[tensor.path].split)
        arrays[tensor.path], bad = _insert(arrays[tensor.path], rows, layer, **own)
        del rows
        place = layer if tensor.stacked else ()
        counts[tensor.path][place] = np.asarray(bad)  # waits for it
    return pieces.tree(arrays), counts


def check_finite(params: Any, config: ModelConfig, origin: Any, remedy: str) -> None:
    """Raises ValueError when a parameter holds numbers that are not finite.

    A model with such a parameter would write the same token for ever.

    Args:
      params: the decoder's parameters, numpy or jax arrays.
      config: of the decoder.
      origin: where they come from, for people.
      remedy: a sentence that says what to do.
    """
    refuse(_counts(params, config), config, origin, remedy)


def refuse(
    counts: Mapping[str, np.ndarray], config: ModelConfig, origin: Any, remedy: str
) -> None:
    """Raises ValueError when a parameter has numbers that are not finite.

    Args:
      counts: path of each parameter → how many such numbers each of its layers has,
        [L]; or [], of an array that holds no layers.
      config: of the decoder.
      origin: where they come from, for people.
      remedy: a sentence that says what to do.
    """
    for tensor in parameter_tensors(config):
        of_layers = np.atleast_1d(counts[tensor.path])
        layer = int(np.argmax(of_layers > 0))
        if of_layers[layer]:
            raise ValueError(
                f"{origin}: {of_layers[layer]} of the {math.prod(tensor.shape)} "
                f"numbers of {tensor.name.format(layer=layer)} are NaN or infinite; "
                f"expected finite numbers only. {remedy}"
            )


def _counts(params: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns what `refuse` needs of the decoder's parameters."""
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = parameter_tensors(config)
    return {t.path: _not_finite(flat[t.path], t.stacked) for t in tensors}


def _not_finite(array, stacked: bool) -> np.ndarray:
    """Counts the numbers that are not finite: of each layer, or of the array."""
    if isinstance(array, jax.Array):
        mesh = getattr(array.sharding, "mesh", None)
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        return np.asarray(_count_not_finite(array, stacked, whole))
    layers = array if stacked else array[None]
    return np.array([layer.size - np.isfinite(layer).sum() for layer in layers])


@functools.partial(jax.jit, static_argnames=("stacked", "whole"))
def _count_not_finite(array, stacked, whole):
    counts = jnp.sum(~jnp.isfinite(array), tuple(range(int(stacked), array.ndim)))
    if whole is None:
        return counts
    return jax.lax.with_sharding_constraint(counts, whole)  # on every host


def _check_tensor(stored: Stored, name: str, expected, directory) -> None:
    if stored.shape != expected:
        raise ValueError(
            f"{directory}: tensor {name} has a wrong shape; expected {expected}, found "
            f"{stored.shape}. Take the config.json that belongs to the weights."
        )
    if stored.kind not in KINDS:
        remedy = "Use a checkpoint that is not quantised."
        if stored.kind == "F64":
            remedy = "Save it again in float32, e.g. with transformers."
        raise ValueError(
            f"{directory}: tensor {name} is {stored.kind}; expected one of "
            f"{tuple(KINDS)}. {remedy}"
        )


def _empty(shape: tuple[int, ...], split: NamedSharding | None, dtype: str):
    """Returns an array for a parameter, on the host or split over devices."""
    if split is None:
        return np.empty(shape, jnp.dtype(dtype))
    return pieces.empty(shape, split, dtype)


def _stored_axes(tensor: Tensor, split: NamedSharding) -> list[str]:
    """Returns the mesh axes of a tensor as stored: of its rows, then its columns."""
    axes = [axis for axis in split.spec if axis is not None]
    return axes[::-1] if tensor.transposed else axes


def _dividing(axes: list[str], mesh: jax.sharding.Mesh, count: int) -> PartitionSpec:
    """Splits `count` rows over as many of the axes, from the first, as divide them."""
    taken, ways = [], 1
    for axis in axes:
        ways *= mesh.shape[axis]
        if count % ways:
            break
        taken.append(axis)
    return PartitionSpec(tuple(taken))


def rows_split(tensor: Tensor, split: NamedSharding) -> NamedSharding:
    """Returns how a tensor in the shape of its file is split over the devices: by rows.

    The mesh axis that splits the rows in the parameter too comes first in the split, so
    that `_insert` exchanges only what the other mesh axes split.

    Args:
      tensor: the parameter.
      split: its sharding.
    """
    axes = _stored_axes(tensor, split)
    axes = [*axes, "data"] if axes else []
    return NamedSharding(split.mesh, _dividing(axes, split.mesh, tensor.stored[0]))


def _read(source: Source, tensor: Tensor, split: NamedSharding | None):
    """Reads a tensor in the shape of its file, with its rows split over the devices."""
    count = source.shape[0]
    if split is None:
        return source.rows(0, count)

    @functools.cache  # devices that hold the same rows read them once
    def rows(first, last):
        return source.rows(first, last)

    def part(index):
        first, last, _ = index[0].indices(count)
        return rows(first, last)

    return jax.make_array_from_callback(source.shape, rows_split(tensor, split), part)


def _put(flat: dict, source: Source, tensor: Tensor, layer: int | None) -> None:
    """Writes a tensor of a file into its parameter in the host's memory."""
    rows = _read(source, tensor, None)
    array = rows.T if tensor.transposed else rows
    target = flat[tensor.path] if layer is None else flat[tensor.path][layer]
    target[...] = array.reshape(tensor.shape)


@functools.partial(
    jax.jit, static_argnames=("tensor", "holder"), donate_argnames=("into",)
)
def _insert(into, rows, layer, *, tensor: Tensor, holder: pieces.Holder):
    """Returns the arrays with a tensor of a file in them, see `Holder.write`."""
    split = holder.split
    axes = _stored_axes(tensor, split)
    together = _dividing(axes, split.mesh, len(rows))
    for spec in (together, PartitionSpec(*axes)):  # first gathered over `data`
        rows = jax.lax.with_sharding_constraint(rows, NamedSharding(split.mesh, spec))
    array = rows.T if tensor.transposed else rows
    return holder.write(into, array.reshape(tensor.shape), layer)


def _equal(one, other):
    if isinstance(other, np.ndarray):
        return np.array_equal(one.astype(other.dtype), other)
    return jax.jit(lambda a, b: (a.astype(b.dtype) == b).all())(one, other)
