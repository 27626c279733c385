"""One decoder for all families of models: forest rows and cached decoding.

A Flax Linen module used functionally: ``model.apply({"params": params}, ...)``.
Parameters carry logical axis names (see `stepjax.lm.sharding`), layers are
stacked by ``nn.scan``, activations are rematerialised as the config says. The
module returns hidden states; logits are made by the caller, and only where a
token is scored or sampled (`unembedding`).
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from stepjax.lm import attention, embedding, int8, lora, products, sharding
from stepjax.lm.model_config import ACTIVATIONS, REMAT, ModelConfig

_UNROLLED = 4  # models of at most this many layers are unrolled: faster on a CPU


class KeyValues(NamedTuple):
    """Cached keys and values, leading axis the layers."""

    key: jax.Array
    value: jax.Array


# (query [..., T, H, D], key [..., T, K, D], value [..., T, K, D]) of one layer →
# (mixed values [..., T, H, D], anything that the caller keeps of the layer).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def _normal(std: float, *axes: str):
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in float32.

    Attributes:
      epsilon: added to the mean square.
      offset: added to the scale; if not 0, the scale is applied in float32.
    """

    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., E] and scales it."""
        start = nn.initializers.constant(1 - self.offset)
        init = nn.with_logical_partitioning(start, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.epsilon)
        normed = wide * inverse
        if not self.offset:
            return normed.astype(x.dtype) * scale.astype(x.dtype)
        scale = scale.astype(x.dtype).astype(jnp.float32)  # see `frozen`
        return (normed * (self.offset + scale)).astype(x.dtype)


class Block(nn.Module):
    """One decoder block: attention and a gated MLP, both pre-normed and residual.

    Attributes:
      config: shape and numerics.
      mesh: see `Decoder`.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self, hidden: jax.Array, sin: jax.Array, cos: jax.Array, attend: Attend
    ) -> tuple[jax.Array, Any]:
        """Runs one layer.

        Args:
          hidden: [..., T, E].
          sin: of the rotary positions, [..., T, D / 2] float32.
          cos: of the rotary positions, [..., T, D / 2] float32.
          attend: lets each query see the right keys; see `Attend`.

        Returns:
          (hidden states after the layer, what `attend` keeps of the layer).
        """
        config = self.config
        normed = sharding.whole(self._norm(hidden, "attention_norm"), self.mesh)
        query = self._project(normed, "query", config.num_heads, "heads")
        key = self._project(normed, "key", config.num_kv_heads, "kv_heads")
        value = self._project(normed, "value", config.num_kv_heads, "kv_heads")
        if config.qk_norm:
            query = self._norm(query, "query_norm")
            key = self._norm(key, "key_norm")
        query = attention.rotate(query, *_for_queries(config, sin, cos))
        key = attention.rotate(key, sin, cos)
        mixed, kept = attend(query, key, value)
        shape = (config.num_heads, config.head_dim, config.hidden_size)
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        mixed = self._product(mixed, "out", shape, "heads", "head_dim", "embed")
        hidden = hidden + self._added(mixed, "attention_post_norm")
        normed = sharding.whole(self._norm(hidden, "mlp_norm"), self.mesh)
        hidden = hidden + self._added(self._mlp(normed), "mlp_post_norm")
        return hidden, kept

    def _norm(self, x, name):
        return norm(self.config, name)(x)

    def _added(self, x, name):
        """Returns what a half of the block adds to the residual stream."""
        x = sharding.spread(x, self.mesh)
        return self._norm(x, name) if self.config.post_norms else x

    def _project(self, x, name, heads, axis):
        config = self.config
        shape = (config.hidden_size, heads, config.head_dim)
        out = self._product(x, name, shape, "embed", axis, "head_dim")
        out = out.reshape(*x.shape[:-1], *shape[1:])
        if config.qkv_bias:
            zeros = nn.with_logical_partitioning(
                nn.initializers.zeros, (axis, "head_dim")
            )
            out = out + self.param(f"{name}_bias", zeros, shape[1:]).astype(x.dtype)
        return out

    def _mlp(self, x):
        size = (self.config.hidden_size, self.config.intermediate_size)
        gate = self._product(x, "gate", size, "embed", "mlp")
        up = self._product(x, "up", size, "embed", "mlp")
        inner = ACTIVATIONS[self.config.activation](gate) * up
        return self._product(inner, "down", size[::-1], "mlp", "embed")

    def _product(self, x, name, shape, *axes):
        """Returns x [..., N] times a parameter, [..., M]; its `shape` has N * M items.

        Leading axes are merged first: XLA for CPU runs the gradient of a product with
        batch axes at half the speed.
        """
        kernel = self.param(name, _normal(self.config.init_std, *axes), shape)
        kernel = kernel.astype(self.config.dtype)
        kernel = sharding.gathered(kernel, self.mesh, *axes)
        kernel = kernel.reshape(x.shape[-1], -1)
        flat = x.reshape(-1, x.shape[-1])
        out = products.matmul(flat, kernel)
        scale = f"{name}{int8.SUFFIX}"
        if self.has_variable("params", scale):  # then the parameter holds integers
            scale = self.get_variable("params", scale).reshape(-1)
            out = (out * scale).astype(out.dtype)
        options = self.config.adapters
        if options is not None and name in options.layers:
            name = f"{name}{lora.SUFFIX}"
            out = out + lora.Adapter(options, shape, axes, self.mesh, name=name)(flat)
        return out.reshape(*x.shape[:-1], -1)


