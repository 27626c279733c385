"""One decoder for Qwen2/Qwen2.5 and Llama 2/3: forest rows and cached decoding.

A Flax Linen module used functionally: ``model.apply({"params": params}, ...)``.
Parameters carry logical axis names (see `stepjax.lm.sharding`), layers are
stacked by ``nn.scan``, activations are rematerialised as the config says. The
module returns hidden states; logits are made by the caller, and only where a
token is scored or sampled (`unembedding`).
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from stepjax.lm import attention, embedding, forest_kernel, lora, products, sharding

# remat of `ModelConfig` → what the backward pass keeps of a block; None is everything.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(forest_kernel.SAVED),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

_UNROLLED = 4  # models of at most this many layers are unrolled: faster on a CPU


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
      remat: what the backward pass computes again, one of `REMAT`. "none": nothing.
        "full": each block from its input. "attention": like "full", but the output of
        attention is kept (for TPU). "dots": all but the products with parameters.
      attention: how forest rows attend, one of `attention.KINDS`.
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
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; expected 'float32' or 'bfloat16'.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}; expected one of {tuple(REMAT)}.")
        if self.attention not in attention.KINDS:
            raise ValueError(
                f"attention={self.attention!r}; expected one of {attention.KINDS}."
            )


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
    """One decoder block: attention and SwiGLU, both pre-normed and residual.

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
        normed = RMSNorm(config.rms_norm_eps, name="attention_norm")(hidden)
        normed = _whole(normed, self.mesh)
        query = self._project(normed, "query", config.num_heads, "heads")
        key = self._project(normed, "key", config.num_kv_heads, "kv_heads")
        value = self._project(normed, "value", config.num_kv_heads, "kv_heads")
        query = attention.rotate(query, sin, cos)
        key = attention.rotate(key, sin, cos)
        mixed, kept = attend(query, key, value)
        shape = (config.num_heads, config.head_dim, config.hidden_size)
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        mixed = self._product(mixed, "out", shape, "heads", "head_dim", "embed")
        hidden = hidden + _spread(mixed, self.mesh)
        normed = RMSNorm(config.rms_norm_eps, name="mlp_norm")(hidden)
        normed = _whole(normed, self.mesh)
        hidden = hidden + _spread(self._mlp(normed), self.mesh)
        return hidden, kept

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
        return self._product(nn.silu(gate) * up, "down", size[::-1], "mlp", "embed")

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
        options = self.config.adapters
        if options is not None and name in options.layers:
            name = f"{name}{lora.SUFFIX}"
            out = out + lora.Adapter(options, shape, axes, self.mesh, name=name)(flat)
        return out.reshape(*x.shape[:-1], -1)


def _spread(x: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """Splits states of forest rows by rows and, over `tensor`, by tokens.

    The residual stream is split like this because the backward pass keeps it for every
    layer. Products split over `tensor` gather their inputs (`_whole`) and scatter
    their sums. That moves as many bytes as summing them on every device would (sequence
    parallelism, arXiv 2205.05198).
    """
    return sharding.exchange(x, mesh, _stream(x, mesh), (sharding.ROWS,))


def _whole(x: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """Splits states of forest rows by rows only; the reverse of `_spread`."""
    return sharding.exchange(x, mesh, (sharding.ROWS,), _stream(x, mesh))


def _stream(x, mesh):
    """Returns the mesh axes of the residual stream [B, T, E]: of rows, then of tokens.

    Tokens stay whole where their number is not a multiple of the axis `tensor`.
    """
    divides = mesh is not None and x.shape[1] % mesh.shape["tensor"] == 0
    return (sharding.ROWS, "tensor") if divides else (sharding.ROWS,)


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
        hidden = embedding.embed(table, tokens, config.dtype, self.mesh)
        hidden = _spread(hidden, self.mesh)
        sin, cos = rotations(config, position)
        kind = attention.choose(
            config.attention, self.mesh, config.dtype, config.head_dim
        )

        def attend(query, key, value):
            mixed = attention.forest_attention(
                query, key, value, subtree_end, kind=kind, mesh=self.mesh
            )
            return mixed, None

        def layer(block, hidden, _):
            return block(hidden, sin, cos, attend)

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
        hidden, _ = layers(block, hidden, None)
        hidden = RMSNorm(config.rms_norm_eps, name="final_norm")(hidden)
        return _whole(hidden, self.mesh)


def unroll(config: ModelConfig) -> int:
    """Returns how many layers one iteration of the scan over layers computes."""
    return _UNROLLED if config.num_layers <= _UNROLLED else 1


def rotations(config: ModelConfig, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (sin, cos) of rotary positions [...], [..., D / 2] float32 each."""
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    frequency = attention.rope_frequencies(config.head_dim, config.rope_theta, scaling)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.sin(angle), jnp.cos(angle)


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
