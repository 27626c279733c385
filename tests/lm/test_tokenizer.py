"""Tokenizers: the world's own, two small ones of the usual kinds, and real ones."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from stepjax import prompts
from stepjax.lm import tokenizer
from stepjax.lm.stops import compile_stops, cut_at_stop
from stepjax.worlds import arithmetic, arithmetic_data

ASCII = "".join(map(chr, range(32, 127)))
SPACE = "\u2581"
SPECIAL = re.compile("<unk>|</s>")  # these two texts are ids, not characters
TEXTS = [
    "Step 1: Ann has 12 apples.\nStep 2: She eats 3, so 12-3=9.\n",
    "Step 3: So \\boxed{\\frac{1}{2}} is the answer.",
    "caf\u00e9 na\u00efve \u4e2d\u6587 \U0001f600 done",
    "  two  spaces\tand a tab",
]


@pytest.fixture(scope="module")
def world(tokenizer_folder):
    """The world's tokenizer as the library loads it."""
    return tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="module")
def pieces(tokenizer_folder):
    """The world's tokenizer as sentencepiece loads it."""
    return sentencepiece.SentencePieceProcessor(
        model_file=str(tokenizer_folder / "tokenizer.model")
    )


def byte_level_model():
    """Byte-level BPE as in the Qwen family: fuses '.' with newlines, adds no BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("S", "t"), ("St", "e"), ("Ste", "p"), ("\u0120", "a"), (".", "\u010a")]
    merges += [("\u010a", "\u010a"), ("\u0120a", "p"), ("\u00c3", "\u00a9")]
    # "</s>" is an ordinary word here, as in the Qwen vocabulary.
    vocabulary = [*alphabet, *(left + right for left, right in merges), "</s>"]
    model = tokenizers.Tokenizer(
        models.BPE({piece: token for token, piece in enumerate(vocabulary)}, merges)
    )
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    model.add_tokens(["<think>"])
    return model


def sentencepiece_model(bos=True):
    """BPE with byte fallback as in Llama 2: a space in front of the text, and BOS."""
    letters = sorted({SPACE, *"Steparlounds"})
    merges = [("S", "t"), ("St", "e"), ("Ste", "p"), (SPACE, "Step"), (SPACE, "a")]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [*letters, *(left + right for left, right in merges)]
    model = tokenizers.Tokenizer(
        models.BPE(
            {piece: token for token, piece in enumerate(names)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    model.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    if bos:
        model.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return model


def save(model, directory, **config):
    """Writes a tokenizer.json and, if there is a config, a tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save(str(directory / "tokenizer.json"))
    if config:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A Qwen-like tokenizer of a chat model."""
    directory = tmp_path_factory.mktemp("byte_level")
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    save(byte_level_model(), directory, **config)
    generation = {"eos_token_id": [267, 265], "top_p": 0.9}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return tokenizer.load(directory)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory):
    """A Llama-2-like tokenizer."""
    directory = tmp_path_factory.mktemp("byte_fallback")
    config = {"eos_token": "</s>", "bos_token": "<s>"}
    return tokenizer.load(save(sentencepiece_model(), directory, **config))


def world_rows():
    """The world's texts: (prompt, response) of solutions and of judgments."""
    data = arithmetic_data.dataset(
        seed=0, ift=200, eft=200, heldout=1, questions=[1], test=1
    )
    templates = arithmetic.templates()
    solutions = [
        (prompts.solve_prompt(templates, row.problem), "\n".join(row.steps))
        for row in data.ift
    ]
    judgments = []
    for row in data.eft:
        head, before_a, between, tail = prompts.judge_pieces(templates, row.problem)
        steps = "".join(step + "\n" for step in row.steps)
        prompt = f"{head}{steps}{before_a}{row.a}\n{between}{row.b}\n{tail}"
        verdict = prompts.verdict(templates, row.verdict)
        judgments.append((prompt, row.explanation + verdict))
    return solutions, judgments


