"""One decoder for Qwen2/Qwen2.5 and Llama 2/3: forest rows and cached decoding.

A Flax Linen module used functionally: ``model.apply({"params": params}, ...)``.
Parameters carry logical axis names (see `stepjax.lm.sharding`), layers are
stacked by ``nn.scan``, activations are rematerialised as the config says. The
module returns hidden states; logits are made by the caller, and only where a
token is scored or sampled (`unembedding`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from stepjax.lm import attention, sharding

# remat of `ModelConfig` → what the backward pass keeps of a block; None is everything.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

_UNROLLED = 4  # models of at most so many layers are unrolled: faster on a CPU


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
      intermediate_size: width of the SwiGLU layer.
      rope_theta: base of the rotary positions.
      rope_scaling: None or the items of config.json's rope_scaling (hashable).
      rms_norm_eps: epsilon of RMSNorm.
      qkv_bias: biases on queries, keys and values (Qwen2: True, Llama: False).
      tie_embeddings: the unembedding is the embedding.
      dtype: compute type, "float32" or "bfloat16"; parameters stay float32.
      remat: what the backward pass computes again, one of `REMAT`: "none"; "full",
        each block from its input; "dots", all but the products with parameters.
      embedding_std: standard deviation of a random embedding.
      init_std: standard deviation of every other random matrix.
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
    tie_embeddings: bool = False
    dtype: str = "float32"
    remat: str = "none"
    embedding_std: float = 0.02
    init_std: float = 0.02

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}; choose one that divides it."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE needs it even.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; expected 'float32' or 'bfloat16'.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}; expected one of {tuple(REMAT)}.")


class KeyValues(NamedTuple):
    """Cached keys and values, leading axis the layers."""

    key: jax.Array
    value: jax.Array


class Cached(NamedTuple):
    """What a cached call reads besides its tokens.

    Attributes:
      context: shared contexts, [L, G, C, K, D] each.
      context_length: valid keys of each context, [G] int32.
      suffix: own suffixes, [L, G, W, S, K, D] each; written at `offset`.
      start: first valid suffix index of each row, [G, W] int32 (left padding).
      offset: suffix index of the first token fed, scalar int32.
    """

    context: KeyValues
    context_length: jax.Array
    suffix: KeyValues
    start: jax.Array
    offset: jax.Array


def _normal(std: float, *axes: str):
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., E] and scales it."""
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.epsilon)
        return (wide * inverse).astype(x.dtype) * scale.astype(x.dtype)


