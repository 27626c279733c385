"""Errors of the command line's words, as sentences."""

import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from stepjax import config, own_files
from stepjax.run import ranges


def override(error: Exception, words: Sequence[str]) -> str:
    """Returns a sentence about an error that the words of a command have caused.

    Args:
      error: raised while absl read the words.
      words: of the command, without its name.
    """
    if isinstance(error, flags.IllegalFlagValueError):
        return _value(str(error), words)
    if isinstance(error, KeyError | AttributeError):
        text = error
        while isinstance(text, Exception):  # ml_collections wraps its messages
            text = text.args[0] if text.args else type(text).__name__
        return f"unknown setting: {text}"
    if isinstance(error, IndexError):
        return "the number in [ ] is too large for the list of a setting; expected less"
    return str(error)


def _value(text: str, words: Sequence[str]) -> str:
    """Returns a sentence about a setting's value that cannot be read."""
    for at, word in enumerate(words):
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = words[at + 1] if at + 1 < len(words) else ""
        if name.startswith("config.") and text.startswith(f"flag --{name}={value}: "):
            name = name.removeprefix("config.")
            return f"{name}={value!r}; expected {_expected(name)}."
    option = re.match(r"flag (--[\w-]+=.*): (?:invalid literal|could not)", text, re.S)
    return f"{option[1]}: this is no number; expected one." if option else text


def _expected(name: str) -> str:
    """Returns what a setting may be, with the kind of its value in front."""
    value: Any = config.default()
    plain = re.sub(r"\[\d+\]", "", name)
    for part in plain.split("."):
        value = value[0] if isinstance(value, tuple) else value
        value = value[part]
    known = ranges.words(name)
    kind = own_files.kind(type(value).__name__)
    if known and isinstance(value, int | float) and not isinstance(value, bool):
        return (
            f"{kind} {known}" if known.startswith("above") else f"{kind} from {known}"
        )
    return known or kind
