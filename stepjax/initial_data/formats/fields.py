"""What every reader of a public data set needs: checked fields, and texts of steps.

The errors raised here are "reason; expected ...", without the place of the row, which
`stepjax.initial_data.formats.sources.read` puts in front.
"""

import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any

from stepjax import prompts
from stepjax.prompts import Templates

_KINDS = {str: "a string", list: "a list", dict: "an object"}
TEXT_OR_NUMBER = "a string or a number"
EMPTY = "is empty (null, or an empty cell of a table)"
# "Step 3: ", also as a heading ("## Step 3: ") or in bold ("**Step 3: Add.**").
_MARKER = re.compile(r"\s*(?:#+ *)?(\**)Step +\d+ *[:.)](?!\d)(\**)\s*", re.IGNORECASE)


def field(row: Any, name: str, kind: type, expected: str = "") -> Any:
    """Takes row[name], which must be of the given kind.

    Args:
      row: an object.
      name: of the field.
      kind: str, list or dict.
      expected: the kind in words, where more than that kind is taken.

    Raises:
      ValueError: when `row` is no object, or the field is missing or of another kind.
    """
    if not isinstance(row, dict):
        shown = f"no object ({reprlib.repr(row)})"
    elif name not in row:
        shown = f"missing field {name!r} ({reprlib.repr(sorted(row))} are there)"
    elif row[name] is None:
        shown = f"field {name!r} {EMPTY}"
    elif not isinstance(row[name], kind):
        shown = f"field {name!r} is {reprlib.repr(row[name])}"
    else:
        return row[name]
    expected = expected or _KINDS[kind]
    raise ValueError(f"{shown}; expected the field {name!r} to hold {expected}.")


def text(row: Any, name: str, expected: str = "") -> str:
    """Takes the text row[name], which must not be blank; see `field`.

    Raises:
      ValueError: as `field`, and for a blank text.
    """
    value = field(row, name, str, expected)
    if is_blank(value):
        raise ValueError(f"field {name!r} is {value[:20]!r}; expected some text.")
    return value


def is_blank(text: str) -> bool:
    """Whether a text has no character that can be seen, such as "" or U+200B."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def number_as_text(value: Any) -> Any:
    """Writes a number as text, and leaves any other value as it is.

    Many data sets on Hugging Face hold answers and ids as numbers: 27.0 becomes "27",
    2.5 becomes "2.5". NaN and infinity are no numbers here, and neither is true.
    """
    if isinstance(value, float) and math.isfinite(value):
        whole = value.is_integer() and abs(value) < 2**53
        return str(int(value)) if whole else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def answer(row: Any, name: str = "answer") -> str:
    """Takes the answer row[name]: a number, or a text, which may be empty.

    Raises:
      ValueError: as `field`.
    """
    value = number_as_text(row.get(name)) if isinstance(row, dict) else None
    return value if isinstance(value, str) else field(row, name, str, TEXT_OR_NUMBER)


def identity(row: dict[str, Any], name: str) -> str:
    """Takes the id of a row, or gives it `name` where it has none.

    Raises:
      ValueError: when the id is neither a text nor a number, or blank.
    """
    given = number_as_text(row.get("id"))
    return name if given is None else text({"id": given}, "id", TEXT_OR_NUMBER)


def one_line(text: str) -> str:
    """Puts a text on one line: newlines and the blanks around them to one space."""
    return re.sub(r"\s*[\r\n]\s*", " ", text.strip())


def without_calculator(text: str) -> str:
    """Takes the calculator marks of GSM8K, such as "<<48/2=24>>", out of a text."""
    return re.sub(r"<<[^<>]*>>", "", text)


def step(templates: Templates, number: int, text: str) -> str:
    r"""Makes the text of a step, from its marker on.

    A marker that the text has already ("Step 3: ", also as a heading or in bold, with
    any number) is removed, and so are blanks around the text. A newline becomes a space
    where the line after it would begin another step.

    Args:
      templates: their step marker begins the step.
      number: of the step, from 1.
      text: what the source has.

    Raises:
      ValueError: for a text with nothing in it.
    """
    marker = prompts.marker(templates, number)
    body = text.strip()
    theirs = _MARKER.match(body)
    if body.startswith(marker):
        body = body[len(marker) :].strip()
    elif theirs:  # "**Step 3: Add.**" keeps the asterisks of "Add."
        bold = "" if theirs[1] and theirs[2] else theirs[1] + theirs[2]
        body = bold + body[theirs.end() :]
    if not body:
        raise ValueError(
            f"step {number} is {text[:40]!r}; expected some text besides its marker."
        )
    before = re.escape(templates.step.partition("{n}")[0])
    return marker + re.sub(rf"\n(?={before}[1-9])", " ", body)


def steps(templates: Templates, texts: Sequence[Any]) -> tuple[str, ...]:
    """Makes the texts of steps, numbered from 1; see `step`.

    Raises:
      ValueError: for a text that is no string, or has nothing in it.
    """
    for item in texts:
        if not isinstance(item, str):
            raise ValueError(f"a step is {reprlib.repr(item)}; expected a string.")
    return tuple(step(templates, number, t) for number, t in enumerate(texts, 1))
