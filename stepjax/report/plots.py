"""Plots of the page, as SVG that is written into it.

matplotlib draws them: it is there anyway, and one plot takes 10 to 20 kB, where a
library that draws in the browser would add megabytes to each page. Colours are
variables of the page's style sheet, so plots follow its light and its dark theme.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours that are drawn → variables of page.css.
_INK, _FAINT, _PAPER = "#010101", "#020202", "#030303"
_SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a")
_VARIABLES = {_INK: "--ink", _FAINT: "--line", _PAPER: "--paper"}
_VARIABLES |= {colour: f"--c{n}" for n, colour in enumerate(_SERIES, 1)}

_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,  # names of files may hold $
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


class Plot(NamedTuple):
    """A drawn plot; the page writes the legend, which has room to break its lines.

    Attributes:
      svg: an SVG element.
      legend: (name, variable of page.css with its colour) of each series.
    """

    svg: str
    legend: list[tuple[str, str]]


class Series(NamedTuple):
    """One curve over the numbers of the models.

    Attributes:
      name: for the legend.
      points: (number of the model, value).
      intervals: (low, high) of each point; () draws none.
      published: drawn as a dashed grey line, for the paper's figures.
    """

    name: str
    points: Sequence[tuple[int, float]]
    intervals: Sequence[tuple[float, float]] = ()
    published: bool = False


def lines(
    curves: Sequence[Series],
    label: str,
    *,
    note: str,
    ends: tuple[float, float] | None = None,
    from_zero: bool = False,
) -> Plot:
    """Returns curves over the models.

    Args:
      curves: those without points are left out; at least one has points.
      label: of the vertical axis.
      note: what the plot shows, for readers who do not see it.
      ends: of the vertical axis; None lets the points decide.
      from_zero: whether the vertical axis begins at 0.
    """
    curves, legend = [curve for curve in curves if curve.points], []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 2.5), layout="constrained")
        axes = figure.subplots()
        measured = [curve for curve in curves if not curve.published]
        for curve in curves:
            numbers, values = zip(*curve.points, strict=True)
            if curve.published:
                axes.plot(numbers, values, "--", color=_PAPER)
                legend.append((curve.name, _VARIABLES[_PAPER]))
                continue
            colour = _SERIES[measured.index(curve) % len(_SERIES)]
            legend.append((curve.name, _VARIABLES[colour]))
            axes.plot(numbers, values, "o-", color=colour)
            if curve.intervals:
                lows, highs = zip(*curve.intervals, strict=True)
                axes.fill_between(numbers, lows, highs, color=colour, alpha=0.15, lw=0)
        _models(axes, curves)
        axes.set_ylabel(label)
        if ends:
            axes.set_ylim(*ends)
        if from_zero:
            axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-9))
        return Plot(_svg(figure, note), legend)


def bars(
    rows: Mapping[str, Mapping[str, float]],
    parts: Sequence[str],
    label: str,
    *,
    note: str,
) -> Plot:
    """Returns stacked horizontal bars.

    Args:
      rows: name of a bar → name of a part → its length.
      parts: all parts that there may be, in their order; at most seven. A part has the
        same colour in all plots.
      label: of the horizontal axis.
      note: what the plot shows, for readers who do not see it.
    """
    with matplotlib.rc_context(_STYLE):
        height = 0.6 + 0.3 * len(rows)
        figure = Figure(figsize=(4.3, max(2.5, height)), layout="constrained")
        axes = figure.subplots()
        starts, legend = dict.fromkeys(rows, 0.0), []
        for part, colour in zip(parts, _SERIES, strict=False):
            if not any(part in row for row in rows.values()):
                continue
            legend.append((part, _VARIABLES[colour]))
            lengths = [row.get(part, 0.0) for row in rows.values()]
            axes.barh(
                *(list(rows), lengths, 0.6),
                left=list(starts.values()),
                color=colour,
            )
            starts = {k: starts[k] + row.get(part, 0.0) for k, row in rows.items()}
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        return Plot(_svg(figure, note), legend)


def reliability(
    tables: Mapping[str, Sequence[Mapping[str, float]]], *, note: str
) -> Plot:
    """Returns how often a stated probability comes true; the diagonal is ideal.

    Args:
      tables: name → rows with the mean "probability", the share "right" and the
        "count" of its calls, see `evaluation.calibration.calibration`.
      note: what the plot shows, for readers who do not see it.
    """
    legend = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.plot((0, 100), (0, 100), "--", color=_PAPER)
        for number, (name, rows) in enumerate(tables.items()):
            colour = _SERIES[number % len(_SERIES)]
            legend.append((name, _VARIABLES[colour]))
            stated = [100 * row["probability"] for row in rows]
            true = [100 * row["right"] for row in rows]
            axes.plot(stated, true, "-", color=colour)
            sizes = [4 * (1 + math.log10(row["count"])) for row in rows]
            axes.scatter(stated, true, sizes, color=colour)
        axes.set_xlabel("stated, %")
        axes.set_ylabel("true, %")
        return Plot(_svg(figure, note), legend)


def against_tokens(
    curves: Mapping[str, Sequence[tuple[float, ...]]], *, note: str
) -> Plot:
    """Returns percentages over tokens, on a logarithmic axis.

    Args:
      curves: name → (tokens, percentage, low, high) of each point, by tokens; at most
        seven. One without points is left out; the other ones keep their colours.
      note: what the plot shows, for readers who do not see it.
    """
    legend = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 2.8), layout="constrained")
        axes = figure.subplots()
        for (name, places), colour in zip(curves.items(), _SERIES, strict=False):
            if not places:
                continue
            legend.append((name, _VARIABLES[colour]))
            tokens, rates, lows, highs = zip(*places, strict=True)
            axes.plot(tokens, rates, "o-", color=colour)
            axes.vlines(tokens, lows, highs, color=colour, lw=0.8, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("tokens per problem, generated and judged")
        axes.set_ylabel("right, %")
        return Plot(_svg(figure, note), legend)


def points(groups: Mapping[str, Sequence[Sequence[float]]], *, note: str) -> Plot:
    """Returns points in the plane, without axes, since their places have no unit.

    Args:
      groups: name → (x, y) of each of its points; at most seven groups have a colour of
        their own.
      note: what the plot shows, for readers who do not see it.
    """
    legend = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 4.0), layout="constrained")
        axes = figure.subplots()
        for number, (name, places) in enumerate(groups.items()):
            colour = _SERIES[number % len(_SERIES)]
            legend.append((name, _VARIABLES[colour]))
            across, up = zip(*places, strict=True)
            axes.plot(across, up, "o", color=colour, markersize=2.5, alpha=0.6, mew=0)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        return Plot(_svg(figure, note), legend)


def _models(axes, curves: Sequence[Series]) -> None:
    """Names the models below the horizontal axis."""
    numbers = sorted({number for curve in curves for number, _ in curve.points})
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"M{x:.0f}")
    axes.set_xlim(numbers[0] - 0.3, numbers[-1] + 0.3)
    axes.grid(axis="x", visible=False)


def _svg(figure: Figure, note: str) -> str:
    """Returns a figure as an SVG element, the same each time that it is drawn."""
    written = io.StringIO()
    # Names of clip paths must differ between the plots of a page.
    with matplotlib.rc_context({"svg.hashsalt": note}):
        figure.savefig(
            *(written,), format="svg", transparent=True, metadata={"Date": None}
        )
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib)[^"]*"', "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    name = note.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1).strip()
