"""The parameters of a decoder: each one's place in the tree and name in the files."""

from typing import NamedTuple

from stepjax.lm.model_config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"  # its name in the files


class Tensor(NamedTuple):
    """One parameter: its place and shape in the tree of parameters and in the files.

    Attributes:
      path: in the tree. "layers/..." holds one tensor per layer, stacked.
      name: in the files, with "{layer}" when there is one tensor per layer.
      shape: in the tree, without the axis of layers.
      stored: shape in the files.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds one tensor per layer."""
        return self.path.startswith("layers/")

    def leading(self, config: ModelConfig) -> tuple[int, ...]:
        """Returns the axis of layers that its array in the tree begins with, or ()."""
        return (config.num_layers,) if self.stacked else ()

    @property
    def transposed(self) -> bool:
        """Whether its matrices are the other way round in the files."""
        return self.stacked and len(self.stored) == 2


def parameter_tensors(config: ModelConfig) -> list[Tensor]:
    """Returns every parameter of a decoder."""
    embed, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
    table = (config.vocab_size, embed)
    tensors = [Tensor("embedding", EMBEDDING, table, table)]
    if not config.tie_embeddings:
        tensors.append(Tensor("unembedding", "lm_head.weight", table, table))
    tensors.append(Tensor("final_norm/scale", "model.norm.weight", (embed,), (embed,)))

    def layer(path, name, shape, stored):
        name = f"model.layers.{{layer}}.{name}"
        tensors.append(Tensor(f"layers/{path}", name, shape, stored))

    norms = {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
    if config.post_norms:
        norms |= {
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
    for path, name in norms.items():
        layer(f"{path}/scale", f"{name}.weight", (embed,), (embed,))
    if config.qk_norm:
        for path, letter in {"query": "q", "key": "k"}.items():
            name = f"self_attn.{letter}_norm.weight"
            layer(f"{path}_norm/scale", name, (size,), (size,))
    projections = (
        ("query", "q", config.num_heads),
        ("key", "k", config.num_kv_heads),
        ("value", "v", config.num_kv_heads),
    )
    for path, letter, heads in projections:
        name, flat = f"self_attn.{letter}_proj", heads * size
        layer(path, f"{name}.weight", (embed, heads, size), (flat, embed))
        if config.qkv_bias:
            layer(f"{path}_bias", f"{name}.bias", (heads, size), (flat,))
    heads = config.num_heads
    stored = (embed, heads * size)
    layer("out", "self_attn.o_proj.weight", (heads, size, embed), stored)
    layer("gate", "mlp.gate_proj.weight", (embed, inner), (inner, embed))
    layer("up", "mlp.up_proj.weight", (embed, inner), (inner, embed))
    layer("down", "mlp.down_proj.weight", (inner, embed), (embed, inner))
    return tensors


def tensor_names(config: ModelConfig) -> dict[str, tuple[Tensor, int | None]]:
    """Returns name in the files → (parameter, layer or None), for every tensor."""
    names = {}
    tensors = parameter_tensors(config)
    for tensor in tensors:
        if not tensor.stacked:
            names[tensor.name] = (tensor, None)
    for index in range(config.num_layers):
        for tensor in tensors:
            if tensor.stacked:
                names[tensor.name.format(layer=index)] = (tensor, index)
    return names
