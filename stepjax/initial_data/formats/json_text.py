"""A row as a JSON text: an object, whole, that UTF-8 can hold."""

import collections
import json
import reprlib
from typing import Any


def parse_object(text: str) -> dict[str, Any]:
    """Returns the JSON object that a text holds.

    Raises:
      ValueError: "reason; expected ..." for broken JSON, NaN or infinity, a name that
        an object has twice, half of a surrogate pair, or a value that is no object.
    """
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(broken(error)) from error
    return checked(value, text)


def broken(error: Exception) -> str:
    """Returns a sentence about a text that is no JSON, or not wholly."""
    return (
        f"broken JSON ({error}); expected one JSON object, whole and in UTF-8. The "
        "file may be cut off or damaged."
    )


def checked(value: Any, text: str) -> dict[str, Any]:
    """Returns the value of a text if it is an object that UTF-8 can hold."""
    if not isinstance(value, dict):
        raise ValueError(
            f"no JSON object ({reprlib.repr(value)}); expected one JSON object per row."
        )
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"half of a surrogate pair ({error.object[error.start]!a}); expected "
                "text that UTF-8 can hold."
            ) from error
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"the name {names.most_common(1)[0][0]!r} is there twice")
    return made


DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)
