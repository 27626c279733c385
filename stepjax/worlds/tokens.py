"""Tokenizers of the built-in worlds: single characters and a world's own words."""

import io
import json
from collections.abc import Sequence
from pathlib import Path


def train_tokenizer(
    directory: str | Path, words: Sequence[str], sentences: Sequence[str]
) -> None:
    r"""Makes a tokenizer without merges, the same bytes every time.

    Its pieces are the printable ASCII characters and the given words. There is an
    end-of-sequence token, but neither BOS nor padding. Other characters become the
    unknown token. Transformers reads the texts ``</s>`` and ``<unk>`` as those tokens,
    sentencepiece does not.

    Args:
      directory: folder for ``tokenizer.model`` (sentencepiece) and, with the same ids,
        ``tokenizer.json`` and ``tokenizer_config.json`` (transformers); made if absent.
      words: texts that are one token each; the longest one that fits is taken.
      sentences: a text or two of the world, which sentencepiece asks for.
    """
    import sentencepiece  # these two are needed here only
    import tokenizers

    characters = "".join(map(chr, range(ord(" "), ord("~") + 1)))
    space = "\u2581"  # how sentencepiece writes it
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",  # without merges: words and characters fill the vocabulary
        vocab_size=2 + len(words) + len(characters),
        user_defined_symbols=[word.replace(" ", space) for word in words],
        required_chars=characters.replace(" ", space),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        **{"unk_id": 0, "eos_id": 1, "bos_id": -1, "pad_id": -1},
        **{"num_threads": 1, "minloglevel": 2},
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [pieces.id_to_piece(token) for token in range(pieces.vocab_size())]
    # The space is a word too, because transformers reads every model of the type qwen2
    # with Qwen2's own rules, which have no other way to this tokenizer's space.
    words = [*words, " "]
    texts = {word.replace(" ", space): word for word in words}
    ids = {texts.get(name, name): token for token, name in enumerate(names)}

    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=ids, merges=[], unk_token="<unk>", fuse_unk=True)
    )
    fast.normalizer = tokenizers.normalizers.Replace(" ", space)
    fast.decoder = tokenizers.decoders.Replace(space, " ")
    fast.add_special_tokens(["<unk>", "</s>"])
    fast.add_tokens([tokenizers.AddedToken(word, normalized=False) for word in words])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    config |= {"unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer.json").write_text(fast.to_str(pretty=True), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
