"""`rewarm train`: runs a recipe."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from rewarm.cli.options import AcceptChanges, RecipeFile, Resume, ResumeFrom, Set, load_recipe_file
from rewarm.cli.process_setup import STARTED
from rewarm.cli.standard_streams import output_is_summary


def train_command(
    recipe: RecipeFile,
    overrides: Set = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    accept_changes: AcceptChanges = False,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="3h55m", help="Save and exit within this wall-clock time, with exit code 75."
        ),
    ] = None,
) -> None:
    """Run a recipe."""
    from rewarm.quantities import parse_duration

    try:
        deadline = STARTED + parse_duration(time_limit) if time_limit else math.inf
    except ValueError as error:
        raise typer.BadParameter(f"--time-limit {time_limit}: {error}") from None
    loaded = load_recipe_file(
        recipe, overrides
    )  # a mistake in it is reported before torch is imported
    from rewarm.training.loop import train

    output_is_summary()
    checkpoint = train(
        loaded,
        resume=resume,
        resume_from=resume_from,
        accept_changes=accept_changes,
        deadline=deadline,
    )
    print(checkpoint)
