"""Whether a run is complete, or stale: its recipe, base or data is not what it was made with."""

from __future__ import annotations

from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError
from rewarm.recipe.recipe import Recipe
from rewarm.runs.recorded_metrics import check_metrics, metrics_of_checkpoint
from rewarm.runs.resume_changes import (
    base_changes,
    data_changes,
    read_saved_recipe,
    recipe_changes,
)


def is_complete(recipe: Recipe) -> bool:
    """Returns whether a run is complete and was made by this recipe.

    Raises:
        CheckpointError: it is stale: made by another recipe, from another base, or with other data;
            or it is damaged.
        DataError: the index of a dataset cannot be read.
    """
    directory = recipe.run_directory
    checkpoint = list_checkpoints(directory).get(recipe.steps)
    if checkpoint is None:
        return False
    saved, state = read_saved_recipe(checkpoint), read_training_state(checkpoint)
    if not state.is_complete(recipe.steps):
        return False
    for changes, origin in (
        (recipe_changes(saved, state, recipe), "by another recipe"),
        (base_changes(recipe, state), "from another base"),
        (data_changes(recipe, state), "with other data"),
    ):
        if changes:
            raise CheckpointError(
                f"{directory}: stale: already complete, but {origin}: {'; '.join(changes[:3])}; "
                "move the run away, or undo the changes"
            )
    check_metrics(directory, metrics_of_checkpoint(checkpoint, state))
    return True


def check_started_from_base(recipe: Recipe) -> None:
    """Makes sure that what a run has trained so far started from the base that is there now.

    Raises:
        CheckpointError: it did not; or its last checkpoint is damaged.
    """
    checkpoints = list_checkpoints(recipe.run_directory)
    if not checkpoints:
        return
    if changes := base_changes(recipe, read_training_state(checkpoints[max(checkpoints)])):
        raise CheckpointError(
            f"{recipe.run_directory}: stale: started from another base: {changes[0]}; move the run "
            "away, or undo the change"
        )
