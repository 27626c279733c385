"""Shape and numerics of the decoder: what sets one family of models apart from another.

The decoder computes each value as it is here and knows no names of families; which
values a family has is in `stepjax.lm.families`.
"""

import dataclasses
import functools
from typing import Any

import jax
from flax import linen as nn

from stepjax.lm import attention, forest_kernel, lora

# remat of `ModelConfig` → what the backward pass keeps of a block; None is everything.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(forest_kernel.SAVED),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# activation of `ModelConfig` → the function between the two halves of an MLP.
ACTIVATIONS = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of the decoder.

    Attributes:
      vocab_size: rows of the embedding, padding rows included.
      hidden_size: width of the residual stream.
      num_layers: decoder blocks.
      num_heads: query heads.
      num_kv_heads: key/value heads; divides num_heads.
      head_dim: size of one head.
      intermediate_size: width of the gated feed-forward layer.
      rope_theta: base of the rotary positions.
      rope_scaling: None or the items of config.json's rope_scaling (hashable).
      rms_norm_eps: epsilon of RMSNorm.
      qkv_bias: biases on queries, keys and values (Qwen2: True, Llama: False).
      qk_norm: RMSNorm of every query and key before its position (Qwen3, Gemma 3).
      post_norms: RMSNorm also of what attention and the feed-forward layer add to the
        residual stream (Gemma 3).
      norm_offset: added to the scale of every RMSNorm, which is then applied in
        float32 (Gemma 3: 1.0).
      activation: of the feed-forward layer, one of `ACTIVATIONS`.
      scale_embeddings: embeddings are multiplied by the root of hidden_size (Gemma 3).
      query_scalar: scores of attention are divided by its root; None is head_dim.
      local_layers: which layers are local, one truth value for each; () for none. Local
        layers have a rotary base of their own (Gemma 3).
      local_rope_theta: base of the rotary positions of local layers, never scaled.
      sliding_window: a token of some layers sees only this many tokens: itself and
        those just before it; 0 for no limit. The decoder does not compute this, so it
        is right for paths of at most this many tokens (see `layout.check_window`).
      tie_embeddings: the unembedding is the embedding.
      dtype: compute type, "float32" or "bfloat16"; parameters stay float32.
      remat: what the backward pass computes again, one of `REMAT`. "none": nothing.
        "full": each block from its input. "attention": like "full", but the output of
        attention is kept (for TPU). "dots": all but the products with parameters.
      attention: how forest rows attend, one of `attention.KINDS`; decoding steps, see
        `decode_kernel.choose`.
      embedding_std: standard deviation of a random embedding.
      init_std: standard deviation of every other random matrix.
      adapters: trained beside the matrices of the layers (LoRA); None: there are none.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] | None = None
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    scale_embeddings: bool = False
    query_scalar: int | None = None
    local_layers: tuple[bool, ...] = ()
    local_rope_theta: float = 10000.0
    sliding_window: int = 0
    tie_embeddings: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    embedding_std: float = 0.02
    init_std: float = 0.02
    adapters: lora.Options | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}; "
                "expected num_heads to be a multiple of num_kv_heads."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd; expected an even number, since RoPE "
                "rotates pairs of numbers."
            )
        if len(self.local_layers) not in (0, self.num_layers):
            raise ValueError(
                f"local_layers has {len(self.local_layers)} values; expected one for "
                f"each of num_layers={self.num_layers}, or none."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation={self.activation!r}; expected one of {tuple(ACTIVATIONS)}."
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; expected 'float32' or 'bfloat16'.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}; expected one of {tuple(REMAT)}.")
        if self.attention not in attention.KINDS:
            raise ValueError(
                f"attention={self.attention!r}; expected one of {attention.KINDS}."
            )
