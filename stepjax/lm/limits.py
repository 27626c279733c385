"""The numbers of a decoder that are believed, in settings and in files of others.

They are far beyond every published model: they catch a slip or a hostile file, such as
a vocabulary of 1e12, before it takes the memory or the time of a computer.
"""

# Field of `model.ModelConfig` → the least and the largest value.
NUMBERS: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 16_777_216),
    "hidden_size": (1, 131_072),
    "num_layers": (1, 1000),
    "num_heads": (1, 4096),
    "num_kv_heads": (1, 4096),
    "head_dim": (2, 4096),
    "intermediate_size": (1, 1_048_576),
    "rope_theta": (1.0, 1e12),
    "rms_norm_eps": (1e-12, 0.1),
    "embedding_std": (1e-6, 100.0),
    "init_std": (1e-6, 100.0),
    "context_length": (1, 1_073_741_824),  # of no field, but in the files of others
}
JSON_BYTES = 64 * 2**20  # of a file that says what is in other files
HEADER_BYTES = 32 * 2**20  # of the list of tensors in front of a weight file
TENSORS = 100_000  # in one file
TOKEN_CHARACTERS = 1000  # of a token of a vocabulary


def believed(name: str, value: float) -> bool:
    """Whether a number is within the limits of its field."""
    least, most = NUMBERS[name]
    return least <= value <= most


def words(name: str) -> str:
    """Returns the limits of a field in words, such as "1 to 1,000"."""
    return " to ".join(
        f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
        for limit in NUMBERS[name]
    )
