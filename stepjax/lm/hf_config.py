"""Reads and writes the config.json of Hugging Face directories.

Everything that a model's shape depends on is read from the file. A setting that the
decoder does not compute is refused, never guessed.
"""

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from stepjax.lm import families, limits
from stepjax.lm.families import FAMILIES
from stepjax.lm.json_files import read_json
from stepjax.lm.model_config import ModelConfig

# Keys of an earlier config.json that say nothing about the model that is written.
_NOT_CARRIED = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "auto_map",
    "quantization_config",
)
# Kind of scaling of the rotary positions → its numbers.
_SCALING = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "high_freq_factor",
        "low_freq_factor",
        "original_max_position_embeddings",
    ),
}
# What the decoder does not compute: keys that must be null or left out, or false.
_NONE = (
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_experts",
    "num_local_experts",
)
_FALSE = (
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    "use_bidirectional_attention",
)
_KINDS = ("full_attention", "sliding_attention")  # by whether a layer is local
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # in config.json


def config_from_hf(directory: str | os.PathLike) -> ModelConfig:
    """Reads the config.json of a model of one of `families.FAMILIES`.

    Both spellings of the rotary positions are read: ``rope_theta`` with
    ``rope_scaling``, and ``rope_parameters``. Keys that are not in the file have the
    defaults of transformers, such as heads of size ``hidden_size`` /
    ``num_attention_heads`` and embeddings that are not tied; keys without a common
    default must be there. A Llama with ``attention_bias`` is read as biases on queries,
    keys and values; `stepjax.lm.weights.load_hf` refuses the bias on the output that
    usually comes with it.

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
    name = data.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise _unsupported(path, "model_type", name, f"one of {tuple(FAMILIES)}")
    family = FAMILIES[name]
    stated = {k: v for k, v in data.items() if v is not None or k == "sliding_window"}
    data = {**family.defaults, **stated}  # null is "absent", but for a window "none"
    _refuse(path, data, name)
    if data.get("max_position_embeddings") is not None:  # an export writes it
        _positive(path, data, "max_position_embeddings", field="context_length")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = data.get(key)
        ids = ids if isinstance(ids, list) else [ids]
        if not all(id is None or (type(id) is int and id >= -1) for id in ids):
            raise _unsupported(path, key, data[key], "a token id, or null")
    values = family.all_values
    if name == "llama":
        values["qkv_bias"] = _flag(path, data, "attention_bias")
    width = _positive(path, data, "hidden_size", field="hidden_size")
    heads = _positive(path, data, "num_attention_heads", field="num_heads")
    if data.get("head_dim") is None and width % heads:
        raise _unsupported(
            path, "hidden_size", width, f"a multiple of num_attention_heads={heads}"
        )
    head_dim = _positive(path, data, "head_dim", width // heads, field="head_dim")
    layers = _positive(path, data, "num_hidden_layers", field="num_layers")
    if family.windows == "some":
        values |= _local(path, data, layers, head_dim)
    else:
        values["rope_theta"], values["rope_scaling"] = _rope(path, data)
    if family.windows == "every":
        values["sliding_window"] = _window(path, data)
    default_kv_heads = heads if name == "llama" else None
    std = float(
        _positive(path, data, "initializer_range", 0.02, kind=float, field="init_std")
    )
    values |= dict(
        vocab_size=_positive(path, data, "vocab_size", field="vocab_size"),
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_positive(
            path, data, "num_key_value_heads", default_kv_heads, field="num_kv_heads"
        ),
        head_dim=head_dim,
        intermediate_size=_positive(
            path, data, "intermediate_size", field="intermediate_size"
        ),
        rms_norm_eps=float(
            _positive(path, data, "rms_norm_eps", kind=float, field="rms_norm_eps")
        ),
        tie_embeddings=_flag(path, data, "tie_word_embeddings"),
        embedding_std=std,
        init_std=std,
    )
    try:
        return ModelConfig(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse(path, data, name: str) -> None:
    """Raises ValueError for a setting that the decoder does not compute."""
    for key in _NONE:
        if data.get(key) is not None:
            raise _unsupported(path, key, data[key], "none")
    for key in _FALSE:
        may_be = key == "attention_bias" and name in ("llama", "qwen2")
        if _flag(path, data, key) and not may_be:
            raise _unsupported(path, key, True, "false")
    key = _activation_key(name)
    expected = _ACTIVATIONS[FAMILIES[name].all_values["activation"]]
    if data.get(key, expected) != expected:
        raise _unsupported(path, key, data[key], repr(expected))
    kinds = data.get("layer_types")
    kinds = [] if kinds is None else kinds
    local = FAMILIES[name].windows == "some"
    allowed = _KINDS if local else _KINDS[:1]
    if not isinstance(kinds, list) or any(kind not in allowed for kind in kinds):
        expected = f"only {' or '.join(map(repr, allowed))}"
        raise _unsupported(path, "layer_types", kinds, expected)


def _activation_key(name: str) -> str:
    return "hidden_activation" if name == "gemma3_text" else "hidden_act"


def _window(path, data) -> int:
    """Returns the tokens of the sliding window, 0 for none."""
    if data["sliding_window"] is None:
        return 0
    return _positive(path, data, "sliding_window", field="context_length")


def _local(path, data, layers: int, head_dim: int) -> dict[str, Any]:
    """Returns the fields of `ModelConfig` that only families with local layers have."""
    kinds = data.get("layer_types")
    if kinds is None:
        period = _positive(path, data, "sliding_window_pattern")
        local = families.global_every(period, layers)
    elif len(kinds) != layers:
        raise _unsupported(path, "layer_types", kinds, f"{layers} entries")
    else:
        local = tuple(kind == "sliding_attention" for kind in kinds)
    rope = data.get("rope_parameters")
    full, own = data, {"rope_theta": data["rope_local_base_freq"]}
    if rope is not None:
        if not isinstance(rope, dict) or any(kind not in _KINDS for kind in rope):
            raise _unsupported(path, "rope_parameters", rope, f"objects for {_KINDS}")
        full = {**data, "rope_parameters": rope.get(_KINDS[False])}
        own |= {"rope_parameters": rope.get(_KINDS[True])}
    theta, scaling = _rope(path, full)
    values = {"rope_theta": theta, "rope_scaling": scaling}
    scalar = _positive(path, data, "query_pre_attn_scalar", field="head_dim")
    if scalar != head_dim:
        values["query_scalar"] = scalar
    if any(local):
        theta, scaling = _rope(path, own)
        if scaling is not None:
            raise _unsupported(path, "rope_parameters", rope, "no scaling locally")
        values |= {"local_layers": local, "local_rope_theta": theta}
        values["sliding_window"] = _window(path, data)
    return values


def _unsupported(path, key, value, expected) -> ValueError:
    shown = reprlib.repr(value)
    return ValueError(
        f"{path}: {key}={shown} is not supported; expected {expected}. Use a "
        f"checkpoint of {families.NAMES} that has it."
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


def _rope(path, data):
    """Returns rope_theta and the rope_scaling items, None for plain positions."""
    key = (
        "rope_parameters" if data.get("rope_scaling") in (None, {}) else "rope_scaling"
    )
    rope = {} if data.get(key) is None else data[key]
    if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
        raise _unsupported(path, key, rope, "one flat object for all layers")
    either = {**data, **rope}
    theta = float(_positive(path, either, "rope_theta", kind=float, field="rope_theta"))
    part = either.get("partial_rotary_factor")
    if part not in (None, 1):
        raise _unsupported(path, "partial_rotary_factor", part, "1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        if rope.get("factor") not in (None, 1):
            expected = "none, or a rope_type that has a factor"
            raise _unsupported(path, f"{key} factor", rope["factor"], expected)
        return theta, None
    if not isinstance(kind, str) or kind not in _SCALING:
        expected = f"'default' or one of {tuple(_SCALING)}"
        raise _unsupported(path, f"{key} type", kind, expected)
    items = {k: _positive(path, rope, k, kind=float) for k in _SCALING[kind]}
    if max(items.values()) > limits.NUMBERS["rope_theta"][1]:
        raise _unsupported(path, key, rope, "numbers up to 1e12")
    if kind == "llama3" and items["low_freq_factor"] >= items["high_freq_factor"]:
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
    model_type: str | None = None,
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
      model_type: one of `families.fitting`; None takes that of `earlier` if it fits,
        else the first.
      earlier: what the model's earlier config.json holds; None for a new model.

    Raises:
      ValueError: when the decoder is none of a known family.
    """
    earlier = dict(earlier or {})
    for key in _NOT_CARRIED:
        earlier.pop(key, None)
    name = families.choose(config, model_type, earlier.get("model_type"))
    family = FAMILIES[name]
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    stops = list(stop_ids)
    bos_id = earlier.get("bos_token_id") if bos_id is None else bos_id
    pad_id = pad_id if earlier.get("pad_token_id") is None else earlier["pad_token_id"]
    data = earlier | {
        "architectures": [family.architecture],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        _activation_key(name): _ACTIVATIONS[config.activation],
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
    if name in ("qwen2", "qwen3"):
        data["use_sliding_window"] = False
    if name != "qwen2":
        data["attention_bias"] = False
    if name == "llama":
        data["mlp_bias"] = False
    if family.windows != "none":
        data["sliding_window"] = config.sliding_window or None
    default = {"rope_type": "default"}
    rope = (scaling or default) | {"rope_theta": config.rope_theta}
    if family.windows == "some":
        local = config.local_layers or (False,) * config.num_layers
        data["layer_types"] = [_KINDS[kind] for kind in local]
        data["query_pre_attn_scalar"] = config.query_scalar or config.head_dim
        data["rope_local_base_freq"] = config.local_rope_theta
        own = default | {"rope_theta": config.local_rope_theta}
        rope = {_KINDS[False]: rope, _KINDS[True]: own}
    if "rope_parameters" in earlier:
        data["rope_parameters"] = rope
    key = "max_position_embeddings"
    if data.get(key) is not None:
        return data | {key: _positive("config.json", data, key)}
    data.pop(key, None)
    if context_length is not None:
        data[key] = context_length
    elif scaling and f"original_{key}" in scaling:
        data[key] = int(scaling["factor"] * scaling[f"original_{key}"])
    return data
