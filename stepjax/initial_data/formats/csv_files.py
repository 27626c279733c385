"""Tables with commas between their columns (CSV) as objects of texts.

The first line holds the names of the columns. A cell may be in quotes, and then hold
commas, quotes (as "") and newlines. An empty cell is a field that is not there.
"""

import csv
import io
from collections.abc import Iterator


class Broken(ValueError):
    """A table without usable columns or rows: "LINE: reason; expected ..."."""


def objects(text: str) -> Iterator[tuple[int, dict[str, str], str]]:
    """Reads the rows of a table.

    Args:
      text: the whole table. Lines without any character are passed over.

    Yields:
      (line, object, reason) of each row: the number of the line on which it begins,
      from 1; its cells by column; and "" or, for a row that cannot be used, why.

    Raises:
      Broken: "LINE: reason; expected ..." where the names of the columns cannot be
        used, or where nobody can tell where a row ends, as in quotes that stay open.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, begins = None, 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_header(line, header)
                continue
            reason = ""
            if len(cells) != len(header):
                reason = (
                    f"{len(cells)} cells; expected {len(header)}, one per column "
                    f"({', '.join(header)}). Put a cell with a comma into quotes."
                )
            named = zip(header, cells, strict=False)
            yield line, {name: cell for name, cell in named if cell}, reason
    except csv.Error as error:
        raise Broken(
            f"{begins}: broken CSV ({error}); expected commas between the cells, and "
            'quotes around a cell with a comma, a newline or a quote (as "").'
        ) from error


def _check_header(line: int, header: list[str]) -> None:
    """Raises `Broken` unless every column has a name of its own."""
    shown = ", ".join(map(repr, header))
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise Broken(
                f"{line}: the columns {shown} have {word} between them; expected "
                "commas. Save the table with commas."
            )
    if len(set(header)) < len(header) or "" in header:
        raise Broken(
            f"{line}: the columns are {shown}; expected a name for every column, and "
            "every name once, such as question,answer."
        )
