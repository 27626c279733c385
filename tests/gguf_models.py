"""Small GGUF files, written with the gguf package, and the arrays that they hold."""

import gguf
import numpy as np

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
_HALVES = {"Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}  # where scales are


def sizes(family, kind, **changes):
    """Returns the metadata of a small model, by the names of the format."""
    wide = kind.endswith("_K")  # whose blocks have 256 numbers
    heads, kv, size = (4, 2, 64) if wide else (4, 2, 16)
    meta = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": heads * size,
        "feed_forward_length": 256 if wide else 96,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.layer_norm_rms_epsilon": 1e-3,
        "rope.freq_base": 700.0,
    }
    meta |= changes
    named = {f"{family}.{key}": value for key, value in meta.items()}
    return {key: value for key, value in named.items() if value is not None}


def permuted(array, heads):
    """Writes the rows of each head pair by pair, as for Llama models."""
    size = len(array) // heads
    order = [
        head * size + half * size // 2 + pair
        for head in range(heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return array[order]


def tensors(family, meta, *, tied=False, vocab=40, seed=0):
    """Returns GGUF name → random float32 array in the layout of Hugging Face files."""
    draw = np.random.default_rng(seed)
    width, inner = (
        meta[f"{family}.{key}_length"] for key in ("embedding", "feed_forward")
    )
    count = meta[f"{family}.attention.head_count"]
    size = width // count
    flat = meta.get(f"{family}.attention.head_count_kv", count) * size
    shapes = {"token_embd.weight": (vocab, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (vocab, width)
    for layer in range(meta[f"{family}.block_count"]):
        for name, shape in {
            "attn_norm.weight": (width,),
            "ffn_norm.weight": (width,),
            "attn_q.weight": (width, width),
            "attn_k.weight": (flat, width),
            "attn_v.weight": (flat, width),
            "attn_output.weight": (width, width),
            "ffn_gate.weight": (inner, width),
            "ffn_up.weight": (inner, width),
            "ffn_down.weight": (width, inner),
        }.items():
            shapes[f"blk.{layer}.{name}"] = shape
        if family in ("qwen3", "gemma3"):
            for letter in "qk":
                shapes[f"blk.{layer}.attn_{letter}_norm.weight"] = (size,)
        if family == "gemma3":
            for name in ("post_attention", "post_ffw"):
                shapes[f"blk.{layer}.{name}_norm.weight"] = (width,)
        if family == "qwen2":
            for letter, rows in {"q": width, "k": flat, "v": flat}.items():
                shapes[f"blk.{layer}.attn_{letter}.bias"] = (rows,)
    return {
        name: draw.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _stored(array, kind, draw):
    """Returns the bytes of an array in a file, and the array that they give."""
    if kind in _HALVES:  # the package has no writer for these: any bytes will do
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        shape = (*array.shape[:-1], array.shape[-1] // block, size)
        data = draw.integers(0, 256, shape, np.uint8)
        low, high = _HALVES[kind]
        halves = draw.normal(size=(*shape[:-1], (high - low) // 2))
        data[..., low:high] = halves.astype(np.float16).view(np.uint8)
        data = data.reshape(*array.shape[:-1], -1)
    else:
        data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    return data, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def write_gguf(path, family, kind, *, meta=None, arrays=None, ids=None, extra=None):
    """Writes a GGUF file.

    Args:
      path: of the file.
      family: "llama", "qwen2", "qwen3" or "gemma3".
      kind: type of the matrices, one of `KINDS`; vectors are F32.
      meta: from `sizes`.
      arrays: from `tensors`; the rows of queries and keys are permuted for Llama, and 1
        is added to the norms of Gemma 3.
      ids: metadata of the tokenizer, without "tokenizer.".
      extra: name → float32 array, written as they are.

    Returns:
      Name → the dequantised array, in the layout of Hugging Face files.
    """
    meta = sizes(family, kind) if meta is None else meta
    arrays = tensors(family, meta) if arrays is None else arrays
    writer, draw = gguf.GGUFWriter(path, family), np.random.default_rng(5)
    for key, value in meta.items():
        _add(writer, key, value)
    for key, value in (ids or {}).items():
        _add(writer, f"tokenizer.{key}", value)
    held = {}
    for name, array in arrays.items():
        used = kind if array.ndim == 2 else "F32"
        added = np.float32(family == "gemma3" and name.endswith("norm.weight"))
        data, held[name] = _stored(array + added, used, draw)
        held[name] = held[name] - added
        key = f"{family}.attention.head_count"
        if family == "llama" and "attn_q." in name:
            data = permuted(data, meta[key])
        elif family == "llama" and "attn_k." in name:
            data = permuted(data, meta.get(f"{key}_kv", meta[key]))
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[used])
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def write_world_model(path, tokenizer):
    """Writes a Llama with random matrices and the pieces of a world's tokenizer.

    The scores of its tokens are made up, so that texts have more tokens than in the
    world.

    Args:
      path: of the file.
      tokenizer: of the world, with at most 136 ids.

    Returns:
      Name → the dequantised array, in the layout of Hugging Face files.
    """
    pieces = tokenizer._backend.get_vocab()
    names = sorted(pieces, key=pieces.get)
    special = set(tokenizer._backend.all_special_ids)
    ids = {
        "ggml.model": "llama",
        "ggml.tokens": [name.replace(" ", "\u2581") for name in names],
        "ggml.scores": [-float(token) for token in range(len(names))],
        "ggml.token_type": [3 if id in special else 1 for id in range(len(names))],
        "ggml.eos_token_id": tokenizer.eos_id,
        "ggml.add_bos_token": False,
        "ggml.add_space_prefix": False,
    }
    meta = sizes("llama", "Q8_0")
    arrays = tensors("llama", meta, vocab=136)
    return write_gguf(path, "llama", "Q8_0", meta=meta, arrays=arrays, ids=ids)


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