def _for_queries(config, sin, cos):
    """Returns sin and cos of the queries: scaled, where scores are.

    Attention divides scores by the root of the head size.
    """
    if config.query_scalar is None:
        return sin, cos
    factor = math.sqrt(config.head_dim / config.query_scalar)
    return factor * sin, factor * cos


class Decoder(nn.Module):
    """The decoder; see the module docstring.

    Attributes:
      config: shape and numerics.
      mesh: activations of forest rows stay split over its rows, so that parameters
        are gathered one layer at a time; None leaves the sharding to XLA.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, position: jax.Array, subtree_end: jax.Array
    ) -> jax.Array:
        """Runs the decoder on forest rows.

        Args:
          tokens: [B, T] int32.
          position: depth of each token on its own path, [B, T] int32.
          subtree_end: first index after the subtree of each token, [B, T] int32.

        Returns:
          Hidden states after the last norm, [B, T, E].
        """
        config = self.config
        table = self.param(
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
        hidden = embed(config, table, tokens, self.mesh)
        hidden = sharding.spread(hidden, self.mesh)
        turns, local = rotations(config, position), local_layers(config)
        kind = attention.choose(
            config.attention, self.mesh, config.dtype, config.head_dim
        )

        def attend(query, key, value):
            mixed = attention.forest_attention(
                query, key, value, subtree_end, kind=kind, mesh=self.mesh
            )
            return mixed, None

        def layer(block, hidden, local):
            return block(hidden, *of_layer(turns, local), attend)

        if config.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT[config.remat])
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_layers,
            unroll=unroll(config),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block = Block(config, self.mesh, name="layers")
        hidden, _ = layers(block, hidden, local)
        return sharding.whole(norm(config, "final_norm")(hidden), self.mesh)


def unroll(config: ModelConfig) -> int:
    """Returns how many layers one iteration of the scan over layers computes."""
    return _UNROLLED if config.num_layers <= _UNROLLED else 1


def norm(config: ModelConfig, name: str | None = None) -> RMSNorm:
    """Returns the module of one of the decoder's norms."""
    return RMSNorm(config.rms_norm_eps, config.norm_offset, name=name)


def embed(config: ModelConfig, table: jax.Array, tokens: jax.Array, mesh) -> jax.Array:
    """Returns the embeddings of tokens [...], [..., E]; see `embedding.embed`."""
    hidden = embedding.embed(table, tokens, config.dtype, mesh)
    if not config.scale_embeddings:
        return hidden
    return hidden * jnp.asarray(math.sqrt(config.hidden_size), hidden.dtype)


def rotations(config: ModelConfig, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (sin, cos) of rotary positions [...], [..., D / 2] float32 each.

    If some layers are local, both have one more axis, the first one: 0 for the other
    layers, 1 for the local ones (see `of_layer`).
    """
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    frequency = attention.rope_frequencies(config.head_dim, config.rope_theta, scaling)
    if config.local_layers:
        local = attention.rope_frequencies(config.head_dim, config.local_rope_theta)
        frequency = jnp.stack([frequency, local])
        frequency = frequency.reshape(2, *[1] * position.ndim, -1)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.sin(angle), jnp.cos(angle)


def local_layers(config: ModelConfig) -> jax.Array | None:
    """Returns 1 for each local layer and 0 for the other ones, [L]; None for none."""
    return jnp.array(config.local_layers, jnp.int32) if config.local_layers else None


def of_layer(rotations: tuple[jax.Array, jax.Array], local: jax.Array | None):
    """Returns what `rotations` gives, for one layer.

    Args:
      rotations: of all layers.
      local: of the layer, from `local_layers`.
    """
    return rotations if local is None else tuple(x[local] for x in rotations)


def unembedding(params: Any) -> jax.Array:
    """Returns the matrix that turns hidden states into logits, [V, E]."""
    return params.get("unembedding", params["embedding"])


def frozen(params: Any, dtype: str) -> Any:
    """Returns a copy of parameters in the compute type, for sampling and scoring.

    The decoder computes the same bits from the copy, because it casts every parameter
    before use.

    Args:
      params: any tree of arrays.
      dtype: "float32" or "bfloat16".
    """

    def copy(x):
        return jnp.copy(x) if x.dtype == jnp.dtype(dtype) else x.astype(dtype)

    return jax.tree.map(copy, params)


def by_layer(params: Any) -> Any:
    """Returns parameters with a tuple of layers instead of arrays of all layers.

    `decode.forward` then runs one layer after the other, not in a scan. A scan copies
    the parameters of each layer out of the arrays of all layers before it multiplies
    with them, once per decoding step. On a CPU that takes a third of the time of a
    step. The price is a program that takes longer to compile.
    """
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])

    def layer(number: int):
        return jax.tree.map(operator.itemgetter(number), layers)

    return {**params, "layers": tuple(map(layer, range(count)))}


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden states [..., E]."""
    matrix = unembedding(params).astype(hidden.dtype)
    flat = products.logits(hidden.reshape(-1, hidden.shape[-1]), matrix)
    return flat.reshape(*hidden.shape[:-1], -1)


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
