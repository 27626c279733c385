"""Writes the tokenizer of a GGUF file as a Hugging Face folder.

A GGUF file holds the tokens and merges, and names the rule that cuts text before
merges are applied (``tokenizer.ggml.pre``). The rules here are those of the Hugging
Face tokenizers that the models were trained with. transformers reads GGUF files only
if torch is installed, and it ignores rules that it does not know.
"""

import json
import math
import pathlib
import re
import reprlib

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from stepjax.lm import generation_config, hf_config, limits
from stepjax.lm.gguf_files import GgufFile, config_from_gguf

# Values of tokenizer.ggml.token_type.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _WORDS.replace("NUMBER", r"\p{N}{1,3}")
_QWEN2 = _WORDS.replace("NUMBER", r"\p{N}")
_DIGITS = "digits"  # digit by digit, then the words of GPT-2
# tokenizer.ggml.pre → how text is cut; None: into the words of GPT-2.
_RULES = {
    "gpt-2": None,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
}
# Name in the file → name in a tokenizer_config.json.
_NAMED = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
}
_PADDING = re.compile(r"\[PAD\d+\]")  # rows of the embedding that no token has


def save_tokenizer(file: GgufFile, directory: str | pathlib.Path) -> None:
    """Writes the tokenizer of a GGUF file to a folder that `tokenizer.load` reads.

    Args:
      file: holds a tokenizer, either byte-level BPE or of the sentencepiece kind.
      directory: target folder, made if missing.

    Raises:
      ValueError: when the file holds no tokenizer, or one of another kind; also for
        Gemma 3, whose rules are more than those of sentencepiece.
    """
    kind = file.get("tokenizer.ggml.model", str, "none")
    if kind not in ("gpt2", "llama"):
        raise _unknown(file, "tokenizer.ggml.model", kind, "'gpt2' or 'llama'")
    if file.metadata.get("general.architecture") == "gemma3":
        expected = "that of another family than Gemma"
        raise _unknown(file, "tokenizer.ggml.model", f"{kind} of Gemma 3", expected)
    tokens = _texts(file, "tokenizer.ggml.tokens")
    longest = max(tokens, key=len)
    if len(longest) > limits.TOKEN_CHARACTERS:
        raise _unknown(
            file,
            "tokenizer.ggml.tokens",
            f"a token of {len(longest):,} characters, {longest[:20]}...",
            f"tokens of at most {limits.TOKEN_CHARACTERS:,} characters",
        )
    types = file.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
    if len(types) != len(tokens):
        raise _unknown(
            file,
            "tokenizer.ggml.token_type",
            f"{len(types)} entries",
            f"{len(tokens)}, one per token",
        )
    used = {
        id: token
        for id, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ != _UNUSED and not _PADDING.fullmatch(token)
    }
    vocabulary = {token: id for id, token in used.items()}
    if len(vocabulary) != len(used):
        raise _unknown(file, "tokenizer.ggml.tokens", "a text twice", "each text once")
    if kind == "gpt2":
        backend = _byte_level(file, vocabulary)
    else:
        backend = _sentencepiece(file, types, used)
    special = [
        AddedToken(token, normalized=False, special=types[id] != _USER_DEFINED)
        for id, token in used.items()
        if types[id] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens([token for token in special if not token.special])
    backend.add_special_tokens([token for token in special if token.special])
    named = {name: used.get(_id(file, name)) for name in _NAMED}
    # llama.cpp begins with BOS, unless told otherwise, with sentencepiece and Llama 3.
    begins = kind == "llama" or _rule(file) == _LLAMA3
    begins = file.get("tokenizer.ggml.add_bos_token", bool, begins)
    if begins and named["bos"] is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=[named["bos"], "$A"],
            pair=[named["bos"], "$A", "$B:1"],
            special_tokens=[(named["bos"], _id(file, "bos"))],
        )
    named = {_NAMED[name]: text for name, text in named.items() if text is not None}
    whole = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **named
    )
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None:
        whole.chat_template = file.get("tokenizer.chat_template", str)
    whole.save_pretrained(directory)


