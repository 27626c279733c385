"""Text to token ids and back: a thin layer over the tokenizers of ``transformers``.

Token ids are the truth in this library, so this module decides in one place each: when
a BOS token is added (``encode_prompt``), how text that continues after a newline is
encoded (``encode_line``), which text may become control ids (templates may, data may
not), and the bytes of each token (``token_bytes``).
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from etils import epath
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stepjax.lm import (
    addresses,
    chat,
    encoder,
    generation_config,
    limits,
    ordinary,
    special_tokens,
)

_END_OF_SEQUENCE = ("</s>", "<|im_end|>", "<|endoftext|>", "<eos>", "<|end_of_text|>")
FILES = (  # what a tokenizer may consist of
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_FILES = (*FILES, generation_config.NAME)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A loaded tokenizer; make one with ``load``.

    Attributes:
      directory: folder that its files are in.
      vocab_size: largest token id + 1.
      eos_id: id that ends a final answer.
      bos_id: id that begins every prompt, or None when this tokenizer adds none.
      stop_ids: ids that end a generation: eos_id, then the further ones of the
        generation_config.json in the folder, or of its config.json when it has no
        generation_config.json.
      pad_id: some valid id to fill rows with; masks never depend on it.
      token_bytes: the exact bytes of each id, ``len(token_bytes) == vocab_size``.
        Special tokens and unused ids stand for no bytes.
    """

    directory: Path
    vocab_size: int
    eos_id: int
    bos_id: int | None
    stop_ids: tuple[int, ...]
    pad_id: int
    token_bytes: tuple[bytes, ...] = field(repr=False)
    _backend: PreTrainedTokenizerFast = field(repr=False)
    _bare: bool = field(repr=False)
    _control: Mapping[str, int] = field(repr=False)  # special tokens: name → id
    _encoder: encoder.Encoder = field(repr=False)

    def encode_prompt(
        self, text: str, texts: Mapping[str, str] | None = None, *, bos: bool = True
    ) -> list[int]:
        """Encodes the text that a sequence begins with.

        The only place that adds a BOS token: once, if this tokenizer's own default
        adds one and the text does not begin with it already. Names of special tokens
        in the text (``<|im_start|>``) become their ids, those in `texts` do not.

        Args:
          text: the whole prompt or its template, chat markup included.
          texts: placeholder in `text` → what is put in for it, as plain text.
          bos: False adds no BOS token.

        Returns:
          Token ids.
        """
        text = self._encoder.mark(text)
        if texts:
            places = "|".join(map(re.escape, texts))
            text = re.sub(places, lambda place: texts[place[0]], text)
        ids = self._encoder.encode(text)
        if not bos or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def encode_line(self, text: str, *, markup: bool = False) -> list[int]:
        r"""Encodes text as it continues after a newline.

        The ids are those that follow when the text is encoded together with a newline
        in front: ``encode("...\n" + text) == encode("...\n") + encode_line(text)``.

        Args:
          text: what comes after the newline; "" gives [].
          markup: True turns names of special tokens in the text into their ids, as
            templates need it. Otherwise they are plain text.

        Returns:
          Token ids, without BOS.

        Raises:
          ValueError: if the newline and the text do not come apart, as with text that
            begins with a newline of its own.
        """
        marked = self._encoder.mark(text) if markup else text
        newline = self._encoder.encode("\n")
        joint = self._encoder.encode("\n" + marked)
        if joint[: len(newline)] != newline:
            raise ValueError(
                f"text {text[:40]!r} fuses with the newline before it into the ids "
                f"{joint[: len(newline) + 1]} ...; expected the newline's ids "
                f"{newline} first. Begin the text with a letter or a digit."
            )
        return joint[len(newline) :]

    @property
    def unknown_id(self) -> int | None:
        """Id of characters that the vocabulary does not hold; None without one."""
        return self._encoder.unknown

    def has_markup(self, text: str) -> bool:
        """Returns whether a text holds the name of a special token."""
        return self._encoder.mark(text) != text

    def chat(self) -> chat.Chat:
        """Returns what this tokenizer's chat template writes around a message.

        Raises:
          ValueError: when there is no template, or it cannot be used.
        """
        return chat.read(self._backend, self._control)

    def chat_template(self, prompt: str, *, around: bool) -> str:
        """Returns a chat template that writes a prompt around the user's message.

        With it, `apply_chat_template([{"role": "user", "content": problem}],
        add_generation_prompt=True)` gives the ids of the prompt with the problem.

        Args:
          prompt: text with "{problem}".
          around: whether this tokenizer's own chat template goes around the prompt;
            otherwise the prompt begins with BOS, if this tokenizer adds one.
        """
        own = (self._backend.chat_template or "") if around else ""
        if isinstance(own, dict):  # several templates by name
            own = own.get("default", "")
        bos = ""
        if not around and self.bos_id is not None:
            bos = self._backend.convert_ids_to_tokens(self.bos_id)
            whole, wanted = f"{bos}{prompt}", self.encode_prompt(prompt)
            if self._backend.encode(whole, add_special_tokens=False) != wanted:
                bos += " "  # some tokenizers put a space before the first word only
        return chat.with_prompt(chat.without_prompt(own), prompt, bos)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids by joining their bytes.

        Args:
          ids: token ids; special tokens decode to nothing.

        Returns:
          The text; bytes that are no UTF-8 (a character cut in the middle) come out
          as U+FFFD. Decoding more ids never changes the text before such a cut.

        Raises:
          ValueError: for an id outside of the vocabulary.
        """
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"token id {token} is outside of the vocabulary; expected "
                    f"0 <= id < {self.vocab_size}. Padding ids must not be sampled."
                )
        joined = b"".join(self.token_bytes[token] for token in ids)
        return joined.decode("utf-8", errors="replace")

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files to a folder that ``load`` reads back.

        The settings of generation go with them. If they are in a config.json only, a
        generation_config.json is made of them.

        Args:
          directory: target folder, made if missing; files there are overwritten.
        """
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        if self._bare:
            self._backend.save_pretrained(target)
        for name in [generation_config.NAME] if self._bare else _FILES:
            source = self.directory / name
            if source.is_file() and source.resolve() != (target / name).resolve():
                shutil.copyfile(source, target / name)
        file, settings = generation_config.read(self.directory)
        if settings and file.name == "config.json":
            text = json.dumps(settings, indent=2) + "\n"
            (target / generation_config.NAME).write_text(text, "utf-8")


