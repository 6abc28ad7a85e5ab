"""Tables in the terminal, and whole lines in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from rewarm.tables import Table as ResultTable


def plain_table(*columns: str) -> Table:
    """Returns a plain table, of which only the last column may wrap."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=column != columns[-1])
    return made


def print_table(made: Table) -> None:
    """Prints a table; in a pipe as wide as it is, since whoever reads it wants whole lines."""
    console = Console(highlight=False, emoji=False)
    if console.is_terminal:
        console.print(made, markup=False)
        return
    console.width = 1000
    with console.capture() as written:
        console.print(made, markup=False)
    print("\n".join(line.rstrip() for line in written.get().splitlines()))


def print_result_table(table: ResultTable, *, show_title: bool = True) -> None:
    """Prints a table of results: numbers right-aligned, only longer texts may wrap."""
    rendered = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=table.title if show_title else None,
        title_justify="left",
    )
    for column, is_numeric in zip(table.columns, table.numeric_columns, strict=True):
        is_first = column == table.columns[0]
        rendered.add_column(
            column, justify="right" if is_numeric else "left", no_wrap=is_numeric or is_first
        )
    for row in table.rows:
        rendered.add_row(*(cell.text for cell in row))
    print_table(rendered)
