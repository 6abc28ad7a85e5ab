"""Tables whose content is decided: the terminal, HTML and Markdown only render them.

A cell holds a number twice, as formatted text and as the value that a table sorts by.
"""

from __future__ import annotations

from typing import NamedTuple

from rewarm.quantities import format_count


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    value: float | None = None
    """Of a number, for sorting."""
    quiet: bool = False
    """Whether to show the cell in a muted color, because it says nothing new."""


class Table(NamedTuple):
    """A table, ready to be rendered in any format."""

    title: str
    about: str
    """What its numbers are, in a sentence or two."""
    columns: list[str]
    rows: list[list[Cell]]

    @property
    def numeric_columns(self) -> list[bool]:
        """Whether each column holds nothing but numbers and empty cells: shown right-aligned."""
        return [
            all(row[index].value is not None or not row[index].text for row in self.rows)
            for index in range(len(self.columns))
        ]

    def select(self, *columns: str) -> Table:
        """Returns the table with these columns only, in this order.

        Raises:
            ValueError: it has no such column.
        """
        indices = [self.columns.index(column) for column in columns]
        rows = [[row[index] for index in indices] for row in self.rows]
        return self._replace(columns=list(columns), rows=rows)


EMPTY = Cell("")


def number_cell(value: float | None, form: str) -> Cell:
    """Returns a number, formatted with `format(value, form)`; empty for None."""
    return EMPTY if value is None else Cell(format(value, form), value)


def count_cell(value: int) -> Cell:
    """Returns a whole number with thousands separators."""
    return Cell(f"{value:,}", value)


def tokens_cell(value: float | None, error: float | None = None) -> Cell:
    """Returns a number of tokens such as `1.5M`, with its standard error; empty for None."""
    if value is None:
        return EMPTY
    return Cell(format_count(value) + (f" ± {format_count(error)}" if error else ""), value)


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 arm`, `2 arms`."""
    return f"{count} {noun}{'s' * (count != 1)}"
