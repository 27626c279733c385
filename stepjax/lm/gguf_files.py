"""Reads GGUF files of all families of models: the config and the weights.

A GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) holds metadata,
the tokenizer (`stepjax.lm.gguf_tokenizer`) and the tensors of a model, which are
usually quantised. The `gguf` package reads the file and dequantises its tensors to
float32, some rows at a time. Nothing here needs torch.
"""

import os
import reprlib
from typing import Any

import numpy as np

from stepjax.lm import addresses, families, gguf_header, limits, weights
from stepjax.lm.gguf_tensors import GgufTensor, check_kind, hugging_face_name
from stepjax.lm.model_config import ModelConfig
from stepjax.lm.parameter_tensors import tensor_names

# Architecture of a file → model type of `families`; Mistral is written as "llama".
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}
_NONE = ("expert_count", "attn_logit_softcapping", "final_logit_softcapping")
# What llama.cpp takes for Gemma 3 where a file says nothing.
_GEMMA3_PERIOD, _GEMMA3_LOCAL_THETA = 6, 10000.0
_GEMMA3_27B = 62  # layers of the one model whose scores are scaled in another way
_ROPE_TABLE = "rope_freqs.weight"
# Scale factors of the Llama 3 models; the file holds only the table made from them.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}


class GgufFile:
    """An open GGUF file: its metadata and the places of its tensors.

    Attributes:
      path: of the file.
      metadata: key → value; numbers, texts, truth values, or lists of them.
      tensors: name → the `gguf.ReaderTensor` of a tensor; its data are mapped from the
        file and not in memory.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a file and reads everything but its tensors.

        Raises:
          ValueError: when the `gguf` package is missing, and for a file that is
            missing, damaged or no GGUF file.
        """
        try:
            import gguf
        except ImportError as error:
            raise ValueError(
                f"{path}: the Python package gguf is not installed; expected it, "
                'because it reads GGUF files. Run: pip install -e ".[gguf]"'
            ) from error
        self.path = os.fspath(path)
        if addresses.is_address(self.path):
            raise ValueError(
                f"{self.path} is not on a disk of this machine; expected a local "
                "file, because GGUF files are mapped into memory. Copy it here first."
            )
        if not os.path.isfile(self.path):
            raise ValueError(
                f"{self.path}: no such file; expected a GGUF file. Check the path in "
                "gguf:FILE."
            )
        try:
            gguf_header.check(self.path)
            reader = gguf.GGUFReader(self.path)
            length = os.path.getsize(self.path)
            gguf_header.check_places(reader.tensors, reader.data_offset, length)
            self.metadata = {
                name: field.contents() for name, field in reader.fields.items()
            }
        except Exception as error:  # the package raises whatever it stumbles over
            raise ValueError(
                f"{self.path}: damaged or not a GGUF file ({error}); expected a whole "
                "GGUF file of version 2 or 3. Download it again."
            ) from error
        parts = self.metadata.get("split.count", 1)
        if parts != 1:
            raise ValueError(
                f"{self.path}: this is one of {reprlib.repr(parts)} files of a model; "
                "expected one file with all of it. Merge them with llama.cpp's "
                "llama-gguf-split --merge."
            )
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Returns a value of the metadata.

        Args:
          key: its name.
          kind: int, float, str, bool or list; float also takes whole numbers.
          default: value of a key that is missing; with None, the key must be there.

        Raises:
          ValueError: for a key that is missing or has a value of another kind.
        """
        value = self.metadata.get(key, default)
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (kind is not bool and value is True):
            found = "none" if value is None else reprlib.repr(value)
            raise ValueError(
                f"{self.path}: metadata {key} has the value {found}; expected one of "
                f"type {kind.__name__}. Convert the model again with llama.cpp's "
                "convert_hf_to_gguf.py, or use its Hugging Face directory."
            )
        return kind(value)

    def positive(
        self, key: str, field: str, default: Any = None, kind: type = int
    ) -> Any:
        """Returns a number of the metadata within the limits of a field; see `get`.

        Args:
          key: its name.
          field: of `limits.NUMBERS`.
          default: see `get`.
          kind: int or float.
        """
        value = self.get(key, kind, default)
        if not limits.believed(field, value):
            raise self.unsupported(key, value, f"a number from {limits.words(field)}")
        return value

    def unsupported(self, key: str, value: Any, expected: str) -> ValueError:
        """Returns the error for a value that the decoder does not compute."""
        shown = reprlib.repr(value)
        return ValueError(
            f"{self.path}: metadata {key}={shown} is not supported; expected "
            f"{expected}. Use a model of {families.NAMES} that has it."
        )


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """Returns the config of the model in a GGUF file.

    Every value comes from the file. Three keys may be missing, and then have the
    meaning that the format gives them: as many key/value heads as heads, heads of size
    embedding_length / head_count, and for Llama a RoPE base of 10000. The vocabulary
    has as many ids as the embedding has rows. Embeddings are tied when there is no
    tensor ``output.weight``. Biases are there when the file has them. Of Gemma 3 the
    file says neither which layers are local (each but every sixth one) nor their base
    of the positions (10000) nor the scale of the 27B model, so they are known here.

    Raises:
      ValueError: for another architecture, a missing or mistyped value, and for
        anything that the decoder does not compute.
    """
    family = file.get("general.architecture", str)
    if family not in ARCHITECTURES:
        expected = f"one of {tuple(ARCHITECTURES)}"
        raise file.unsupported("general.architecture", family, expected)
    key = f"{family}.{{}}".format
    for name in _NONE:
        if file.metadata.get(key(name)):
            raise file.unsupported(key(name), file.metadata[key(name)], "none")
    values = families.FAMILIES[ARCHITECTURES[family]].all_values
    values["qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
    width = file.positive(key("embedding_length"), "hidden_size")
    heads = file.positive(key("attention.head_count"), "num_heads")
    if key("attention.key_length") not in file.metadata and width % heads:
        raise file.unsupported(
            key("embedding_length"), width, f"a multiple of head_count={heads}"
        )
    head_dim = file.positive(key("attention.key_length"), "head_dim", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        size = file.positive(key(name), "head_dim", head_dim)
        if size != head_dim:
            raise file.unsupported(key(name), size, f"the head size, {head_dim}")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ValueError(
            f"{file.path}: tensor token_embd.weight is missing or no matrix; expected "
            "the embedding of a model. Use a file that holds a language model."
        )
    theta = 10000.0 if family == "llama" else None
    layers = file.positive(key("block_count"), "num_layers")
    if file.metadata.get(key("attention.sliding_window")):
        values |= _windows(file, family, layers)
    if family == "gemma3" and layers == _GEMMA3_27B and width // heads != head_dim:
        values["query_scalar"] = width // heads
    return ModelConfig(
        vocab_size=int(table.shape[1]),
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=file.positive(
            key("attention.head_count_kv"), "num_kv_heads", heads
        ),
        head_dim=head_dim,
        intermediate_size=file.positive(
            key("feed_forward_length"), "intermediate_size"
        ),
        rope_theta=float(
            file.positive(key("rope.freq_base"), "rope_theta", theta, float)
        ),
        rope_scaling=_rope_scaling(file, family, head_dim, theta),
        rms_norm_eps=float(
            file.positive(
                key("attention.layer_norm_rms_epsilon"), "rms_norm_eps", kind=float
            )
        ),
        tie_embeddings="output.weight" not in file.tensors,
        **values,
    )


def _windows(file: GgufFile, family: str, layers: int) -> dict[str, Any]:
    """Returns the fields of `ModelConfig` about a file's sliding windows."""
    key = f"{family}.{{}}".format
    name = key("attention.sliding_window")
    kind = families.FAMILIES[ARCHITECTURES[family]].windows
    if family != "llama" and kind == "none":
        raise file.unsupported(name, file.metadata[name], "none")
    values = {"sliding_window": file.positive(name, "context_length")}
    if kind == "some":
        period, base = (
            key("attention.sliding_window_pattern"),
            key("rope.freq_base_swa"),
        )
        every = file.positive(period, "num_layers", _GEMMA3_PERIOD)
        values["local_layers"] = families.global_every(every, layers)
        values["local_rope_theta"] = float(
            file.positive(base, "rope_theta", _GEMMA3_LOCAL_THETA, float)
        )
    return values


