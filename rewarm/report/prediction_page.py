"""What `rewarm predict` computes, as a figure or as one self-contained HTML page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rewarm.errors import RewarmError
from rewarm.files import atomic_write, create_folder_of
from rewarm.plots.figure_style import FIGURE_FORMATS, save_figure
from rewarm.report.html_document import html_document, page_asset
from rewarm.report.html_tables import html_tables
from rewarm.report.html_writer import Markup, svg_image, tag
from rewarm.table_cells import Table

PREDICTION_FORMATS = (*FIGURE_FORMATS, "html")
"""The formats of a prediction, by the suffix of its file."""


def save_prediction(
    out: Path,
    draw: Callable[[], Any],
    *,
    title: str,
    notes: Iterable[str],
    tables: Sequence[Table],
) -> None:
    """Saves a figure of predicted losses; a page has notes and tables below it.

    Args:
        out: the file; its suffix is one of PREDICTION_FORMATS.
        draw: returns the matplotlib figure.
        title: the title of the page.
        notes: sentences.
        tables: the tables.

    Raises:
        RewarmError: the file cannot be written.
    """
    file_format = out.suffix.removeprefix(".").lower()
    try:
        if file_format == "html":
            create_folder_of(out)
            atomic_write(out, _page(draw, title, notes, tables))
        else:
            save_figure(draw, out, file_format=file_format)
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def _page(
    draw: Callable[[], Any], title: str, notes: Iterable[str], tables: Sequence[Table]
) -> str:
    main = tag(
        "main",
        tag("section", _image(draw, title), *(tag("p", note) for note in notes)),
        tag("section", html_tables(*tables)),
    )
    header = tag("header", tag("p", "rewarm predict"), tag("h1", title))
    return html_document(title, tag("body", header, main), page_asset("page.css"))


def _image(draw: Callable[[], Any], title: str) -> Markup:
    svg = io.StringIO()
    save_figure(draw, svg, file_format="svg")
    return svg_image(svg.getvalue(), f"{title}; the tables below have the numbers", "whole")
