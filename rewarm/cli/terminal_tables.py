"""Prints tables: fitted to the width of a terminal, or at full width into a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rewarm.line_wrapping import wrap_line

_NARROW_TEXT = 16
"""The least width of a column of text that wraps, if none of its words is longer."""

if TYPE_CHECKING:  # `rewarm --help` imports this module, and should not import pydantic
    from rewarm.table_cells import Table as ResultTable


def plain_table(*columns: str) -> Table:
    """Returns an empty table without borders; only its last column may wrap."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1])
    return table


def print_table(table: Table) -> None:
    """Prints a table; in a pipe each row is one line of any length, so that scripts can read it."""
    console = Console(highlight=False, emoji=False)
    if console.is_terminal:
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
        print(text, file=sys.stderr if stderr else sys.stdout, flush=stderr)


def print_result_table(table: ResultTable, *, show_title: bool = True, names: int = 1) -> None:
    """Prints a table of results: numbers are right-aligned, and only texts may wrap.

    In a terminal that is too narrow for all columns, long names are broken after a slash; if that
    is not enough, the columns are shown in several tables, one below the other.

    Args:
        table: the table.
        show_title: whether to print its title above it.
        names: how many of the first columns name a row; each of several tables has them.
    """
    if show_title:
        print(table.title)
    console = Console()
    for part in _parts(table, console.width, names) if console.is_terminal else [table]:
        print_table(_rendered(part, names))


def _rendered(table: ResultTable, names: int) -> Table:
    rendered = Table(box=None, pad_edge=False, header_style="bold")
    for index, (column, is_numeric) in enumerate(
        zip(table.columns, table.numeric_columns, strict=True)
    ):
        rendered.add_column(
            column, justify="right" if is_numeric else "left", no_wrap=is_numeric or index < names
        )
    for row in table.rows:
        rendered.add_row(*(cell.text for cell in row))
    return rendered


def _parts(table: ResultTable, width: int, names: int) -> list[ResultTable]:
    """Returns tables that are at most `width` wide, as far as possible, each with all rows.

    Each has the first columns, which name a row, and the next columns of the rest.
    """
    excess = sum(2 + column for column in _widths(table, names)) - 2 - width
    if excess > 0:
        fitting = _widths(table, names)[0] - excess
        longest = max(len(part) for row in table.rows for part in _name_parts(row[0].text))
        table = _break_names(table, max(fitting, min(longest, width // 2), _NARROW_TEXT))
    widths = _widths(table, names)
    columns = list(zip(table.columns, widths, strict=True))
    of_names = sum(2 + column_width for _, column_width in columns[:names]) - 2
    parts, used = [table.columns[:names]], of_names
    for column, column_width in columns[names:]:
        used += 2 + column_width
        if used > width and len(parts[-1]) > names:
            parts.append(table.columns[:names])
            used = of_names + 2 + column_width
        parts[-1].append(column)
    return [table.select(*part) for part in parts]


def _widths(table: ResultTable, names: int) -> list[int]:
    """Returns how wide each column has to be: texts may wrap, but no word is broken."""
    widths = []
    for index, (column, is_numeric) in enumerate(
        zip(table.columns, table.numeric_columns, strict=True)
    ):
        texts = [column, *(row[index].text for row in table.rows)]
        width = max(len(line) for text in texts for line in text.split("\n"))
        if index >= names and not is_numeric:
            longest_word = max(len(word) for text in texts for word in text.split() or [""])
            width = min(width, max(_NARROW_TEXT, longest_word))
        widths.append(width)
    return widths


def _break_names(table: ResultTable, width: int) -> ResultTable:
    """Returns a table whose first column is at most `width` wide: broken after slashes."""
    rows = []
    for name, *row in table.rows:
        lines = [""]
        for part in _name_parts(name.text):
            if len(lines[-1] + part) <= width:
                lines[-1] += part
            else:
                lines += [part[start : start + width] for start in range(0, len(part), width)]
        rows.append([name._replace(text="\n".join(lines).lstrip("\n")), *row])
    return table._replace(rows=rows)


def _name_parts(name: str) -> list[str]:
    return re.findall(r"[^/]+/*|/+", name) or [""]