def test_world_ids_are_those_of_sentencepiece(world, pieces):
    solutions, judgments = world_rows()
    assert world.vocab_size == pieces.vocab_size() == 131
    for prompt, response in solutions + judgments:
        for text in (prompt, response, prompt + response):
            assert world.encode_prompt(text) == pieces.encode(text)
            assert world.decode(pieces.encode(text)) == text
    assert world.encode_prompt("\u4e2d\u6587 1") == pieces.encode("\u4e2d\u6587 1")


@settings(deadline=None, max_examples=200)
@given(text=st.text(ASCII + "\n").filter(lambda t: not SPECIAL.search(t)))
def test_world_round_trips_printable_ascii(world, pieces, text):
    ids = world.encode_prompt(text)
    assert ids == pieces.encode(text)
    assert world.decode(ids) == text == pieces.decode(ids)


def test_world_words_are_single_pieces(world):
    words = [f"*{factor}" for factor in (3, 4, 7, 9)]
    words += [f"+{addend}" for addend in range(1, 7)]
    words += [f"Step {number}: " for number in range(1, 10)]
    words += ["Check: ", " (A) ", " (B) ", "(A)\n", "(B)\n", ", ", "; \\boxed{", "}"]
    words += ["[[A]]", "[[B]]", " [[A]]", " [[B]]", "(?)\n", " (+) ", " (-) "]
    words += ["\n", *ASCII]
    ids = [world.encode_prompt(word) for word in words]
    assert {len(word_ids) for word_ids in ids} == {1}
    assert len({word_ids[0] for word_ids in ids}) == len(set(words)) == 129
    assert [world.token_bytes[word_ids[0]] for word_ids in ids] == [
        word.encode() for word in words
    ]
    assert (world.eos_id, world.bos_id, world.stop_ids) == (1, None, (1,))
    assert world.token_bytes[:2] == (b"", b"")
    assert world.encode_prompt("<unk>1</s>")[::2] == [0, 1]


def test_world_rows_are_short(world):
    solutions, judgments = world_rows()
    counts = [
        [len(world.encode_prompt(p) + world.encode_line(r)) + 1 for p, r in rows]
        for rows in (solutions, judgments)
    ]
    assert max(counts[0]) == 32  # the end of sequence is counted
    assert 70 <= max(counts[1]) <= 84  # both candidates garbled
    assert np.mean(counts[1]) < 60


def test_world_prompts_can_be_encoded_piece_by_piece(world):
    solutions, judgments = world_rows()
    for prompt, response in solutions + judgments:
        lines = (prompt + response).splitlines(keepends=True)
        ids = [token for line in lines[1:] for token in world.encode_line(line)]
        ids = world.encode_prompt(lines[0]) + ids
        assert ids == world.encode_prompt(prompt + response)


def test_world_tokenizer_is_the_same_every_time(tokenizer_folder, tmp_path):
    arithmetic.train_tokenizer(tmp_path / "again")
    names = sorted(path.name for path in tokenizer_folder.iterdir())
    assert names == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    for name in names:
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tokenizer_folder / name).read_bytes()


def test_world_tokenizer_loads_with_transformers_alone(tokenizer_folder, pieces):
    auto = AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
    text = arithmetic.SOLVE.format(problem="8*7+4") + "Step 1: 8*7+4=0; \\boxed{0}"
    assert auto(text)["input_ids"] == pieces.encode(text)
    assert auto.decode(pieces.encode(text)) == text
    assert auto.eos_token_id == 1


@pytest.mark.parametrize("name", ["world", "byte_level", "byte_fallback"])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_lines_are_encoded_as_they_continue(request, name, data):
    loaded = request.getfixturevalue(name)
    before = data.draw(st.text("Step 12:.a(A)", max_size=12))
    first = data.draw(st.sampled_from("Sp1a"))
    text = first + data.draw(st.text("Step 12:\\{}.\n a", max_size=12))
    joint = loaded.encode_prompt(f"{before}\n{text}")
    assert joint == loaded.encode_prompt(f"{before}\n") + loaded.encode_line(text)
    assert loaded.decode(loaded.encode_line(text)) == text


