"""`rewarm schema`: the JSON Schema of a recipe or study, for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from rewarm.cli.standard_streams import print_json


def schema(
    of_study: Annotated[
        bool, typer.Option("--study", help="Print the schema of a study instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of a recipe, for editors.

    Example: rewarm schema
    """
    from rewarm.cli.recipe_templates import schema_json
    from rewarm.recipe.recipe import Recipe
    from rewarm.study.study_plan import Study

    print_json(schema_json(Study if of_study else Recipe).rstrip("\n"))
