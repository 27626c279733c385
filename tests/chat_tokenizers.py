"""Small tokenizers of the kinds that instruct models have, with chat templates."""

import json

import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPACE = "\u2581"
WORDS = [
    "Step 1: Ann has 12 apples and eats 3.\nStep 2: So 12 - 3 = 9 are left.\n",
    "[Start of question]\nHow many apples are left?\n[End of question]\n\n",
    "You are a judge. Explain it. [[A]] or [[B]]\n\nJudgment:\n",
]
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token }}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _trained(specials, pre_tokenizer, normalizer=None, decoder=None, fallback=False):
    alphabet = [] if fallback else sorted(pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        if fallback
        else models.BPE()
    )
    model.normalizer, model.decoder = normalizer, decoder or decoders.ByteLevel()
    if pre_tokenizer is not None:
        model.pre_tokenizer = pre_tokenizer
    fallbacks = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=480 + len(fallbacks),
        initial_alphabet=alphabet,
        special_tokens=[*specials, *fallbacks],
        show_progress=False,
    )
    # The newline is no piece of sentencepiece vocabularies: it falls back to its byte.
    lines = (
        [line for text in WORDS for line in text.splitlines()] if fallback else WORDS
    )
    model.train_from_iterator(lines * 4, trainer)
    if not fallback:
        return model
    # Trained bytes are special tokens; those of real tokenizers are ordinary pieces.
    rules = json.loads(model.to_str())
    rules["added_tokens"] = [
        token for token in rules["added_tokens"] if token["content"] in specials
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(rules))


def _split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _with_bos(model, name):
    model.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, model.token_to_id(name))]
    )
    return model


def _smollm():
    """Special tokens inside of the vocabulary, single digits, no BOS."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    model = _trained(specials, pre_tokenizers.Sequence([digits, bytes_]))
    return model, {"eos_token": "<|im_end|>"}, CHATML


def _qwen():
    """Special tokens behind the vocabulary, and an added word that is none."""
    model = _trained([], _split(_QWEN))
    model.add_tokens(["<think>"])
    model.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # The base model's end of sequence is not what ends a turn.
    return model, {"eos_token": "<|endoftext|>"}, CHATML


def _llama3():
    """Digits in threes, whole words first, and a BOS, which the template writes too."""
    model = _trained([], _split(_LLAMA3))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"]
    model.add_special_tokens([*names, "<|end_header_id|>", "<|eot_id|>"])
    rules = json.loads(model.to_str())
    rules["model"]["ignore_merges"] = True
    model = tokenizers.Tokenizer.from_str(json.dumps(rules))
    config = {"bos_token": names[0], "eos_token": names[1]}
    return _with_bos(model, names[0]), config, LLAMA3


def _metaspace():
    """Sentencepiece with a pre-tokenizer that puts a space in front of the text."""
    space = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    model = _trained(["<unk>", "<s>", "</s>"], space, None, decoder, fallback=True)
    return _with_bos(model, "<s>"), {"bos_token": "<s>", "eos_token": "</s>"}, ZEPHYR


def _prepend():
    """Sentencepiece as in Llama 2: a normalizer puts the space in front."""
    normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    model = _trained(["<unk>", "<s>", "</s>"], None, normalizer, decoder, fallback=True)
    return _with_bos(model, "<s>"), {"bos_token": "<s>", "eos_token": "</s>"}, ZEPHYR


def _unigram():
    """Sentencepiece with scores, in which "</s>" is the best piece of all."""
    letters = sorted(set("".join(WORDS).replace(" ", SPACE)) - {"\n"})
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(letter, -8.0) for letter in letters]
    pieces += [(word, -5.0) for word in ("Step", f"{SPACE}Step", "apples", "[[")]
    model = tokenizers.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    model.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    return _with_bos(model, "<s>"), {"bos_token": "<s>", "eos_token": "</s>"}, ZEPHYR


FAMILIES = {
    "smollm": _smollm,
    "qwen": _qwen,
    "llama3": _llama3,
    "metaspace": _metaspace,
    "prepend": _prepend,
    "unigram": _unigram,
}


def write(family, directory, template=None):
    """Writes the tokenizer of a family; its folder is what `tokenizer.load` reads.

    Args:
      family: one of `FAMILIES`.
      directory: folder, made if absent.
      template: another chat template than the family's; "" writes none.
    """
    model, config, own = FAMILIES[family]()
    directory.mkdir(parents=True, exist_ok=True)
    model.save(str(directory / "tokenizer.json"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    template = own if template is None else template
    if template:
        (directory / "chat_template.jinja").write_text(template)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
