"""The cells of a report's tables: a number as a reader sees it, and as a table sorts by it."""

from __future__ import annotations

from typing import NamedTuple

from rewarm.quantities import format_count


class Cell(NamedTuple):
    """What stands in a table."""

    text: str
    value: float | None = None
    """Of a number, for sorting by it."""
    quiet: bool = False
    """Whether a reader may pass over it."""


class Table(NamedTuple):
    """A table, ready to be shown in any format."""

    title: str
    about: str
    """What its numbers are, in a sentence or two."""
    columns: list[str]
    rows: list[list[Cell]]


EMPTY = Cell("")


def number_cell(value: float | None, form: str) -> Cell:
    """Returns a number in a form of `format`."""
    return EMPTY if value is None else Cell(format(value, form), value)


def count_cell(value: int) -> Cell:
    """Returns a whole number."""
    return Cell(f"{value:,}", value)


def tokens_cell(value: float | None, error: float | None = None) -> Cell:
    """Returns a number of tokens in words, with its standard error."""
    if value is None:
        return EMPTY
    return Cell(format_count(value) + (f" ± {format_count(error)}" if error else ""), value)


def plural(count: int, what: str) -> str:
    """Returns a number of things: `1 arm`, `2 arms`."""
    return f"{count} {what}{'s' * (count != 1)}"
