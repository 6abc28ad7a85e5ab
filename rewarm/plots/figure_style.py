"""Colors, dashes, legend and axes that all figures share, and how figures are saved."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rewarm.errors import printable
from rewarm.files import create_folder_of
from rewarm.quantities import format_count

# The palette of Okabe and Ito, which color-blind readers can tell apart, without its yellow, which
# is too light for paper. Dashes distinguish curves in gray print, and curves that coincide.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))

FIGURE_FORMATS = ("png", "svg", "pdf")
"""The formats of figures, by the suffix of their file."""

LineStyle = dict[str, Any]
"""Keyword arguments of a matplotlib line: color, line style, marker."""

LegendEntry = tuple[str, LineStyle]
"""A label, and the style of the line or marker that it names."""


def line_style(index: int) -> LineStyle:
    """Returns the color and dashes of curve number `index`."""
    return {"color": COLORS[index % len(COLORS)], "ls": DASHES[index % len(DASHES)], "lw": 1.6}


def add_legend(figure: Any, entries: list[LegendEntry], line_length: int = 90) -> int:
    """Adds a legend below the axes, where no curve is, and returns its number of lines.

    Args:
        figure: the matplotlib figure.
        entries: the labels with their line styles.
        line_length: the number of characters that fit the width of the figure.
    """
    from matplotlib.lines import Line2D

    # A leading space, because matplotlib omits labels that begin with an underscore.
    labels = [" " + textwrap.fill(printable(label), line_length - 6) for label, _ in entries]
    columns = max(1, line_length // (max(map(len, labels)) + 8))
    figure.legend(
        handles=[
            Line2D([], [], label=label, **style)
            for label, (_, style) in zip(labels, entries, strict=True)
        ],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=3.2,
    )
    return math.ceil(sum(1 + label.count("\n") for label in labels) / columns)


def style_axes(axes: Any) -> None:
    """Removes the top and right spines and adds a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)


def style_token_axes(axes: Any) -> None:
    """Styles axes whose x axis counts tokens."""
    style_axes(axes)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda x, _: format_count(x))


def save_figure(
    draw: Callable[[], Any], out: Path | IO[str], *, file_format: str, text_as_paths: bool = True
) -> None:
    """Saves the figure that `draw` returns; the same figure gives the same bytes.

    Args:
        draw: returns the matplotlib figure.
        out: the file; the folder of a path is created.
        file_format: one of FIGURE_FORMATS.
        text_as_paths: whether an SVG has its text as outlines, which need no font.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib as mpl

    if isinstance(out, Path):
        create_folder_of(out)
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_format, {})
    with mpl.rc_context(
        {
            "text.parse_math": False,  # names are drawn literally, including `$`
            "svg.hashsalt": "rewarm",
            "svg.fonttype": "path" if text_as_paths else "none",
            "pdf.fonttype": 42,  # TrueType, as journals require, and text stays text
        }
    ):
        draw().savefig(out, dpi=200, metadata=metadata, format=file_format)