class Block(nn.Module):
    """One decoder block: attention and SwiGLU, both pre-normed and residual."""

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(self, carry, context, shared):
        """Runs one layer.

        Args:
          carry: (hidden [..., T, E], suffix KeyValues or None, layer index).
          context: this layer's context (key, value), [G, C, K, D] each, or None.
          shared: (sin, cos, masks, offset), the same for every layer.

        Returns:
          (carry, None), as nn.scan wants it.
        """
        hidden, suffix, layer = carry
        sin, cos, masks, offset = shared
        config = self.config
        normed = RMSNorm(config.rms_norm_eps, name="attention_norm")(hidden)
        query = self._project(normed, "query", config.num_heads, "heads")
        key = self._project(normed, "key", config.num_kv_heads, "kv_heads")
        value = self._project(normed, "value", config.num_kv_heads, "kv_heads")
        query = attention.rotate(query, sin, cos)
        key = attention.rotate(key, sin, cos)
        if context is None:
            mixed = attention.forest_attention(query, key, value, masks)
        else:
            at = (layer, 0, 0, offset, 0, 0)
            suffix = KeyValues(
                jax.lax.dynamic_update_slice(suffix.key, key[None], at),
                jax.lax.dynamic_update_slice(suffix.value, value[None], at),
            )
            own = (suffix.key[layer], suffix.value[layer])
            mixed = attention.cached_attention(query, context, own, *masks)
        kernel = self.param(
            "out",
            _normal(config.init_std, "heads", "head_dim", "embed"),
            (config.num_heads, config.head_dim, config.hidden_size),
        )
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        hidden = hidden + _matmul(mixed, kernel.reshape(-1, config.hidden_size))
        normed = RMSNorm(config.rms_norm_eps, name="mlp_norm")(hidden)
        hidden = hidden + self._mlp(normed)
        hidden = sharding.constrain(hidden, self.mesh, sharding.ROWS)
        return (hidden, suffix, layer + 1), None

    def _project(self, x, name, heads, axis):
        config = self.config
        shape = (config.hidden_size, heads, config.head_dim)
        init = _normal(config.init_std, "embed", axis, "head_dim")
        kernel = self.param(name, init, shape)
        out = _matmul(x, kernel.reshape(config.hidden_size, -1))
        out = out.reshape(*x.shape[:-1], *shape[1:])
        if config.qkv_bias:
            zeros = nn.with_logical_partitioning(
                nn.initializers.zeros, (axis, "head_dim")
            )
            out = out + self.param(f"{name}_bias", zeros, shape[1:]).astype(x.dtype)
        return out

    def _mlp(self, x):
        config = self.config
        size = (config.hidden_size, config.intermediate_size)
        inward = _normal(config.init_std, "embed", "mlp")
        outward = _normal(config.init_std, "mlp", "embed")
        gate = _matmul(x, self.param("gate", inward, size))
        up = _matmul(x, self.param("up", inward, size))
        return _matmul(nn.silu(gate) * up, self.param("down", outward, size[::-1]))


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x @ kernel as one plain matrix product, in the type of x.

    Leading axes are merged first: XLA for CPU runs the gradient of a product with
    batch axes at half the speed.
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Decoder(nn.Module):
    """The decoder; see the module docstring.

    Attributes:
      config: shape and numerics.
      mesh: keeps activations of forest rows split by rows, so that parameters are
        gathered layer by layer; None leaves their sharding to XLA.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        position: jax.Array,
        subtree_end: jax.Array | None = None,
        cached: Cached | None = None,
    ):
        """Runs the decoder on forest rows, or on suffixes behind cached contexts.

        Args:
          tokens: [B, T] int32 (forest rows) or [G, W, T] int32 (cached).
          position: depth of each token on its own path, same shape.
          subtree_end: [B, T] int32 for forest rows; None with `cached`.
          cached: contexts and suffix caches; None for forest rows.

        Returns:
          Hidden states after the last norm, tokens.shape + [E]; with `cached` a
          pair of them and the suffix caches with these tokens written.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        embedding = self.param(
            "embedding",
            _normal(config.embedding_std, "vocab", "embed"),
            (config.vocab_size, config.hidden_size),
        )
        if not config.tie_embeddings:
            self.param(
                "unembedding",
                _normal(config.init_std, "vocab", "embed"),
                (config.vocab_size, config.hidden_size),
            )
        mesh = self.mesh if cached is None else None
        # Gathered over fsdp like every other parameter, then looked up.
        hidden = sharding.constrain(embedding, mesh, "tensor")[tokens].astype(dtype)
        hidden = sharding.constrain(hidden, mesh, sharding.ROWS)
        scaling = dict(config.rope_scaling) if config.rope_scaling else None
        frequency = attention.rope_frequencies(
            config.head_dim, config.rope_theta, scaling
        )
        angle = position[..., None].astype(jnp.float32) * frequency
        if cached is None:
            context, suffix, offset = None, None, None
            masks = attention.forest_mask(subtree_end)
        else:
            context, suffix, offset = cached.context, cached.suffix, cached.offset
            masks = _cached_masks(cached, tokens.shape[-1])
        shared = (jnp.sin(angle), jnp.cos(angle), masks, offset)
        block = Block
        if config.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[config.remat])
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.num_layers,
            unroll=_UNROLLED if config.num_layers <= _UNROLLED else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, mesh, name="layers")
        carry = (hidden, suffix, jnp.zeros((), jnp.int32))
        (hidden, suffix, _), _ = layers(carry, context, shared)
        hidden = RMSNorm(config.rms_norm_eps, name="final_norm")(hidden)
        return hidden if cached is None else (hidden, suffix)


def _cached_masks(cached: Cached, length: int) -> tuple[jax.Array, jax.Array]:
    capacity = cached.context.key.shape[2]
    context_mask = jnp.arange(capacity) < cached.context_length[:, None]  # [G, C]
    key = jnp.arange(cached.suffix.key.shape[3])
    query = cached.offset + jnp.arange(length)
    seen = key[None, :] <= query[:, None]  # [T, S]
    suffix_mask = seen & (key >= cached.start[..., None])[:, :, None, :]
    return context_mask, suffix_mask  # [G, C], [G, W, T, S]


def unembedding(params: Any) -> jax.Array:
    """Returns the matrix that turns hidden states into logits, [V, E]."""
    return params.get("unembedding", params["embedding"])


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden states [..., E]."""
    matrix = unembedding(params).astype(hidden.dtype)
    return jnp.einsum(
        "...e,ve->...v", hidden, matrix, preferred_element_type=jnp.float32
    )


@functools.cache
def abstract_params(model: Decoder):
    """Returns the parameter tree as boxed ShapeDtypeStructs with logical axes."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def unboxed(boxed: Any) -> Any:
    """Returns a parameter tree without its logical axes."""
    return nn.meta.unbox(boxed)


def _init(model: Decoder, key: jax.Array):
    tokens = jnp.zeros((1, 2), jnp.int32)
    end = jnp.full((1, 2), 2, jnp.int32)
    return Decoder(model.config).init(key, tokens, tokens, end)["params"]


def init(model: Decoder, key: jax.Array):
    """Returns random float32 parameters (a plain nested dict)."""
    return unboxed(_init(model, key))
