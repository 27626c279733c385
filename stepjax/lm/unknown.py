"""Characters that a tokenizer does not know, so that a model never sees them.

A vocabulary of pieces has an unknown token for them, or drops them without a trace. A
byte-level vocabulary knows all characters, unless some of the 256 bytes are not in it.
"""

from collections.abc import Iterable, Sequence

from stepjax.lm.tokenizer import Tokenizer


def characters(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Returns for each text its characters that are lost, each once, in their order.

    A character is lost when it becomes the unknown token, or when it is dropped. A
    tokenizer that writes it in another way, such as in lower case, does not lose it.

    Args:
      tokenizer: the tokenizer.
      texts: without markup; names of special tokens in them are plain text.
    """
    lost = alone(tokenizer, set().union(*texts))
    return [within(tokenizer, text, lost) for text in texts]


def alone(tokenizer: Tokenizer, found: Iterable[str]) -> set[str]:
    """Returns which of some characters are lost, each alone between two letters."""
    return {character for character in found if _is_lost(tokenizer, character)}


def _is_lost(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a character between two letters is lost."""
    found = _read_back(tokenizer, f"a{character}a")
    if found is None or character in found:
        return found is None
    return "\ufffd" in found or found.strip() == "aa"


def within(tokenizer: Tokenizer, text: str, lost: set[str]) -> str:
    """Returns the characters that are lost in a text, each once, in their order.

    A longer piece of the vocabulary may hold a character that is no piece alone.

    Args:
      tokenizer: the tokenizer.
      text: without markup; names of special tokens in it are plain text.
      lost: the characters that are lost alone, see `alone`.
    """
    if lost.isdisjoint(text):
        return ""
    found = _read_back(tokenizer, text)
    here = [c for c in dict.fromkeys(text) if c in lost]
    if found is None:
        return "".join(here)
    return "".join(c for c in here if found.count(c) < text.count(c))


def _read_back(tokenizer: Tokenizer, text: str) -> str | None:
    """Returns a text, encoded and decoded; None if an id is the unknown token."""
    ids = tokenizer.encode_prompt("{}", {"{}": text}, bos=False)
    return None if tokenizer.unknown_id in ids else tokenizer.decode(ids)
