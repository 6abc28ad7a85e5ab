"""Decides which checkpoints of a run to keep (`keep` in the recipe); deletes or moves others."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from rewarm.checkpoints.best_checkpoint import best_step
from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.errors import CheckpointError
from rewarm.files import free_name, sync_to_disk
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.training_settings import KeepSettings

SET_ASIDE_SUFFIX = ".set-aside"
"""Suffix of a checkpoint directory that a run no longer uses, and that only a user deletes."""
DELETING_SUFFIX = ".deleting"
"""Suffix of a checkpoint directory while its files are being deleted."""


def kept_steps(
    keep: KeepSettings, steps: list[int], branch_step: int | None, best: int | None = None
) -> set[int]:
    """Returns the steps whose checkpoints are kept.

    Args:
        keep: the newest `keep.last` checkpoints are kept, and those at multiples of `keep.every`.
        steps: the steps that have a checkpoint, in ascending order.
        branch_step: the last step before the decay, whose checkpoint is always kept; None if the
            schedule has no such step.
        best: the step of the best checkpoint (`keep.best`), which is kept.
    """
    if keep.last is None:
        return set(steps)
    others = (n for n in steps if n in (branch_step, best) or (keep.every and n % keep.every == 0))
    return {*steps[-keep.last :], *others}


def most_checkpoints_at_once(recipe: Recipe) -> int:
    """Returns the maximum number of checkpoints on disk, counting the one being written."""
    keep, branch, saves = recipe.keep, recipe.branch_step, recipe.periodic_saves
    earlier = recipe.checkpoint_count - 1
    if keep.last is None or keep.last >= earlier:
        return earlier + 1
    oldest = _newest(saves, branch, keep.last)  # of the newest ones
    # Of those before it, multiples of both intervals are kept, and the branch step.
    interval = keep.every and math.lcm(keep.every, saves.step)
    kept_before = (oldest - 1) // interval if interval else 0
    if branch is not None and branch < oldest and not (interval and branch % interval == 0):
        kept_before += 1
    return min(keep.last + kept_before + bool(keep.best), earlier) + 1


def _newest(saves: range, branch: int | None, number: int) -> int:
    """Returns the `number`-th newest of the periodic saves and the branch step."""
    if branch is None or branch in saves:
        return saves[-number]
    after_branch = len(range(branch + saves.step - branch % saves.step, saves.stop, saves.step))
    if number <= after_branch:
        return saves[-number]
    return branch if number == after_branch + 1 else saves[1 - number]


def prune_checkpoints(
    run_directory: Path, keep: KeepSettings, branch_step: int | None
) -> list[str]:
    """Deletes the checkpoints that need not be kept (see `kept_steps`), and returns their names.

    Only complete checkpoints named step-NNNNNNNN are deleted; a renamed checkpoint is always kept.
    None is deleted while one cannot be read that may be the best.
    """
    checkpoints = list_checkpoints(run_directory)
    try:
        best = best_step(checkpoints, keep.best_sets) if keep.best else None
    except CheckpointError:
        return []
    deleted = []
    kept = kept_steps(keep, list(checkpoints), branch_step, best)
    for step in sorted(checkpoints.keys() - kept):
        path = checkpoints[step]
        # Renamed before its first file is deleted, so that it is not mistaken for a checkpoint.
        try:
            renamed = path.rename(path.with_suffix(DELETING_SUFFIX))
        except OSError:  # no permission, for example: an extra checkpoint must not end a run
            continue
        # After a power loss, a folder that has lost files must not have its old name.
        sync_to_disk(path.parent)
        shutil.rmtree(renamed, ignore_errors=True)
        deleted.append(path.name)
    return deleted


def set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint that is in the way, so that no reader uses it; returns its new path.

    Raises:
        OSError: it cannot be renamed.
    """
    moved = checkpoint.rename(free_name(checkpoint.with_suffix(SET_ASIDE_SUFFIX)))
    sync_to_disk(moved.parent)
    return moved
