"""The tensors of GGUF files: their names, their rows, and the types that are read."""

import functools
import re
from typing import Any, NamedTuple

import numpy as np

# Name in the file, without ".weight" or ".bias" → name in Hugging Face files.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
# The same for Gemma 3, where it differs.
_NAMES_OF_GEMMA3 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def hugging_face_name(name: str, architecture: str) -> str | None:
    """Returns a tensor's name in Hugging Face files; None when it has none there.

    Args:
      name: in the GGUF file.
      architecture: of the file.
    """
    layer = _LAYER.fullmatch(name)
    stem, _, ending = (layer[2] if layer else name).rpartition(".")
    names = _NAMES | _NAMES_OF_GEMMA3 if architecture == "gemma3" else _NAMES
    if stem not in names or ending not in ("weight", "bias"):
        return None
    prefix = f"model.layers.{layer[1]}." if layer else ""
    return f"{prefix}{names[stem]}.{ending}"


class GgufTensor(NamedTuple):
    """A tensor of a GGUF file, as `weights.place` reads it.

    Attributes:
      file: path of the file.
      tensor: the `gguf.ReaderTensor`.
      pairs: heads whose rows are written pair by pair; 0 for rows in usual order.
        The converter of Llama models writes the rows 0, D/2, 1, D/2 + 1, ... of each
        head of queries and keys, so that the two numbers that RoPE rotates together
        are neighbours.
      added: what the converter has added to every number. It adds 1 to the norms of
        Gemma 3, whose scales are 1 less in Hugging Face files.
    """

    file: str
    tensor: Any
    pairs: int = 0
    added: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dequantised tensor; the file names the last axis first."""
        return tuple(int(size) for size in self.tensor.shape[::-1])

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the rows first..last (not included), float32."""
        if self.added:
            return self._stored(first, last) - np.float32(self.added)
        if not self.pairs:
            return self._stored(first, last)
        size = self.shape[0] // self.pairs
        head, within = np.divmod(np.arange(first, last), size)
        half, pair = np.divmod(within, size // 2)
        order = head * size + 2 * pair + half
        low = order.min()
        return self._stored(low, order.max() + 1)[order - low]

    def _stored(self, first: int, last: int) -> np.ndarray:
        """Returns some rows in the order of the file."""
        import gguf

        data, kind = self.tensor.data, self.tensor.tensor_type
        if len(self.shape) == 1:  # may be quantised in blocks, so it is read whole
            return gguf.quants.dequantize(np.array(data), kind)[first:last]
        values = gguf.quants.dequantize(np.array(data[first:last]), kind)
        return values.reshape(last - first, *self.shape[1:])


@functools.cache
def _readable(kind) -> bool:
    """Whether the `gguf` package turns tensors of a type into float32."""
    import gguf

    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(block, kind)
    except NotImplementedError:
        return False
    return True


def check_kind(file: str, tensor: Any) -> None:
    """Raises ValueError for a tensor that the `gguf` package does not dequantise.

    Args:
      file: path of the file.
      tensor: the `gguf.ReaderTensor`.
    """
    if not _readable(tensor.tensor_type):
        raise ValueError(
            f"{file}: tensor {tensor.name} has the type "
            f"{tensor.tensor_type.name}; expected one that the gguf package "
            "dequantises, such as F32, F16, BF16, Q8_0, Q6_K, Q4_K or Q4_1. Quantise "
            "the model to one of these."
        )