def fetch(path: str | Path, folder: str | Path) -> Path:
    """Returns a folder of this machine with a tokenizer's files.

    Args:
      path: as in `load`, or a folder on object storage (gs://...).
      folder: where files from object storage are copied to.
    """
    if not addresses.is_address(path):
        return Path(path)
    for name in (*_FILES, "config.json"):
        source = epath.Path(path) / name
        if source.exists():
            (Path(folder) / name).write_bytes(source.read_bytes())
    return Path(folder)


def load(path: str | Path) -> Tokenizer:
    """Loads a tokenizer from files on this machine; never asks the network.

    Args:
      path: a Hugging Face folder (``tokenizer.json``, or ``tokenizer.model`` with
        ``tokenizer_config.json``), or one bare ``tokenizer.json`` file. Without a
        ``tokenizer_config.json`` the end-of-sequence token is looked for by its usual
        names.

    Returns:
      The tokenizer.

    Raises:
      ValueError: if there is nothing to load, no end-of-sequence token is known, or the
        vocabulary is neither byte-level BPE nor of the sentencepiece kind.
    """
    path = Path(path)
    ordinary.check(path)
    ordinary.check_folder(path)  # transformers opens what it finds there
    config = path / "tokenizer_config.json"
    file = path if path.is_file() else path / "tokenizer.json"
    bare = file.is_file() and not config.is_file()
    stops = _generation_stops(file.parent)
    if bare:
        backend = _read(PreTrainedTokenizerFast, file, tokenizer_file=str(file))
    elif config.is_file() and (file.is_file() or (path / "tokenizer.model").is_file()):
        backend = _read(
            AutoTokenizer.from_pretrained, path, str(path), local_files_only=True
        )
    else:
        raise ValueError(
            f"{path}: no tokenizer here; expected a tokenizer.json file, a folder with "
            "one, or a folder with tokenizer.model and tokenizer_config.json."
        )
    if not backend.is_fast or not _encode(backend, "a"):
        raise ValueError(
            f"{path}: loaded as {type(backend).__name__}; expected a tokenizer that is "
            "backed by a working tokenizer.json. Convert it to one first."
        )

    special_tokens.check(backend, file, path)
    eos_id = _eos_id(backend, path)
    token_bytes = _token_bytes(backend, path)
    absent = [id for id in stops if not 0 <= id < len(token_bytes)]
    if absent:
        raise ValueError(
            f"{path}: eos_token_id {absent[0]} ends a generation and is no token; "
            f"expected ids from 0 to {len(token_bytes) - 1}. Take the "
            "generation_config.json that belongs to the tokenizer."
        )
    control = _control(backend, [eos_id, *stops])
    return Tokenizer(
        directory=file.parent,
        vocab_size=len(token_bytes),
        eos_id=eos_id,
        bos_id=_bos_id(backend, path),
        stop_ids=tuple(dict.fromkeys([eos_id, *stops])),
        pad_id=eos_id if backend.pad_token_id is None else backend.pad_token_id,
        token_bytes=token_bytes,
        _backend=backend,
        _bare=bare,
        _control=control,
        _encoder=encoder.make(backend.backend_tokenizer, control),
    )


