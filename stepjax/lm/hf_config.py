"""Reads and writes the config.json of Qwen2 and Llama models.

Everything that a model's shape depends on is read from the file. A setting that the
decoder does not compute is refused, never guessed.
"""

import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from stepjax.lm import limits, ordinary
from stepjax.lm.model_config import ModelConfig

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
# Keys of an earlier config.json that say nothing about the model that is written.
_NOT_CARRIED = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "auto_map",
    "quantization_config",
)
_LLAMA3_KEYS = (
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
)


def fitting_model_type(config: ModelConfig) -> str:
    """Returns the model type whose biases these are, "qwen2" or "llama"."""
    return "qwen2" if config.qkv_bias else "llama"


def config_from_hf(directory: str | os.PathLike) -> ModelConfig:
    """Reads the config.json of a Qwen2 or Llama model.

    Both spellings of the rotary positions are read: ``rope_theta`` with
    ``rope_scaling``, and ``rope_parameters``. Keys that are not in the file have the
    defaults of transformers: heads of size ``hidden_size`` / ``num_attention_heads``,
    embeddings not tied, and for Llama as many key/value heads as heads and a
    ``rope_theta`` of 10000. A Llama with ``attention_bias`` is read as biases on
    queries, keys and values; `stepjax.lm.weights.load_hf` refuses the bias on the
    output that usually comes with it.

    Args:
      directory: holds config.json.

    Returns:
      The config, with the default numerics of `ModelConfig`.

    Raises:
      ValueError: for a file that is missing or not JSON, for a missing or mistyped
        value, and for anything the decoder does not compute.
    """
    path = epath.Path(directory) / "config.json"
    data = read_json(path)
    family = data.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise _unsupported(path, "model_type", family, "'qwen2' or 'llama'")
    quantized = data.get("quantization_config")
    if quantized is not None:
        raise _unsupported(path, "quantization_config", quantized, "none")
    if data.get("hidden_act", "silu") != "silu":
        raise _unsupported(path, "hidden_act", data["hidden_act"], "'silu'")
    if family == "llama" and _flag(path, data, "mlp_bias"):
        raise _unsupported(path, "mlp_bias", True, "false")
    if family == "qwen2" and _flag(path, data, "use_sliding_window"):
        raise _unsupported(path, "use_sliding_window", True, "false")
    layer_types = data.get("layer_types")
    layer_types = [] if layer_types is None else layer_types
    if not isinstance(layer_types, list) or any(
        kind != "full_attention" for kind in layer_types
    ):
        raise _unsupported(path, "layer_types", layer_types, "'full_attention' only")
    if data.get("max_position_embeddings") is not None:  # an export writes it
        _positive(path, data, "max_position_embeddings", field="context_length")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = data.get(key)
        ids = ids if isinstance(ids, list) else [ids]
        if not all(id is None or (type(id) is int and id >= -1) for id in ids):
            raise _unsupported(path, key, data[key], "a token id, or null")
    biased = _flag(path, data, "attention_bias")
    qkv_bias = family == "qwen2" or biased
    tied = _flag(path, data, "tie_word_embeddings")
    width = _positive(path, data, "hidden_size", field="hidden_size")
    heads = _positive(path, data, "num_attention_heads", field="num_heads")
    if data.get("head_dim") is None and width % heads:
        raise _unsupported(
            path, "hidden_size", width, f"a multiple of num_attention_heads={heads}"
        )
    default_kv_heads = heads if family == "llama" else None
    theta, scaling = _rope(path, data, 10000.0 if family == "llama" else None)
    std = float(
        _positive(path, data, "initializer_range", 0.02, kind=float, field="init_std")
    )
    return ModelConfig(
        vocab_size=_positive(path, data, "vocab_size", field="vocab_size"),
        hidden_size=width,
        num_layers=_positive(path, data, "num_hidden_layers", field="num_layers"),
        num_heads=heads,
        num_kv_heads=_positive(
            path, data, "num_key_value_heads", default_kv_heads, field="num_kv_heads"
        ),
        head_dim=_positive(path, data, "head_dim", width // heads, field="head_dim"),
        intermediate_size=_positive(
            path, data, "intermediate_size", field="intermediate_size"
        ),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(
            _positive(path, data, "rms_norm_eps", kind=float, field="rms_norm_eps")
        ),
        qkv_bias=qkv_bias,
        tie_embeddings=tied,
        embedding_std=std,
        init_std=std,
    )


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object that somebody else wrote.

    Raises:
      ValueError: with the path, when the file is missing, a pipe or a device, larger
        than `limits.JSON_BYTES`, not JSON, or no object; also for a name that an
        object has twice, and for NaN and infinity, which are no JSON.
    """
    ordinary.check(path)
    try:
        with path.open("rb") as file:
            content = file.read(limits.JSON_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; expected a Hugging Face model "
            "directory."
        ) from error
    except ImportError as error:  # what reads this kind of path is not installed
        raise ValueError(
            f"{path}: {error}; expected a path that can be read here. Run pip install "
            "-e '.[tpu]' in the checkout of stepjax, or copy the directory to a disk."
        ) from error
    if len(content) > limits.JSON_BYTES:
        raise ValueError(
            f"{path}: the file is larger than {limits.JSON_BYTES:,} bytes; expected a "
            "small file of settings. Download it again."
        )
    try:
        data = parse_json(content)
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); expected a JSON object. Download it again."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: {reprlib.repr(data)}; expected a JSON object.")
    return data


def parse_json(content: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8, read to the letter.

    Raises:
      ValueError: for another encoding, NaN or infinity, a name that an object has
        twice, and lists within lists without end.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            parse_constant=_no_constant,
            object_pairs_hook=_every_name_once,
        )
    except RecursionError as error:
        raise ValueError("lists or objects within each other without end") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _every_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {reprlib.repr(twice)} is there twice")
    return made


def _unsupported(path, key, value, expected) -> ValueError:
    shown = reprlib.repr(value)
    return ValueError(
        f"{path}: {key}={shown} is not supported; expected {expected}. Use a "
        "Qwen2/Qwen2.5 or Llama checkpoint that has it."
    )


def _positive(path, data, key, default=None, *, kind=int, field=""):
    """Returns a positive number of config.json; None counts as absent.

    Args:
      path: of the file.
      data: what it holds.
      key: name of the number.
      default: what an absent one is; None: it must be there.
      kind: int or float.
      field: of `limits.NUMBERS`, whose limits the number must keep; "" for others.
    """
    value = data.get(key)
    value = default if value is None else value
    allowed = (int, float) if kind is float else int
    number = isinstance(value, allowed) and not isinstance(value, bool)
    good = number and 0 < value < math.inf
    if not good or (field and not limits.believed(field, value)):
        word = "number" if kind is float else "integer"
        limit = f" from {limits.words(field)}" if good else ""
        raise ValueError(
            f"{path}: {key}={reprlib.repr(value)}; expected a positive {word}{limit}. "
            "Take the config.json that belongs to the weights."
        )
    return value


def _flag(path, data, key) -> bool:
    """Returns a truth value of config.json; None counts as absent, which is false."""
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise _unsupported(path, key, value, "true or false")
    return bool(value)


def _rope(path, data, default_theta):
    """Returns rope_theta and the rope_scaling items, None for plain positions."""
    key = (
        "rope_parameters" if data.get("rope_scaling") in (None, {}) else "rope_scaling"
    )
    rope = {} if data.get(key) is None else data[key]
    if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
        raise _unsupported(path, key, rope, "one flat object for all layers")
    either = {**data, **rope}
    theta = float(
        _positive(
            path, either, "rope_theta", default_theta, kind=float, field="rope_theta"
        )
    )
    part = either.get("partial_rotary_factor")
    if part not in (None, 1):
        raise _unsupported(path, "partial_rotary_factor", part, "1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _unsupported(path, f"{key} type", kind, "'default' or 'llama3'")
    items = {k: _positive(path, rope, k, kind=float) for k in _LLAMA3_KEYS}
    if max(items.values()) > limits.NUMBERS["rope_theta"][1]:
        raise _unsupported(path, key, rope, "numbers up to 1e12")
    if items["low_freq_factor"] >= items["high_freq_factor"]:
        raise _unsupported(
            path, key, rope, "a low_freq_factor below the high_freq_factor"
        )
    return theta, tuple(sorted({**items, "rope_type": kind}.items()))


def config_to_hf(
    config: ModelConfig,
    *,
    stop_ids: Sequence[int],
    bos_id: int | None,
    dtype: str,
    pad_id: int | None = None,
    context_length: int | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the config.json of a model, in keys that every transformers reads.

    What the decoder does not need is taken from an earlier config.json of the same
    model: its context length, its bos and pad ids, and every further key. Rotary
    positions are written as ``rope_theta`` and ``rope_scaling``. If the earlier file
    has ``rope_parameters``, they are also written in that form.

    Args:
      config: the decoder's config.
      stop_ids: token ids that end a generation, the end-of-sequence id first; several
        are written as a list.
      bos_id: beginning-of-sequence id; None takes that of `earlier`.
      dtype: type of the saved weights, a name of torch.
      pad_id: padding id if `earlier` has none.
      context_length: ``max_position_embeddings`` if `earlier` has none; None takes it
        from the scaling of Llama 3, else leaves it to transformers' default.
      earlier: what the model's earlier config.json holds; None for a new model.
    """
    earlier = dict(earlier or {})
    for key in _NOT_CARRIED:
        earlier.pop(key, None)
    family = fitting_model_type(config)
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    stops = list(stop_ids)
    bos_id = earlier.get("bos_token_id") if bos_id is None else bos_id
    pad_id = pad_id if earlier.get("pad_token_id") is None else earlier["pad_token_id"]
    data = earlier | {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": bos_id,
        "eos_token_id": stops if len(stops) > 1 else stops[0] if stops else None,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
    }
    if family == "llama":
        data |= {"attention_bias": False, "mlp_bias": False}
    else:
        data["use_sliding_window"] = False
    if "rope_parameters" in earlier:
        default = {"rope_type": "default"}
        theta = {"rope_theta": config.rope_theta}
        data["rope_parameters"] = (scaling or default) | theta
    key = "max_position_embeddings"
    if data.get(key) is not None:
        return data | {key: _positive("config.json", data, key)}
    data.pop(key, None)
    if context_length is not None:
        data[key] = context_length
    elif scaling and "factor" in scaling:
        data[key] = int(scaling["factor"] * scaling[f"original_{key}"])
    return data
