"""What several commands take: a recipe and overrides of its settings, and JSON instead of text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm import recipe
from rewarm.recipe import Recipe
from rewarm.sections import Model

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def base_lr(model: Model) -> float:
    """Returns the last rate of a model's base, having imported what knows it."""
    from rewarm import lineage

    return lineage.base_lr(model)


def load(path: Path, overrides: list[str] | None) -> Recipe:
    """Returns a recipe with its overrides, whose rates may be those of its base."""
    return recipe.load(path, overrides, base_lr=base_lr)
