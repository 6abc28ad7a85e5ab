"""Renders tables as HTML; the page's script makes them sortable and copyable."""

from __future__ import annotations

import math

from rewarm.report.html_writer import Markup, join, tag
from rewarm.table_cells import Cell, Table


def html_tables(*tables: Table) -> Markup:
    """Returns the tables that have rows, each with its title and caption."""
    return join(*(_table(table) for table in tables if table.rows))


def _table(table: Table) -> Markup:
    number_classes = ["number" if numeric else None for numeric in table.numeric_columns]
    headings = (
        tag("th", column, scope="col", class_=number_class)
        for column, number_class in zip(table.columns, number_classes, strict=True)
    )
    rows = (
        tag(
            "tr",
            *(
                _cell(cell, number_class, column)
                for cell, number_class, column in zip(
                    row, number_classes, table.columns, strict=True
                )
            ),
        )
        for row in table.rows
    )
    element = tag(
        "table",
        tag("caption", table.title, class_="unseen"),
        tag("thead", tag("tr", *headings)),
        tag("tbody", *rows),
    )
    scroll = tag("div", element, class_="scroll", tabindex=0, role="region", aria_label=table.title)
    caption = tag("p", table.caption, class_="muted")
    return tag("div", tag("h3", table.title), caption, scroll, class_="table")


def _cell(cell: Cell, number_class: str | None, column: str) -> Markup:
    content = _verdict(cell) if column == "verdict" else cell.text
    class_ = number_class or _text_class(cell)
    return tag("td", content, class_=class_, data_value=_sort_value(cell.value))


def _verdict(cell: Cell) -> Markup:
    return tag("span", cell.text, class_=f"verdict {cell.text.partition(' ')[0]}")


def _text_class(cell: Cell) -> str | None:
    """Returns the CSS classes of a text cell: in print, `long` allows breaks within words."""
    has_long_word = any(len(word) > 30 for word in cell.text.split())
    return " ".join(["long"] * has_long_word + ["quiet"] * cell.quiet) or None


def _sort_value(value: float | None) -> str | None:
    """Returns a number in the form that JavaScript parses."""
    if value is None:
        return None
    return f"{value:.12g}" if math.isfinite(value) else "-Infinity" if value < 0 else "Infinity"