def test_lines_that_do_not_come_apart_are_refused(world, byte_level, byte_fallback):
    for loaded in (world, byte_level, byte_fallback):
        assert loaded.encode_line("") == []
    with pytest.raises(ValueError, match="fuses with the newline before it"):
        byte_level.encode_line("\nStep 1")
    # Alone, the text would get a space in front, which is not there after a newline.
    alone = byte_fallback.encode_prompt("Step")[1:]
    assert [byte_fallback.token_bytes[token] for token in alone] == [b" Step"]
    line = byte_fallback.encode_line("Step")
    assert [byte_fallback.token_bytes[token] for token in line] == [b"Step"]


def test_bos_is_added_once_and_only_to_prompts(byte_level, byte_fallback):
    assert (byte_fallback.bos_id, byte_level.bos_id) == (1, None)
    ids = byte_fallback.encode_prompt("Step a")
    assert ids[0] == 1 and ids.count(1) == 1
    assert 1 not in byte_fallback.encode_line("Step a")
    assert byte_fallback.encode_prompt("") == [1]
    assert byte_fallback.encode_prompt("<s>")[:2] != [1, 1]
    assert byte_level.encode_prompt("") == []
    assert byte_level.encode_prompt("a") == byte_level.encode_line("a")


def test_special_texts_become_their_ids_and_stand_for_no_bytes(byte_level):
    names = {"<|endoftext|>": 265, "<|im_start|>": 266, "<|im_end|>": 267}
    ids = byte_level.encode_prompt("<|im_start|>a<|im_end|>\n<think>")
    assert ids[0] == 266 and ids[2] == 267 and ids[-1] == 268 and len(ids) == 5
    assert [byte_level.token_bytes[token] for token in names.values()] == [b""] * 3
    assert byte_level.token_bytes[268] == b"<think>"
    assert byte_level.token_bytes[264] == b"</s>"
    assert byte_level.decode(ids) == "a\n<think>"
    assert byte_level.vocab_size == len(byte_level.token_bytes) == 269


def test_stop_ids_join_the_generation_config(byte_level, byte_fallback):
    assert byte_level.eos_id == 267
    assert byte_level.stop_ids == (267, 265)
    assert byte_level.pad_id == 265
    assert byte_fallback.stop_ids == (2,)
    assert byte_fallback.pad_id == 2  # has no padding token of its own