def save_configs(file: GgufFile, directory: str | pathlib.Path) -> None:
    """Writes the config.json and the generation_config.json of a GGUF file's model.

    Every end of a sequence, of a turn and of a message ends a generation. A
    generation_config.json that is there already stays.
    """
    directory = pathlib.Path(directory)
    ids = {name: _id(file, name) for name in ("bos", "eos", "eot", "eom", "padding")}
    stops = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    stops = list(dict.fromkeys(stops))
    family = file.get("general.architecture", str)
    data = hf_config.config_to_hf(
        config_from_gguf(file),
        stop_ids=stops,
        bos_id=ids["bos"],
        pad_id=ids["padding"],
        dtype="float32",
        context_length=file.positive(f"{family}.context_length", "context_length"),
    )
    generation = generation_config.of_model(data, stops)
    for name, values in ((generation_config.NAME, generation), ("config.json", data)):
        path = directory / name
        if name == "config.json" or not path.exists():
            path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _id(file: GgufFile, name: str) -> int | None:
    """Returns the id of a special token; None when the file names none."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in file.metadata:
        return None
    count = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    id = file.get(key, int)
    if not 0 <= id < count:
        raise _unknown(file, key, id, f"a number from 0 to {count - 1}")
    return id


def _byte_level(file: GgufFile, vocabulary: dict[str, int]) -> Tokenizer:
    merges = [_pair(file, text) for text in _texts(file, "tokenizer.ggml.merges")]
    rule = _rule(file)
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=rule == _LLAMA3)
    except Exception as error:  # the tokenizers library raises bare Exception
        expected = "merges of its tokens"
        raise _unknown(file, "tokenizer.ggml.merges", str(error), expected) from error
    backend = Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
    if rule == _DIGITS:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.Sequence([digits, words])
    elif rule is not None:
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        words = pre_tokenizers.Sequence([split, words])
    backend.pre_tokenizer = words
    if rule == _QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GgufFile, types: list[int], used: dict[int, str]) -> Tokenizer:
    """Returns BPE whose merges are ordered by the scores of the merged tokens."""
    scores = file.get("tokenizer.ggml.scores", list)
    if len(scores) != len(types):
        raise _unknown(
            file,
            "tokenizer.ggml.scores",
            f"{len(scores)} entries",
            f"{len(types)}, one per token",
        )
    if not all(isinstance(s, float) and math.isfinite(s) for s in scores):
        bad = "an entry that is no number"
        raise _unknown(file, "tokenizer.ggml.scores", bad, "finite numbers")
    vocabulary = {token: id for id, token in used.items()}
    whole = {
        token
        for id, token in used.items()
        if types[id] not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(whole, key=lambda token: -scores[vocabulary[token]])
        for cut in range(1, len(token))
        if token[:cut] in whole and token[cut:] in whole
    ]
    unknown = [token for id, token in used.items() if types[id] == _UNKNOWN]
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = [normalizers.Replace(" ", "\u2581")]
    strip = []
    if file.get("tokenizer.ggml.add_space_prefix", bool, True):
        space.insert(0, normalizers.Prepend("\u2581"))
        strip.append(decoders.Strip(" ", left=1))
    backend.normalizer = normalizers.Sequence(space)
    replace = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _texts(file: GgufFile, key: str) -> list[str]:
    texts = file.get(key, list, [])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise _unknown(file, key, texts[:3] or "none", "a list of texts")
    return texts


def _pair(file: GgufFile, text: str) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not (left and space and right):
        raise _unknown(file, "tokenizer.ggml.merges", text, "two texts and a space")
    return left, right


def _rule(file: GgufFile) -> str | None:
    name = file.get("tokenizer.ggml.pre", str, "none")
    if name not in _RULES:
        raise _unknown(file, "tokenizer.ggml.pre", name, f"one of {tuple(_RULES)}")
    return _RULES[name]


def _unknown(file: GgufFile, key: str, value, expected: str) -> ValueError:
    shown = reprlib.repr(value)
    return ValueError(
        f"{file.path}: metadata {key} is {shown}; expected {expected}, which stepjax "
        "can make a tokenizer of. Put the model's tokenizer.json beside the file, or "
        "name its folder in the setting tokenizer."
    )
