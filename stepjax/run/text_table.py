"""Tables of text that fit the terminal."""

import io
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from rich import cells, table
from rich import console as rich_console


def text_table(
    rows: Sequence[dict[str, str]], title: str | None = None, width: int | None = None
) -> str:
    """Returns rows of text, all with the same columns, as a plain-text table.

    Where it is too wide, headings are broken into lines; where that is not enough, the
    columns are spread over several tables that all begin with the first column.

    Args:
      rows: column → text.
      title: goes above the table.
      width: characters per line, at most; None for the terminal's, 80 without one.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    heads = {name: name for name in columns}
    sizes = {n: _longest([n, *texts]) for n, texts in columns.items()}
    if _table_width(sizes.values()) > width:
        for name, texts in columns.items():
            size = _longest([*name.split(), *texts])
            lines = textwrap.wrap(name, size, break_on_hyphens=False)
            heads[name], sizes[name] = "\n".join(lines), size
    first, *others = columns
    parts = [[first]]
    for name in others:
        if len(parts[-1]) > 1 and (
            _table_width(sizes[n] for n in (*parts[-1], name)) > width
        ):
            parts.append([first])
        parts[-1].append(name)
    most = max(_table_width(sizes[n] for n in part) for part in parts)
    plain = rich_console.Console(
        width=max(width, most), record=True, file=io.StringIO()
    )
    for part in parts:
        drawn = table.Table(title=title, title_justify="left")
        for name in part:
            drawn.add_column(heads[name], justify="left" if name == first else "right")
        for row in rows:
            drawn.add_row(*(row[name] for name in part))
        plain.print(drawn)
        title = title and f"{title.removesuffix(' (continued)')} (continued)"
    return "".join(f"{line.rstrip()}\n" for line in plain.export_text().splitlines())


def _longest(texts: Sequence[str]) -> int:
    return max(map(cells.cell_len, texts))


def _table_width(sizes: Iterable[int]) -> int:
    """Returns the width of a table with columns of these sizes and their borders."""
    sizes = list(sizes)
    return sum(sizes) + 3 * len(sizes) + 1
