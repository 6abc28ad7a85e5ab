"""`rewarm new`: copies a recipe or study template into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.terminal_tables import plain_table, print_notes, print_table


def new(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The template to copy; without it, list all."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to.")] = Path(),
) -> None:
    """Copy a recipe or study template, with its JSON Schema for editors, or list all templates.

    Example: rewarm new cpu-mini --out recipes
    """
    from rewarm.cli.recipe_templates import list_templates, write_template

    if name is not None:
        output_is_summary()
        print("\n".join(str(path) for path in write_template(name, out)))
        return
    table = plain_table("name", "kind", "description")
    for template, (kind, description) in list_templates().items():
        table.add_row(template, kind, description)
    print_table(table)
    print_notes(["recipes are for `rewarm train`, studies for `rewarm compare`"], stderr=True)
