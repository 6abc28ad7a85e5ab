"""`rewarm new`: writes a shipped recipe or study into the working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.terminal_tables import plain_table, print_table


def new(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="What to write; without it, a list."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write into.")] = Path(),
) -> None:
    """Write a recipe or study to begin from, and the schema that editors check it by."""
    from rewarm.cli.recipe_templates import list_templates, write_template

    if name is not None:
        print("\n".join(str(path) for path in write_template(name, out)))
        return
    table = plain_table("name", "what it does")
    for shipped_name, what in list_templates().items():
        table.add_row(shipped_name, what)
    print_table(table)