def _rope_scaling(file: GgufFile, family: str, head_dim: int, theta: float | None):
    """Returns the items of rope_scaling, None for plain positions.

    For Llama 3.1 and later, the file holds only the table of what divides each
    frequency. The settings that make exactly this table are found by trying those of
    the published models.
    """
    kind = file.metadata.get(f"{family}.rope.scaling.type", "none")
    if kind == "linear":
        factor = file.positive(
            f"{family}.rope.scaling.factor", "rope_theta", None, float
        )
        return (("factor", float(factor)), ("rope_type", "linear"))
    if kind != "none":
        expected = "'none' or 'linear'"
        raise file.unsupported(f"{family}.rope.scaling.type", kind, expected)
    linear = file.metadata.get(f"{family}.rope.scale_linear", 1.0)
    if linear != 1.0:
        raise file.unsupported(f"{family}.rope.scale_linear", linear, "1.0")
    if _ROPE_TABLE not in file.tensors:
        return None
    base = file.positive(f"{family}.rope.freq_base", "rope_theta", theta, float)
    table = GgufTensor(file.path, file.tensors[_ROPE_TABLE]).rows(0, head_dim // 2)
    for factor in _LLAMA3_FACTORS:
        expected = _llama3_table(factor, base, head_dim)
        if table.shape == expected.shape and np.allclose(table, expected, rtol=1e-5):
            items = {**_LLAMA3, "factor": factor, "rope_type": "llama3"}
            return tuple(sorted(items.items()))
    raise ValueError(
        f"{file.path}: tensor {_ROPE_TABLE} scales the positions in a way that is not "
        f"known; expected the table of a Llama 3 model with factor {_LLAMA3_FACTORS}, "
        "or no such tensor. Use the model's Hugging Face directory: model.init=hf:DIR."
    )


def _llama3_table(factor: float, base: float, head_dim: int) -> np.ndarray:
    """Returns what Llama 3 divides each frequency by, [head_dim / 2]."""
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    length = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] / length
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def load_gguf(
    file: GgufFile,
    config: ModelConfig,
    shardings: Any = None,
    dtype: str = "float32",
    form: str = "full",
) -> dict[str, Any]:
    """Reads the weights of a GGUF file, tensor by tensor.

    Args:
      file: from `GgufFile`.
      config: from `config_from_gguf`.
      shardings: as in `weights.load_hf`.
      dtype: as in `weights.load_hf`.
      form: as in `weights.load_hf`.

    Returns:
      The decoder's parameters, as `weights.load_hf` returns them.

    Raises:
      ValueError: for a tensor that is missing, extra, of a wrong shape or of a type
        that the `gguf` package does not dequantise, and for numbers that are not
        finite.
    """
    wanted = tensor_names(config)
    family = file.get("general.architecture", str)
    sources, spelled = {}, {}
    for name, tensor in file.tensors.items():
        if name == _ROPE_TABLE:
            continue
        theirs = hugging_face_name(name, family)
        if theirs not in wanted:
            raise ValueError(
                f"{file.path}: tensor {name} is extra; expected none, because the "
                f"decoder of {family} models has no place for it. Use another file."
            )
        check_kind(file.path, tensor)
        pairs = added = 0
        if family == "llama" and ".q_proj." in theirs:
            pairs = config.num_heads
        elif family == "llama" and ".k_proj." in theirs:
            pairs = config.num_kv_heads
        elif family == "gemma3" and theirs.endswith("norm.weight"):
            added = 1
        sources[theirs] = GgufTensor(file.path, tensor, pairs, added)
        spelled[theirs] = name
    for theirs in sorted(wanted.keys() - sources.keys()):
        raise ValueError(
            f"{file.path}: the tensor for {theirs} is missing; expected shape "
            f"{wanted[theirs][0].stored}. Download the file again."
        )
    for theirs, (tensor, _) in wanted.items():
        if sources[theirs].shape != tensor.stored:
            raise ValueError(
                f"{file.path}: tensor {spelled[theirs]} has a wrong shape; expected "
                f"{tensor.stored} by the metadata, found {sources[theirs].shape}. "
                "Download the file again."
            )
    params, counts = weights.place(sources, config, shardings, dtype, form)
    weights.refuse(counts, config, file.path, "Download the file again.")
    return params
