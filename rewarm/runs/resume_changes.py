"""What a recipe would change about a run that is resumed."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rewarm import schedules
from rewarm.checkpoints.find_checkpoint import find_local_model, locate_base
from rewarm.checkpoints.manifest import sha256_in_manifest, verify_checkpoint
from rewarm.checkpoints.training_state import TrainingState
from rewarm.checkpoints.weight_files import weights_digest
from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.errors import CheckpointError, RecipeError, RewarmError, printable
from rewarm.files import FileStamp
from rewarm.recipe.path_settings import make_paths_absolute
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.recipe.yaml_document import YamlDocument, flatten_settings
from rewarm.runs.corpus_mixture import share_changes
from rewarm.runs.corpus_sources import open_corpus

# Settings that may change on --resume without a question: they decide what is written, not what is
# learned.
_HARMLESS = (
    *("run", "every", "tasks", "sample", "keep", "on_save_error", "guard.patience", "trackers"),
    *("data.validation", "data.workers", "data.cache", "data.verify"),
    *("batch.microbatch", "parallel"),  # they decide how sums are grouped: the last bits
)


_MOST_MIXTURE_LINES = 10


def changed_settings(
    before: dict[str, Any], now: dict[str, Any], is_same: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """Returns how settings differ, a line each, without those that do not change the result.

    `is_same` says of a setting whose values differ whether they stand for the same.
    """
    return [
        printable(f"{path}: {before.get(path, 'not set')} → {now.get(path, 'not set')}")
        for path in [*before, *(path for path in now if path not in before)]
        if before.get(path) != now.get(path)
        and not any(path == name or path.startswith(f"{name}.") for name in _HARMLESS)
        and not is_same(path)
    ]


class SavedRecipe(NamedTuple):
    """The recipe in a checkpoint."""

    settings: dict[str, Any]
    """As {"a.b": value}, as they were written down."""
    recipe: Recipe | None
    """None if it cannot be validated any more: its plug-in may have been uninstalled."""


def read_saved_recipe(checkpoint: Path) -> SavedRecipe:
    """Returns the recipe that a checkpoint was made with.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    verify_checkpoint(checkpoint, only="recipe.yaml")  # damage is no change of the recipe
    try:
        document = load_saved_document(checkpoint / "recipe.yaml")
    except RecipeError as error:
        raise CheckpointError(
            f"{checkpoint}: its recipe cannot be read: {error.problems[0]}; use another checkpoint"
        ) from None
    make_paths_absolute(document, _start_folder(checkpoint, document))
    recipe = None
    with contextlib.suppress(RecipeError):
        recipe = validate_recipe(document)
    return SavedRecipe(flatten_settings(document.data), recipe)


def recipe_changes(saved: SavedRecipe, state: TrainingState, recipe: Recipe) -> list[str]:
    """Returns how a recipe would change the outcome of a run that is resumed, a line each.

    Args:
        saved: the recipe in the checkpoint that the run is resumed from.
        state: the training state in that checkpoint.
        recipe: the recipe to resume with.
    """
    # The validated recipe also has the settings that are newer than the checkpoint.
    before = flatten_settings(saved.recipe.document()) if saved.recipe else saved.settings
    now = flatten_settings(recipe.document())
    if now["batch.microbatch"] == "auto" and recorded_microbatch(saved, recipe):
        now["batch.microbatch"] = before["batch.microbatch"]
    changed = changed_settings(before, now, lambda setting: _is_moved(setting, state, recipe))
    if saved.recipe is None:  # the recipe names another plug-in: that change is listed
        return changed
    mixture_changes = list(share_changes(saved.recipe, recipe, state.step))
    if len(mixture_changes) > _MOST_MIXTURE_LINES:
        left_out = len(mixture_changes) - _MOST_MIXTURE_LINES
        mixture_changes[_MOST_MIXTURE_LINES:] = [f"mixture: {left_out:,} more changes"]
    return changed + mixture_changes + _rate_changes(state, saved.recipe, recipe)


def changed_corpora(digests: dict[str, str], state: TrainingState, *, is_resume: bool) -> list[str]:
    """Returns the corpora whose shards are not those in which a data position was reached.

    A corpus that a base did not have starts at its beginning; a run's own cannot be new.
    """
    return [
        name
        for name, digest in digests.items()
        if state.corpora.get(name, "" if is_resume else digest) != digest
    ]


def changed_validation_sets(validation: dict[str, StoredBlocks], state: TrainingState) -> list[str]:
    """Returns the validation sets whose data is not that on which a run has measured losses."""
    digests = {name: blocks.digest() for name, blocks in validation.items()}
    return [
        name for name, digest in digests.items() if state.validation.get(name, digest) != digest
    ]


