"""Tokenizers of GGUF files, against the tokenizers that they were written from."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from gguf_models import write_gguf
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepjax.lm import gguf_files, gguf_tokenizer, hf_config, tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "llama-bpe": WORDS,
    "qwen2": WORDS.replace("{1,3}", ""),
    "smollm": None,
    "gpt-2": None,
}
TEXTS = [
    "Step 1: 12345 + 67 = 12412.\n\nStep 2: it's 12 o'clock, they'LL see",
    " two  blanks\tand a tab \r\n and lines\n\n\n",
    "caf\u00e9 cafe\u0301 \u00bd \u0663\u0664 \u4e00\u4e8c \U0001f600 done 100,000.50",
    "<|im_start|>user\nHi 12<|im_end|>\n<think>ok</think>",
    "",
    "1",
]


def byte_level(pre):
    """Byte-level BPE trained on texts, with the cutting rule of that name."""
    model = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        model.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if SPLITS[pre]:
        split = pre_tokenizers.Split(tokenizers.Regex(SPLITS[pre]), "isolated")
        parts = [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    elif pre == "smollm":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    # Trained on whole words, so that merges go over the cuts of the rule, which shows.
    words = pre_tokenizers.Split(tokenizers.Regex(r" ?\S+|\s+"), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([*TEXTS[:3], "123", "45"] * 3, trainer)
    model.pre_tokenizer = pre_tokenizers.Sequence(parts)
    model.decoder = decoders.ByteLevel()
    model.add_tokens([tokenizers.AddedToken("<think>", special=False)])
    return model


def metadata(model, pre, **more):
    """What a GGUF file says of a byte-level tokenizer, two padding rows included."""
    stored = json.loads(model.to_str())
    names = sorted(model.get_vocab(), key=model.get_vocab().get)
    types = [NORMAL] * len(names)
    for token in stored["added_tokens"]:
        types[token["id"]] = CONTROL if token["special"] else USER
    merges = [" ".join(pair) for pair in stored["model"]["merges"]]
    ids = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": [*names, "[PAD1]", "[PAD2]"],
        "ggml.token_type": [*types, UNUSED, USER],
        "ggml.merges": merges,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.padding_token_id": 0,
        "chat_template": "{{ messages[0]['content'] }}",
    }
    return {key: value for key, value in (ids | more).items() if value is not None}


def opened(path, ids):
    path.parent.mkdir(exist_ok=True)
    write_gguf(path, "llama", "F32", ids=ids)
    return gguf_files.GgufFile(path)


def loaded(folder, ids):
    """The tokenizer of a file, as stepjax loads it."""
    gguf_tokenizer.save_tokenizer(opened(folder / "a.gguf", ids), folder / "out")
    return tokenizer.load(folder / "out")


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_ids_are_those_of_the_tokenizer_that_was_written(pre, tmp_path):
    model = byte_level(pre)
    ids = loaded(tmp_path, metadata(model, pre, **{"ggml.add_bos_token": False}))
    assert (ids.vocab_size, ids.eos_id, ids.pad_id) == (model.get_vocab_size(), 2, 0)
    assert ids.bos_id is None
    for text in TEXTS:
        expected = model.encode(text, add_special_tokens=False).ids
        assert ids.encode_prompt(text) == expected
        plain = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
        if pre != "qwen2":  # which composes the accent
            assert ids.decode(expected) == plain


def test_each_rule_cuts_digits_its_own_way(tmp_path):
    found = {}
    for pre in SPLITS:
        ids = loaded(tmp_path / pre, metadata(byte_level(pre), pre))
        text = ids.encode_prompt("Step 1: 12345")
        found[pre] = [ids.token_bytes[token].decode() for token in text][-5:]
    assert found["smollm"] == found["qwen2"] == ["1", "2", "3", "4", "5"]
    assert found["llama-bpe"][-2:] == ["123", "45"]
    assert found["gpt-2"][-1] == " 12345"


def test_control_tokens_are_special_and_user_tokens_are_text(tmp_path):
    ids = loaded(tmp_path, metadata(byte_level("smollm"), "smollm"))
    assert ids.token_bytes[:3] == (b"", b"", b"")
    assert ids.token_bytes[-1] == b"<think>"
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert read.all_special_tokens == ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert read.apply_chat_template([{"content": "Hi"}], tokenize=False) == "Hi"


@pytest.mark.parametrize(
    "pre, flag, bos",
    [
        ("smollm", None, None),
        ("smollm", True, 1),
        ("smollm", False, None),
        ("llama-bpe", None, 1),
        ("llama-bpe", False, None),
    ],
)
def test_bos_as_the_file_says(pre, flag, bos, tmp_path):
    ids = loaded(
        tmp_path, metadata(byte_level(pre), pre, **{"ggml.add_bos_token": flag})
    )
    assert ids.bos_id == bos
    front = [] if bos is None else [bos]
    assert ids.encode_prompt("a") == front + ids.encode_line("a")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A sentencepiece model with byte fallback, as Llama 2 has."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(TEXTS[:3] * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "m"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def pieces_metadata(pieces, **more):
    count = pieces.get_piece_size()
    types = []
    for token in range(count):
        kind = UNKNOWN if pieces.is_unknown(token) else NORMAL
        kind = CONTROL if pieces.is_control(token) else kind
        types.append(BYTE if pieces.is_byte(token) else kind)
    return {
        "ggml.model": "llama",
        "ggml.tokens": [pieces.id_to_piece(token) for token in range(count)],
        "ggml.scores": [pieces.get_score(token) for token in range(count)],
        "ggml.token_type": types,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    } | more


def test_sentencepiece_ids_are_those_of_the_model_that_was_written(pieces, tmp_path):
    ids = loaded(tmp_path, pieces_metadata(pieces))
    assert (ids.vocab_size, ids.bos_id, ids.eos_id) == (340, 1, 2)
    random = np.random.default_rng(3)
    letters = list("Step 12.o'clk\u00e9\u4e00\U0001f600")
    drawn = ["".join(random.choice(letters, 20)).strip() for _ in range(50)]
    for text in [*TEXTS[:3], *drawn]:
        expected = pieces.encode(text)
        assert ids.encode_prompt(text) == [1, *expected]
    without = loaded(
        tmp_path / "bare",
        pieces_metadata(
            pieces, **{"ggml.add_bos_token": False, "ggml.add_space_prefix": False}
        ),
    )
    assert without.bos_id is None
    # sentencepiece has no such switch for a whole text; a letter in front shows it.
    assert pieces.encode("Step")[0] != without.encode_prompt("Step")[0]
    assert without.decode(without.encode_prompt("Step")) == "Step"


def test_no_tokenizer_is_made_of_a_file_of_gemma_3(tmp_path):
    write_gguf(tmp_path / "a.gguf", "gemma3", "F32", ids={"ggml.model": "llama"})
    file = gguf_files.GgufFile(tmp_path / "a.gguf")
    words = "'llama of Gemma 3'; expected that of another family.*tokenizer.json beside"
    with pytest.raises(ValueError, match=words):
        gguf_tokenizer.save_tokenizer(file, tmp_path)


def test_every_stop_and_the_context_length_are_kept(tmp_path):
    more = {"ggml.eot_token_id": 1, "ggml.eom_token_id": 2}
    file = opened(tmp_path / "a.gguf", metadata(byte_level("qwen2"), "qwen2", **more))
    gguf_tokenizer.save_tokenizer(file, tmp_path)
    gguf_tokenizer.save_configs(file, tmp_path)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 0}
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == ids
    data = json.loads((tmp_path / "config.json").read_text())
    assert {key: data[key] for key in ids} == ids
    assert data["max_position_embeddings"] == 512
    assert hf_config.config_from_hf(tmp_path) == gguf_files.config_from_gguf(file)
    assert tokenizer.load(tmp_path).stop_ids == (2, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ggml.pre": "tekken"}, "ggml.pre is 'tekken'; expected one of.*beside"),
        ({"ggml.pre": None}, "ggml.pre is 'none'"),
        ({"ggml.model": "t5"}, "ggml.model is 't5'; expected 'gpt2' or 'llama'"),
        ({"ggml.model": None}, "ggml.model is 'none'"),
        ({"ggml.tokens": None}, "ggml.tokens is 'none'; expected a list of texts"),
        ({"ggml.tokens": [1, 2]}, "ggml.tokens is.*expected a list of texts"),
        ({"ggml.token_type": [1]}, "token_type is '1 entries'; expected"),
        ({"ggml.merges": ["a"]}, "merges is 'a'; expected two texts and a space"),
        ({"ggml.merges": ["a zzz"]}, "merges is .*expected merges of its tokens"),
        ({"ggml.merges": None}, "merges is 'none'"),
        ({"ggml.eos_token_id": 9999}, "eos_token_id is 9999; expected a number from 0"),
    ],
)
def test_metadata_that_makes_no_tokenizer(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, metadata(byte_level("smollm"), "smollm", **change))


def test_a_token_twice_is_refused(tmp_path):
    ids = metadata(byte_level("smollm"), "smollm")
    ids["ggml.tokens"][9] = ids["ggml.tokens"][8]
    with pytest.raises(ValueError, match="'a text twice'; expected each text once"):
        loaded(tmp_path, ids)