def _read(loader, path: Path, *args, **kwargs) -> PreTrainedTokenizerFast:
    """Calls a loader of transformers; whatever it raises becomes a ValueError."""
    try:
        return loader(*args, **kwargs)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(
            f"{path}: cannot be read as a tokenizer ({error}); expected the files as "
            "transformers saves them."
        ) from error


def _encode(backend: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a text, nothing added."""
    return backend(text, add_special_tokens=False, verbose=False)["input_ids"]


def _bos_id(backend: PreTrainedTokenizerFast, path: Path) -> int | None:
    """The id that this tokenizer's default encoding puts first, if any."""
    plain = _encode(backend, "a")
    default = backend("a")["input_ids"]
    begins = next(
        (
            begin
            for begin in range(len(default))
            if default[begin : begin + len(plain)] == plain
        ),
        None,
    )
    if begins not in (0, 1):
        raise ValueError(
            f"{path}: the default encoding of 'a' is {default}, without special tokens "
            f"{plain}; expected at most one token (BOS) in front."
        )
    return default[0] if begins else None


def _eos_id(backend: PreTrainedTokenizerFast, path: Path) -> int:
    """The configured end-of-sequence id, else the first usual special token."""
    if backend.eos_token_id is not None:
        return backend.eos_token_id
    # Ordinary vocabularies hold such texts, too: Qwen's has a word "</s>".
    added = backend.backend_tokenizer.get_added_tokens_decoder()
    special = {token.content: id for id, token in added.items() if token.special}
    for name in _END_OF_SEQUENCE:
        if name in special:
            backend.eos_token = name  # so that saved files know it, too
            return special[name]
    raise ValueError(
        f"{path}: no end-of-sequence token known; expected eos_token in "
        f"tokenizer_config.json or a special token {', '.join(_END_OF_SEQUENCE)}."
    )


def _control(backend: PreTrainedTokenizerFast, stops: Sequence[int]) -> dict[str, int]:
    """Name → id of the added tokens that are special or end a generation.

    Further added tokens (``<think>``) are words, as other words are.
    """
    ids = {*backend.all_special_ids, *stops}
    added = backend.backend_tokenizer.get_added_tokens_decoder()
    return {t.content: id for id, t in added.items() if t.special or id in ids}


def _generation_stops(directory: Path) -> list[int]:
    """Returns the ids that end a generation by the settings of generation."""
    file, settings = generation_config.read(directory)
    ids = settings.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(token) is int for token in ids):
        raise ValueError(f"{file}: eos_token_id is {ids}; expected integers.")
    return ids


def _token_bytes(backend: PreTrainedTokenizerFast, path: Path) -> tuple[bytes, ...]:
    """The bytes of every id from 0 to the largest."""
    tokenizer = backend.backend_tokenizer
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    rules = b"".join(part.__getstate__() for part in parts if part is not None).decode()
    if '"ByteLevel"' in rules:
        to_bytes = _byte_level
    elif "\u2581" in rules or '"Metaspace"' in rules:
        to_bytes = _sentencepiece
    else:
        raise ValueError(
            f"{path}: unknown kind of vocabulary; expected byte-level BPE or the "
            "sentencepiece kind (with U+2581 for spaces)."
        )
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values())
    if largest >= limits.NUMBERS["vocab_size"][1]:
        raise ValueError(
            f"{path}: the largest token id is {largest}; expected ids below "
            f"{limits.NUMBERS['vocab_size'][1]:,}. Take the tokenizer of the model."
        )
    result = [b""] * (largest + 1)
    for piece, token in vocabulary.items():
        result[token] = to_bytes(piece)
    special = set(backend.all_special_ids)
    for token, added in tokenizer.get_added_tokens_decoder().items():
        result[token] = added.content.encode("utf-8")
        if added.special:
            special.add(token)
    for token in special:
        result[token] = b""
    return tuple(result)


def _sentencepiece(piece: str) -> bytes:
    """Bytes of a sentencepiece piece: U+2581 is a space, <0x0A> is one byte."""
    single = _BYTE_PIECE.fullmatch(piece)
    if single:
        return bytes.fromhex(single[1])
    return piece.replace("\u2581", " ").encode("utf-8")


def _byte_level(piece: str) -> bytes:
    """Bytes of a byte-level piece: one character of the byte alphabet per byte."""
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return piece.encode("utf-8")


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level vocabularies stands for.

    Visible Latin-1 characters stand for themselves; the other bytes, in rising order,
    are written as the characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    alphabet = {chr(byte): byte for byte in visible}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