def data_changes(recipe: Recipe, state: TrainingState) -> list[str]:
    """Returns how the data of a recipe differs from that of a run that is complete, a line each.

    Text that is not sharded yet is not compared.

    Raises:
        DataError: the index of a dataset cannot be read.
    """
    data = recipe.data
    digests = {
        name: source.index.digest()
        for name, corpus in data.train.items()
        if isinstance(source := open_corpus(recipe, corpus), ShardSource)
    }
    validation = {
        name: StoredBlocks(source, context=data.context, tokens=settings.tokens)
        for name, settings in data.validation.items()
        if isinstance(source := open_corpus(recipe, settings), ShardSource)
    }
    return [
        *(
            f"data.train.{name}: other shards"
            for name in changed_corpora(digests, state, is_resume=True)
        ),
        *(
            f"data.validation.{name}: other shards or tokens"
            for name in changed_validation_sets(validation, state)
        ),
        *(
            f"data.validation.{name}: was not measured"
            for name in validation
            if state.validation and name not in state.validation
        ),
    ]


def base_changes(recipe: Recipe, state: TrainingState) -> list[str]:
    """Returns how a recipe's base differs from the one that a run started from, a line or none.

    A base that is gone, or that is not on this machine, is not compared.
    """
    recorded = state.lineage[-1].sha256 if state.lineage else None
    with contextlib.suppress(RewarmError):
        if recipe.model.base and recorded and find_local_model(recipe.model.base):
            base = locate_base(recipe.model.base, weights=False)
            current = sha256_in_manifest(base.directory) or _weights_digest(
                base.directory, _file_stamps(base.directory)
            )
            if current != recorded:
                return [
                    f"the weights of {base.name} have sha256 {current[:12]}, and the run started "
                    f"from {recorded[:12]}"
                ]
    return []


def _file_stamps(folder: Path) -> tuple[FileStamp, ...]:
    return tuple(FileStamp.of(file.stat()) for file in sorted(folder.iterdir()))


@lru_cache(maxsize=64)
def _weights_digest(folder: Path, _stamps: tuple[FileStamp, ...]) -> str:
    """Returns the sha256 of a model's weights, which is computed again when its files change."""
    return weights_digest(folder)


def _start_folder(checkpoint: Path, document: YamlDocument) -> Path:
    """Returns the folder that relative paths in a checkpoint's recipe are relative to.

    In an older recipe it is the folder in which the run was started, which the run directory's own
    path shows.
    """
    directory = checkpoint.absolute().parents[1]
    run = Path(os.path.normpath(str(document.data.get("run"))))
    depth = len(run.parts)
    if not run.is_absolute() and directory.parts[-depth:] == run.parts:
        return Path(*directory.parts[:-depth])
    return Path.cwd()


def _is_moved(setting: str, state: TrainingState, recipe: Recipe) -> bool:
    """Returns whether a setting is another path to the same shards, or to the same base."""
    with contextlib.suppress(RewarmError):
        if setting == "model.base" and recipe.model.base and state.lineage:
            base, sha256 = find_local_model(recipe.model.base), state.lineage[-1].sha256
            return base is not None and sha256 is not None and sha256_in_manifest(base) == sha256
        corpus = setting.removeprefix("data.train.").removesuffix(".shards")
        if setting == f"data.train.{corpus}.shards" and corpus in recipe.data.train:
            source = open_corpus(recipe, recipe.data.train[corpus])
            if isinstance(source, ShardSource):
                return source.index.digest() == state.corpora.get(corpus)
    return False


def recorded_microbatch(saved: SavedRecipe, recipe: Recipe) -> int | None:
    """Returns the microbatch in a run's saved recipe, where it divides the recipe's batch."""
    microbatch = saved.settings.get("batch.microbatch")
    if type(microbatch) is not int or microbatch <= 0:
        return None
    return None if recipe.sequences_per_step % microbatch else microbatch


def _rate_changes(state: TrainingState, made_by: Recipe, recipe: Recipe) -> list[str]:
    """Returns how the rates ahead differ from those that the run had ahead when it was saved.

    Because the recipe changed, or because the plug-in that computes the schedule did.
    """
    changed = []
    curves = zip(state.curve, schedules.sample_curve(made_by.schedule), strict=False)
    for percent, (then, now) in enumerate(curves, start=1):
        if not math.isclose(then, now, rel_tol=1e-9):
            before, after = state.schedule, schedules.identity(made_by.schedule.name)
            changed.append(
                f"{_plugin(before)} → {_plugin(after)}: with the same settings, lr at {percent} % "
                f"of the run: {then:.4e} → {now:.4e}"
            )
            break
    marks = {
        state.step + 1: "the next",
        made_by.steps: "the last before",
        recipe.steps: "the last",
    }
    for scheduled in (made_by, recipe):
        for label, progress in schedules.marks(scheduled.schedule).items():
            marks.setdefault(round(progress * scheduled.steps), label)
    for step, label in sorted(marks.items()):
        before_lr, after_lr = (
            scheduled.lr(step) if step <= scheduled.steps else None
            for scheduled in (made_by, recipe)
        )
        if step > state.step and before_lr != after_lr:
            changed.append(f"lr at step {step:,} ({label}): {_rate(before_lr)} → {_rate(after_lr)}")
    return changed


def _plugin(schedule: dict[str, str]) -> str:
    # The checkpoint may come from someone else.
    return printable(" ".join(schedule.get(key, "?") for key in ("name", "version")))


def _rate(lr: float | None) -> str:
    return "none" if lr is None else f"{lr:.4e}"
