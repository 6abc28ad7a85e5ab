"""What a recipe would change about a run that is resumed."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from rewarm import schedules
from rewarm.checkpoints.lineage import recipe_of_checkpoint
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError, RecipeError, printable
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.yaml_document import YamlDocument, flatten_settings

# What may differ on --resume without a word: it decides what is written, not what is learnt.
_HARMLESS = (
    *("run", "every", "keep", "on_save_error", "guard.patience"),
    *("data.validation", "data.workers", "data.cache", "data.verify"),
)


def recipe_changes(checkpoint: Path, recipe: Recipe) -> list[str]:
    """Returns how a recipe would change the outcome of a run that goes on behind a checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    verify_checkpoint(checkpoint, only="recipe.yaml")  # damage is not a change of mind
    try:
        said = YamlDocument.load(checkpoint / "recipe.yaml").data
    except RecipeError as error:
        raise CheckpointError(
            f"{checkpoint}: its recipe cannot be read: {error.problems[0]}; use another checkpoint"
        ) from None
    with contextlib.suppress(CheckpointError):  # its plug-in may be gone
        said = recipe_of_checkpoint(checkpoint).document()  # with settings that are newer than it
    began, now = flatten_settings(said), flatten_settings(recipe.document())
    if now["batch.microbatch"] == "auto":
        now["batch.microbatch"] = began.get("batch.microbatch")
    changed = [
        printable(f"{path}: {began.get(path, 'not set')} → {now.get(path, 'not set')}")
        for path in [*began, *(path for path in now if path not in began)]
        if began.get(path) != now.get(path)
        and not any(path == h or path.startswith(f"{h}.") for h in _HARMLESS)
    ]
    return changed + rate_changes(checkpoint, recipe)


def rate_changes(resumed: Path, recipe: Recipe) -> list[str]:
    """Returns how the rates ahead differ from those that a run had before it when it was saved.

    Because the recipe changed, or because the plug-in behind the schedule did.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    done = read_training_state(resumed)
    try:
        began = recipe_of_checkpoint(resumed)
    except CheckpointError:
        return []  # its plug-in is gone, and the recipe names another: that change is listed
    found = []
    pairs = enumerate(
        zip(done.curve, schedules.sample_curve(began.schedule), strict=False), start=1
    )
    for percent, (then, now) in pairs:
        if not math.isclose(then, now, rel_tol=1e-9):
            found.append(
                f"{_plugin(done.schedule)} → {_plugin(schedules.identity(began.schedule.name))}: "
                f"with the same settings, lr at {percent} % of the run: {then:.4e} → {now:.4e}"
            )
            break
    places = {done.step + 1: "the next", began.steps: "the last before", recipe.steps: "the last"}
    for one in (began, recipe):
        for label, place in schedules.marks(one.schedule).items():
            places.setdefault(round(place * one.steps), label)
    for step, label in sorted(places.items()):
        was, will_be = (one.lr(step) if step <= one.steps else None for one in (began, recipe))
        if step > done.step and was != will_be:
            found.append(f"lr at step {step:,} ({label}): {_rate(was)} → {_rate(will_be)}")
    return found


def _plugin(schedule: dict[str, str]) -> str:
    # A stranger's checkpoint may have said it.
    return printable(" ".join(schedule.get(key, "?") for key in ("name", "version")))


def _rate(lr: float | None) -> str:
    return "none" if lr is None else f"{lr:.4e}"
