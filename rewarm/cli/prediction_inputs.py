"""What `rewarm predict` and `rewarm probe` start from: the arms, and recipes to predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewarm.predict.arms import StudiedArms
    from rewarm.recipe.recipe import Recipe


def read_arms(sources: list[Path]) -> StudiedArms:
    """Returns the arms of runs, folders of runs, and studies.

    Raises:
        CheckpointError: they are too few, a run is not finished, or they do not compare.
    """
    from rewarm.predict.arms import study_arms
    from rewarm.report.collect_runs import collect_runs
    from rewarm.report.left_out_losses import measured_runs

    return study_arms(measured_runs(collect_runs(sources)))


def checked_recipe(arms: StudiedArms, name: str, recipe: Recipe) -> Recipe:
    """Returns a recipe of a run that the law can describe.

    Raises:
        RecipeError: it differs from the arms in more than schedule, length and replay.
    """
    from rewarm.errors import RecipeError
    from rewarm.predict.reach import recipe_differences

    if differences := recipe_differences(arms, recipe):
        raise RecipeError([f"{name}: {difference}" for difference in differences])
    return recipe
