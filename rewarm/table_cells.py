"""Tables with formatted cells, independent of how they are rendered: terminal, HTML, Markdown.

A cell of a number has both the formatted text and the value that a table sorts by.
"""

from __future__ import annotations

from typing import NamedTuple

from rewarm.quantities import format_count


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    value: float | None = None
    """The number that the text shows, for sorting; None for a text."""
    quiet: bool = False
    """Whether to show the cell in a muted color, because it repeats what is known."""


class Table(NamedTuple):
    """A table, ready to be rendered in any format."""

    title: str
    caption: str
    """Explains the table's numbers in one to three sentences."""
    columns: list[str]
    rows: list[list[Cell]]

    @property
    def numeric_columns(self) -> list[bool]:
        """Whether each column has only numbers and empty cells; such columns are right-aligned."""
        return [
            all(row[index].value is not None or not row[index].text for row in self.rows)
            for index in range(len(self.columns))
        ]

    def select(self, *columns: str) -> Table:
        """Returns a table with only these columns, in this order.

        Raises:
            ValueError: the table has no such column.
        """
        indices = [self.columns.index(column) for column in columns]
        rows = [[row[index] for index in indices] for row in self.rows]
        return self._replace(columns=list(columns), rows=rows)


EMPTY = Cell("")


def number_cell(value: float | None, number_format: str) -> Cell:
    """Returns a cell with `format(value, number_format)`; empty for None."""
    return EMPTY if value is None else Cell(format(value, number_format), value)


def interval_cell(low: float, high: float, number_format: str) -> Cell:
    """Returns a cell with the bounds of an interval, `3.41 to 3.45`, sorted by the lower one."""
    return Cell(f"{low:{number_format}} to {high:{number_format}}", low)


def count_cell(value: int) -> Cell:
    """Returns a cell with a whole number, with thousands separators."""
    return Cell(f"{value:,}", value)


def tokens_cell(value: float | None, standard_error: float | None = None) -> Cell:
    """Returns a cell with a number of tokens, `1.5M ± 100k`; empty for None."""
    if value is None:
        return EMPTY
    error = f" ± {format_count(standard_error)}" if standard_error else ""
    return Cell(format_count(value) + error, value)


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 arm`, `2 arms`."""
    return f"{count} {noun}{'s' * (count != 1)}"
