"""`rewarm train`: runs a recipe."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from rewarm.cli.options import RecipeFile, Set, load_recipe
from rewarm.cli.process import STARTED


def train(
    recipe: RecipeFile,
    overrides: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on behind the run's last checkpoint, if any.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although the recipe now says otherwise."),
    ] = False,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="3h55m", help="Be saved and gone by then, with exit code 75."),
    ] = None,
) -> None:
    """Run a recipe."""
    from rewarm.quantities import parse_duration

    try:
        deadline = STARTED + parse_duration(time_limit) if time_limit else math.inf
    except ValueError as error:
        raise typer.BadParameter(f"--time-limit {time_limit}: {error}") from None
    checked = load_recipe(recipe, overrides)
    from rewarm.training.loop import train as run

    print(run(checked, resume=resume, accept_changes=accept_changes, deadline=deadline))
