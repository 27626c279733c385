"""Tables with commas (CSV) or tabs (TSV) between their columns, as objects of texts.

The first line holds the names of the columns. A cell may be in quotes, and then hold
commas, tabs, quotes (as "") and newlines. An empty cell is a field that is null.
"""

import csv
import io
from collections.abc import Iterator


class Broken(ValueError):
    """A table without usable columns or rows: "LINE: reason; expected ..."."""


_WORDS = {",": "comma", "\t": "tab", ";": "semicolon"}


def objects(
    text: str, between: str = ","
) -> Iterator[tuple[int, dict[str, str | None], str]]:
    """Reads the rows of a table.

    Args:
      text: the whole table. Blank lines are passed over.
      between: what stands between two cells, a comma or a tab.

    Yields:
      (line, object, reason) of each row: the number of the line on which it begins,
      from 1; its cells by column, None for an empty one; and "" or, for a row that
      cannot be used, why.

    Raises:
      Broken: "LINE: reason; expected ..." where the names of the columns cannot be
        used, or where nobody can tell where a row ends, as in quotes that stay open.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    mark = _WORDS[between]
    header, begins = None, 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_header(line, header, between)
                continue
            reason = ""
            if len(cells) != len(header):
                reason = (
                    f"{len(cells)} cells; expected {len(header)}, one per column "
                    f"({', '.join(header)}). Put a cell with a {mark} into quotes."
                )
            named = zip(header, cells, strict=False)
            yield line, {name: cell or None for name, cell in named}, reason
    except csv.Error as error:
        raise Broken(
            f"{begins}: broken table ({error}); expected {mark}s between the cells, "
            f'and quotes around a cell with a {mark}, a newline or a quote (as "").'
        ) from error


def _check_header(line: int, header: list[str], between: str) -> None:
    """Raises `Broken` unless every column has a name of its own."""
    shown = ", ".join(map(repr, header))
    for mark, word in _WORDS.items():
        if len(header) == 1 and mark in header[0] and mark != between:
            raise Broken(
                f"{line}: the columns {shown} have {word}s between them; expected "
                f"{_WORDS[between]}s. Save the table with {_WORDS[between]}s."
            )
    if len(set(header)) < len(header) or "" in header:
        raise Broken(
            f"{line}: the columns are {shown}; expected a name for every column, and "
            "every name once, such as question,answer."
        )