def test_stop_ids_come_from_config_json_without_a_generation_config(tmp_path):
    directory = save(sentencepiece_model(), tmp_path / "model", eos_token="</s>")
    values = {"eos_token_id": [2, 7, 9], "pad_token_id": 3, "top_p": 0.5}
    (directory / "config.json").write_text(json.dumps(values | {"hidden_size": 8}))
    loaded = tokenizer.load(directory)
    assert loaded.stop_ids == (2, 7, 9)
    # A copy keeps them, also without the config.json.
    loaded.save(tmp_path / "copy")
    generation = tmp_path / "copy" / "generation_config.json"
    assert json.loads(generation.read_text()) == values
    assert not (tmp_path / "copy" / "config.json").exists()
    assert tokenizer.load(tmp_path / "copy").stop_ids == (2, 7, 9)
    # generation_config.json is asked alone when it is there.
    (directory / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert tokenizer.load(directory).stop_ids == (2, 5)
    (directory / "generation_config.json").unlink()
    for content in ("[]", "{", '{"eos_token_id": "</s>"}', "[" * 100_000):
        (directory / "config.json").write_text(content)
        with pytest.raises(ValueError, match="/config.json: "):
            tokenizer.load(directory)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_spell_the_text(request, name, text):
    loaded = request.getfixturevalue(name)
    ids = loaded.encode_line("x" + text)
    joined = b"".join(loaded.token_bytes[token] for token in ids)
    assert joined == ("x" + text).encode()
    assert loaded.decode(ids) == "x" + text
    # A cut in the middle of a character shows as U+FFFD and changes nothing before.
    for end in range(len(ids)):
        assert ("x" + text).startswith(loaded.decode(ids[:end]).rstrip("\ufffd"))


def test_all_bytes_have_an_id(byte_level, byte_fallback):
    single = {bytes([byte]) for byte in range(256)}
    assert single <= set(byte_level.token_bytes)
    assert single <= set(byte_fallback.token_bytes)


@pytest.mark.parametrize("token", [-1, 131])
def test_ids_outside_of_the_vocabulary_are_not_decoded(world, token):
    with pytest.raises(ValueError, match=f"token id {token} is outside"):
        world.decode([5, token])


@pytest.mark.parametrize("name", ["world", "byte_level", "byte_fallback"])
def test_saved_tokenizers_load_alike(request, tmp_path, name):
    loaded = request.getfixturevalue(name)
    loaded.save(tmp_path / "saved")
    again = tokenizer.load(tmp_path / "saved")
    assert again.directory == tmp_path / "saved"
    fields = ("vocab_size", "eos_id", "bos_id", "stop_ids", "pad_id", "token_bytes")
    for field in fields:
        assert getattr(again, field) == getattr(loaded, field)
    text = "Step 1: a\nStep 2"
    assert again.encode_prompt(text) == loaded.encode_prompt(text)
    again.save(tmp_path / "saved")  # onto itself
    assert tokenizer.load(tmp_path / "saved").encode_line(text) == again.encode_line(
        text
    )


@pytest.mark.parametrize("as_file", [True, False])
def test_bare_files_find_their_end_of_sequence(tmp_path, as_file):
    file = save(byte_level_model(), tmp_path / "bare") / "tokenizer.json"
    loaded = tokenizer.load(file if as_file else file.parent)
    assert loaded.eos_id == 267  # <|im_end|> comes before <|endoftext|>
    assert loaded.directory == file.parent
    loaded.save(tmp_path / "saved")
    auto = AutoTokenizer.from_pretrained(str(tmp_path / "saved"), local_files_only=True)
    assert auto.eos_token == "<|im_end|>"
    again = tokenizer.load(tmp_path / "saved")
    assert again.token_bytes == loaded.token_bytes
    assert again.encode_prompt(TEXTS[0]) == loaded.encode_prompt(TEXTS[0])

    file = save(sentencepiece_model(), tmp_path / "bare") / "tokenizer.json"
    loaded = tokenizer.load(file)
    assert (loaded.eos_id, loaded.bos_id) == (2, 1)


def test_sentencepiece_models_load_through_their_config(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    config |= {"bos_token": "<s>", "unk_token": "<unk>", "add_bos_token": True}
    with pytest.raises(ValueError, match="no tokenizer here"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = tokenizer.load(tmp_path)
    model = str(tmp_path / "tokenizer.model")
    original = sentencepiece.SentencePieceProcessor(model_file=model)
    assert loaded.vocab_size == original.vocab_size() == 320
    for text in (text.strip() for text in TEXTS):
        assert loaded.encode_prompt(text) == [original.bos_id(), *original.encode(text)]
        assert loaded.decode(loaded.encode_prompt(text)) == " " + text


def test_missing_and_unusable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing.*: no tokenizer here; expected a"):
        tokenizer.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no tokenizer here"):
        tokenizer.load(tmp_path)
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        tokenizer.load(broken)

    model = tokenizers.Tokenizer(models.BPE({SPACE: 0, "a": 1}, []))
    model.decoder = decoders.Replace(SPACE, " ")
    model.add_tokens(["</s>"])  # an added word, not a special token
    with pytest.raises(ValueError, match="no end-of-sequence token known; expected"):
        tokenizer.load(save(model, tmp_path / "endless"))
    model.decoder = decoders.Fuse()
    model.add_special_tokens(["</s>"])
    with pytest.raises(ValueError, match="unknown kind of vocabulary"):
        tokenizer.load(save(model, tmp_path / "unknown"))

    directory = save(sentencepiece_model(), tmp_path / "generation")
    for content in ("[]", "{", '{"eos_token_id": ["</s>"]}'):
        (directory / "generation_config.json").write_text(content)
        with pytest.raises(ValueError, match="generation_config.json: "):
            tokenizer.load(directory)


def test_two_tokens_in_front_are_refused(tmp_path):
    model = sentencepiece_model(bos=False)
    model.post_processor = processors.TemplateProcessing(
        single="<s> <unk> $A", special_tokens=[("<s>", 1), ("<unk>", 0)]
    )
    with pytest.raises(ValueError, match="expected at most one token"):
        tokenizer.load(save(model, tmp_path))


@st.composite
def straddled(draw, known):
    """Ids of a text with step markers, cut anywhere that tokens (bytes → ids) allow."""
    words = ["Step", "Step 2", "\n", " so ", ".", "x=0", "\u00e9", "\n\n", "\nStep 9"]
    text = "".join(draw(st.lists(st.sampled_from(words), max_size=6)))
    text = (
        text + draw(st.sampled_from(["\nStep 3: ", "\nStep x", ""])) + "so"
    ).encode()
    ids, at = [], 0
    while at < len(text):
        ends = [n for n in range(at + 1, len(text) + 1) if text[at:n] in known]
        at, begin = draw(st.sampled_from(ends)), at
        ids.append(draw(st.sampled_from(known[text[begin:at]])))
    return ids


def check_stops(loaded):
    """Checks where the automaton stops, however markers are cut; returns its table."""
    stops = prompts.step_stops(prompts.Templates())
    table = compile_stops(loaded.token_bytes, stops, loaded.stop_ids)
    known, found = {}, set()
    for token, piece in enumerate(loaded.token_bytes):
        known.setdefault(piece, []).append(token)

    @settings(deadline=None, max_examples=200, database=None)
    @given(straddled(known))
    def check(ids):
        state, text, done = 0, b"", False
        for token in ids:
            state, text = table[state, token], text + loaded.token_bytes[token]
            done = any(stop.encode() in text for stop in stops)
            assert (state == len(table) - 1) == done
        found.add(done)

    check()
    assert found == {True, False}
    return table


def test_markers_are_found_however_tokens_straddle_them(byte_level, byte_fallback):
    for loaded in (byte_level, byte_fallback):
        check_stops(loaded)


def real_directories():
    """Folders with a tokenizer.json below the one that STEPJAX_TOKENIZERS names."""
    root = os.environ.get("STEPJAX_TOKENIZERS")
    found = (
        sorted(path.parent for path in Path(root).rglob("tokenizer.json"))
        if root
        else []
    )
    reason = pytest.mark.skip(reason="STEPJAX_TOKENIZERS names no folder of tokenizers")
    return found or [pytest.param(None, marks=reason)]


@pytest.mark.parametrize("directory", real_directories(), ids=str)
def test_real_tokenizers(directory, tmp_path):
    loaded = tokenizer.load(directory)
    auto = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    assert loaded.eos_id == auto.eos_token_id in loaded.stop_ids
    assert len(loaded.token_bytes) == loaded.vocab_size >= 32_000
    for text in TEXTS:
        ids = loaded.encode_prompt(text)
        assert ids == auto(text)["input_ids"]
        assert loaded.decode(ids).removeprefix(" ") == text.removeprefix(" ")
        if text[0] != " ":
            line = loaded.encode_line(text)
            assert b"".join(loaded.token_bytes[i] for i in line) == text.encode()
            prompt = "Find x.\n"
            joint = loaded.encode_prompt(prompt + text)
            assert joint == loaded.encode_prompt(prompt) + line

    table = check_stops(loaded)
    stops = prompts.step_stops(prompts.Templates())
    ids = loaded.encode_line(TEXTS[0])
    kept = cut_at_stop(loaded.token_bytes, ids, stops)
    assert loaded.decode(ids[:kept]) == TEXTS[0].splitlines(keepends=True)[0]
    state, states = 0, []
    for token in ids:
        state = table[state, token]
        states.append(state)
    stopped = states.index(len(table) - 1) + 1
    assert loaded.decode(ids[:stopped]).endswith("\nStep 2")

    bare = tmp_path / "tokenizer.json"
    shutil.copyfile(directory / "tokenizer.json", bare)
    from_bare = tokenizer.load(bare)
    assert from_bare.token_bytes == loaded.token_bytes
    for text in TEXTS:
        assert from_bare.encode_line("x" + text) == loaded.encode_line("x" + text)
