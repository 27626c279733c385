"""Characters that a tokenizer loses, for each kind of vocabulary."""

import chat_tokenizers
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from stepjax.lm import tokenizer, unknown

TEXTS = ["5*3 + 1", "caf\u00e9 \u4e2d, \u4e2d", "a\u00e9\n"]


def written(model, folder):
    model.add_special_tokens(["</s>"])
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    return tokenizer.load(folder)


def test_characters_that_become_the_unknown_token(codec):
    lost = unknown.characters(codec.tokenizer, TEXTS)
    assert lost == ["", "\u00e9\u4e2d", "\u00e9"]
    assert codec.tokenizer.unknown_id == 0


@pytest.mark.parametrize("family", list(chat_tokenizers.FAMILIES))
def test_tokenizers_with_all_bytes_know_everything(tmp_path, family):
    known = tokenizer.load(chat_tokenizers.write(family, tmp_path / "t"))
    texts = [*TEXTS, "<|im_end|></s>\ufffd\t\x00 ", ""]
    assert unknown.characters(known, texts) == [""] * 5


def test_bytes_that_a_vocabulary_lacks_are_dropped_without_a_token(tmp_path):
    # All ASCII bytes, and of U+00E9 (C3 A9) the first one only.
    letters = [*map(chr, range(33, 127)), "\u0120", "\u010a", "\u00c3"]
    model = models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[])
    model = tokenizers.Tokenizer(model)
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    known = written(model, tmp_path / "t")
    assert known.unknown_id is None
    lost = unknown.characters(known, TEXTS)
    assert lost == ["", "\u00e9\u4e2d", "\u00e9"]


def test_a_piece_of_several_characters_and_another_spelling_lose_nothing(tmp_path):
    # A unigram vocabulary that knows U+4E2D U+6587 as one piece only.
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), "\u2581", "\u4e2d\u6587"]
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in letters)]
    model = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    known = written(model, tmp_path / "t")
    texts = ["AbC", "so \u4e2d\u6587", "so \u4e2d", "1"]
    assert known.unknown_id == 0
    assert unknown.characters(known, texts) == ["", "", "\u4e2d", "1"]
