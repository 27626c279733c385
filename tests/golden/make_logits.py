"""Makes the golden logits beside this file; needs torch and transformers.

Each directory is a tiny random model as transformers saves it (config.json and
safetensors) plus expected.npz: tokens [2, T] (padded with 0), length [2] and the
float32 logits of each sequence run alone, logits [2, T, V] (0 on padding). The
weights are drawn wide, so that biases, norms, positions, epsilon and head order all
show in the logits. Run once, from the repository root:

    python tests/golden/make_logits.py
"""

import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
LENGTHS = (11, 7)
TOKENS = 85  # ids in use; the vocabularies are padded beyond them

SIZES = {
    "vocab_size": 96,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN2, LLAMA = transformers.Qwen2Config, transformers.LlamaConfig
# Two layers of three are local; the window is longer than every sequence.
GEMMA3 = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
    "query_pre_attn_scalar": 9,
    "sliding_window": 16,
}

# Name → (config class, differences, type saved, file limit, config.json of 4.x?)
CASES = {
    "qwen2": (
        QWEN2,
        {"rope_theta": 700.0, "rms_norm_eps": 1e-3, "num_attention_heads": 8},
        torch.float32,
        "5GB",
        True,
    ),
    "qwen2_tied": (
        QWEN2,
        {"rope_theta": 90.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        torch.bfloat16,
        "5GB",
        False,
    ),
    "llama": (
        LLAMA,
        {"rope_theta": 300.0, "rms_norm_eps": 1e-2},
        torch.float16,
        "12KB",
        False,
    ),
    "llama3_tied": (
        LLAMA,
        {
            "rope_theta": 500.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_scaling": LLAMA3,
        },
        torch.float32,
        "5GB",
        False,
    ),
    "mistral": (
        transformers.MistralConfig,
        {"rope_theta": 300.0, "rms_norm_eps": 1e-4, "sliding_window": 16},
        torch.float16,
        "5GB",
        True,
    ),
    "qwen3_tied": (
        transformers.Qwen3Config,
        {"rope_theta": 90.0, "rms_norm_eps": 1e-2, "tie_word_embeddings": True},
        torch.bfloat16,
        "5GB",
        False,
    ),
    "gemma3_tied": (
        transformers.Gemma3TextConfig,
        GEMMA3 | {"rms_norm_eps": 1e-2},
        torch.bfloat16,
        "5GB",
        False,
    ),
}


def randomise(model, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Draws every weight anew, wide enough that each matters, rounded to dtype."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(weight + 0.3 * draw)  # they begin with 1, or Gemma's 0
            elif name.endswith("bias") or "embed" in name or "lm_head" in name:
                weight.copy_(0.5 * draw)
            else:
                weight.copy_(1.5 * draw / weight.shape[1] ** 0.5)
            weight.copy_(weight.to(dtype))


def make(name: str, seed: int) -> None:
    """Writes one golden directory."""
    kind, differences, dtype, limit, old = CASES[name]
    config = kind(**(SIZES | differences), attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    randomise(model, generator, dtype)
    shape = (len(LENGTHS), max(LENGTHS))
    tokens = torch.randint(0, TOKENS, shape, generator=generator)
    logits = np.zeros((*shape, SIZES["vocab_size"]), np.float32)
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = 0
        with torch.no_grad():
            logits[row, :length] = model(tokens[row : row + 1, :length]).logits[0]
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    model.to(dtype).save_pretrained(target, max_shard_size=limit)
    (target / "generation_config.json").unlink()
    if old:
        path = target / "config.json"
        data = json.loads(path.read_text())
        data["rope_theta"] = data.pop("rope_parameters")["rope_theta"]
        path.write_text(json.dumps(data, indent=2) + "\n")
    np.savez_compressed(
        target / "expected.npz",
        tokens=tokens.numpy().astype(np.int32),
        length=np.array(LENGTHS, np.int32),
        logits=logits,
    )
    print(f"{name}: logits have standard deviation {logits[0].std():.2f}")


if __name__ == "__main__":
    for number, case in enumerate(CASES):
        make(case, number)
