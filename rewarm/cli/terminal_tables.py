"""Prints tables: fitted to the width of a terminal, or at full width into a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rewarm.line_wrapping import wrap_line

_NARROW_TEXT = 16
"""The least width of a column of text that wraps."""

if TYPE_CHECKING:  # `rewarm --help` imports this module, and should not import pydantic
    from rewarm.table_cells import Table as ResultTable


def plain_table(*columns: str) -> Table:
    """Returns an empty table without borders; only its last column may wrap."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1])
    return table


def print_table(table: Table, *, min_width: int = 0) -> None:
    """Prints a table; in a pipe each row is one line of any length, so that scripts can read it.

    Args:
        table: the table.
        min_width: rows of this width are not fitted to a terminal that is narrower.
    """
    console = Console(highlight=False, emoji=False)
    if console.is_terminal:
        console.width = max(console.width, min_width)
        console.print(table, markup=False)
        return
    console.width = 1000
    with console.capture() as captured:
        console.print(table, markup=False)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_notes(lines: Iterable[str], *, indent: int | None = None, stderr: bool = False) -> None:
    """Prints lines; a terminal shows long ones in parts, see `wrap_line` for their `indent`."""
    console = Console(stderr=stderr)
    for line in lines:
        text = wrap_line(line, console.width, indent=indent) if console.is_terminal else line
        print(text, file=sys.stderr if stderr else sys.stdout)


def print_result_table(table: ResultTable, *, show_title: bool = True) -> None:
    """Prints a table of results: numbers are right-aligned, and only texts may wrap.

    A terminal that is too narrow for all columns shows them in several tables, one below the other.
    """
    if show_title:
        print(table.title)
    console = Console()
    for part in _parts(table, console.width) if console.is_terminal else [table]:
        print_table(_rendered(part))


def _rendered(table: ResultTable) -> Table:
    rendered = Table(box=None, pad_edge=False, header_style="bold")
    for column, is_numeric in zip(table.columns, table.numeric_columns, strict=True):
        is_first = column == table.columns[0]
        rendered.add_column(
            column, justify="right" if is_numeric else "left", no_wrap=is_numeric or is_first
        )
    for row in table.rows:
        rendered.add_row(*(cell.text for cell in row))
    return rendered


def _parts(table: ResultTable, width: int) -> list[ResultTable]:
    """Returns tables that are at most `width` wide, as far as possible, each with all rows.

    Each has the first column, and the next columns of the rest.
    """
    widths = [
        max(len(text) for text in (column, *(row[index].text for row in table.rows)))
        for index, column in enumerate(table.columns)
    ]
    for index, is_numeric in enumerate(table.numeric_columns):
        if index and not is_numeric:
            widths[index] = min(widths[index], _NARROW_TEXT)
    parts, used = [[table.columns[0]]], widths[0]
    for column, column_width in zip(table.columns[1:], widths[1:], strict=True):
        used += 2 + column_width
        if used > width and len(parts[-1]) > 1:
            parts.append([table.columns[0]])
            used = widths[0] + 2 + column_width
        parts[-1].append(column)
    return [table.select(*columns) for columns in parts]
