"""The families of models that the decoder computes: what each is, and its file names.

A family is a few values of `ModelConfig`. Sizes, bases and windows are in the files of
each model; see `hf_config` and `gguf_files`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from stepjax.lm.model_config import ModelConfig

# What a family decides, with the values that Llama has.
_PLAIN = {
    "qkv_bias": False,
    "qk_norm": False,
    "post_norms": False,
    "norm_offset": 0.0,
    "activation": "silu",
    "scale_embeddings": False,
}


class Family(NamedTuple):
    """A family of models.

    Attributes:
      architecture: its class in transformers.
      values: fields of `ModelConfig` in which it differs from Llama.
      defaults: what transformers takes for keys that a config.json leaves out.
      windows: whether its layers may have sliding windows: "none", "every" layer, or
        "some" layers, which are then local.
    """

    architecture: str
    values: Mapping[str, Any] = MappingProxyType({})
    defaults: Mapping[str, Any] = MappingProxyType({})
    windows: str = "none"

    @property
    def all_values(self) -> dict[str, Any]:
        """The fields of `ModelConfig` that a family decides, and its values of them."""
        return {**_PLAIN, **self.values}


# model_type of a config.json → its family. Where several fit a model, the first is it.
FAMILIES = {
    "llama": Family("LlamaForCausalLM", defaults={"rope_theta": 10000.0}),
    "mistral": Family(
        "MistralForCausalLM",
        defaults={"rope_theta": 10000.0, "sliding_window": 4096},
        windows="every",
    ),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": Family("Qwen3ForCausalLM", {"qk_norm": True}, {"head_dim": 128}),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {
            "qk_norm": True,
            "post_norms": True,
            "norm_offset": 1.0,
            "activation": "gelu_tanh",
            "scale_embeddings": True,
        },
        {
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
        windows="some",
    ),
}
NAMES = "Llama, Mistral, Qwen2, Qwen2.5, Qwen3 or Gemma 3 (text)"


def fitting(config: ModelConfig) -> list[str]:
    """Returns the model types that a config can be written as."""
    used = "none"
    if config.local_layers or config.query_scalar is not None:
        used = "some"
    elif config.sliding_window:
        used = "every"
    return [
        name
        for name, family in FAMILIES.items()
        if used in ("none", family.windows)
        and all(getattr(config, key) == x for key, x in family.all_values.items())
    ]


def choose(config: ModelConfig, *wanted: str | None) -> str:
    """Returns the model type to write a config as.

    Args:
      config: of the decoder.
      *wanted: model types, the most wanted one first; those that do not fit and None
        are passed over.

    Raises:
      ValueError: when the decoder is none of a known family.
    """
    types = fitting(config)
    for name in wanted:
        if name in types:
            return name
    if not types:
        raise ValueError(
            f"{config} is a model of no known family; expected {NAMES}. A directory "
            "that transformers loads can be written only of these."
        )
    return types[0]


def global_every(period: int, layers: int) -> tuple[bool, ...]:
    """Returns which layers are local when each `period`-th layer is not."""
    return tuple(bool((layer + 1) % period) for layer in range(layers))
