"""Finds the base model of a run: a model directory, a checkpoint of a run, or a hub model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from rewarm.checkpoints.best_checkpoint import best_step
from rewarm.checkpoints.gpt_neox_import import (
    GPT_NEOX_KIND,
    find_gpt_neox_checkpoint,
    read_gpt_neox_architecture,
)
from rewarm.checkpoints.hub_download import download_from_hub, is_hub_name
from rewarm.checkpoints.manifest import AVERAGE, MANIFEST
from rewarm.errors import CheckpointError, RewarmError
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.path_contents import describe_path, nearest_name, no_such_folder
from rewarm.paths import short_path
from rewarm.quantities import parse_count
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.saved_recipe import load_saved_recipe
from rewarm.safe_loading import check_files_inside, read_json

CheckpointContent = TypeVar("CheckpointContent")

_STEP_FOLDER = re.compile(r"step-\d{8,}")


class BaseCheckpoint(NamedTuple):
    """The base model, from whose weights a run starts (`model.base`)."""

    name: str
    """The name in the recipe."""
    directory: Path
    """Directory on this machine."""
    architecture: Architecture
    kind: str
    """`rewarm checkpoint`, `GPT-NeoX checkpoint`, `local model` or `hub model`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, as given in the recipe."""
    commit: str | None = None
    """The commit that the revision resolved to."""


def locate_base(name: str, revision: str | None = None, *, weights: bool = True) -> BaseCheckpoint:
    """Returns the base model that a name refers to; downloads it if it is a hub model.

    Args:
        name: a model directory, a run directory (its last checkpoint), a checkpoint reference
            (RUN@40000, RUN@last, RUN@before-decay, RUN@best, RUN@ema), a checkpoint of the GPT-NeoX
            library or a folder whose `latest` file names one, or a hub name.
        revision: branch, tag or commit of a hub model.
        weights: whether to download the weights of a hub model, and not only its configuration.

    Raises:
        CheckpointError: there is no such model, or it is not a GPT-NeoX model.
    """
    directory = find_local_model(name)
    name = short_path(name)
    if directory is None:
        if not is_hub_name(name):
            raise no_local_model(name)
        directory = download_from_hub(name, revision, weights=weights)
        commit = directory.name if re.fullmatch(r"[0-9a-f]{40}", directory.name) else None
        architecture = read_architecture(directory)
        return BaseCheckpoint(name, directory, architecture, "hub model", revision, commit)
    if revision is not None:
        raise CheckpointError(
            f"{name}: this is a local folder, and only a hub name can have a revision ({revision})"
        )
    if gpt_neox_folder := find_gpt_neox_checkpoint(directory):
        architecture = read_gpt_neox_architecture(gpt_neox_folder)
        return BaseCheckpoint(name, gpt_neox_folder, architecture, GPT_NEOX_KIND)
    kind = "rewarm checkpoint" if (directory / MANIFEST).exists() else "local model"
    if kind == "local model" and (directory / "progress.json").exists():
        raise CheckpointError(
            f"{directory}: not a complete checkpoint (progress.json, but no {MANIFEST}); copy it "
            "again, or remove progress.json to use the weights alone"
        )
    return BaseCheckpoint(name, directory, read_architecture(directory), kind)


def find_local_model(name: str) -> Path | None:
    """Returns the model directory that a name refers to; None if it is not on this machine.

    Raises:
        CheckpointError: the name refers to a checkpoint that the run does not have.
    """
    name = short_path(name)
    path, separator, reference = name.rpartition("@")
    if Path(name).exists() or not separator:
        return (last_checkpoint(Path(name)) or Path(name)) if Path(name).exists() else None
    return resolve_checkpoint_reference(Path(path), reference) if Path(path).is_dir() else None


def no_local_model(name: str) -> CheckpointError:
    """Returns the error of a name that is no folder on this machine, and not asked the hub for."""
    path, at, _ = name.rpartition("@")
    folder = Path(short_path(path if at else name))
    remedy = "; for a model of the hub, also set model.base_lr" if is_hub_name(name) else ""
    if name in PRESETS:
        remedy = (
            f", or write EleutherAI/{name} for the model of the hub, or model.preset: {name} for "
            "one of its size with new weights"
        )
    return CheckpointError(
        f"{short_path(name)}: {no_such_folder(folder)}; correct the path{remedy}"
        f"{nearest_name(folder)}"
    )


def resolve_checkpoint_reference(run: Path, reference: str) -> Path:
    """Returns the checkpoint that a reference names: a step, `last`, `before-decay`, `best`, `ema`.

    `before-decay` is the newest checkpoint before the final decay of the learning rate, `best` that
    of `keep.best`, and `ema` the average of the weights in the last one (`optimizer.ema`).

    Raises:
        CheckpointError: there is no such checkpoint, or the reference is invalid.
    """
    checkpoints = list_checkpoints(run)
    if reference in ("last", "ema"):
        last_checkpoint(run)  # refuses to use an older one than the last
    if not checkpoints:
        raise CheckpointError(
            f"{run}: the run has no complete checkpoint, so @{reference} does not exist"
        )
    if reference == "last":
        return checkpoints[max(checkpoints)]
    if reference == "ema":
        return _average_in(checkpoints[max(checkpoints)])
    if reference == "best":
        names = _recipe_of(run, reference).keep.best_sets
        step = best_step(checkpoints, names) if names else None
        expected = "whose step was evaluated (keep.best)"
        if not names:
            raise CheckpointError(
                f"{run}@best: the run's recipe has no keep.best, which says which losses to "
                "compare; name a step"
            )
    elif reference == "before-decay":
        last_step = _recipe_of(run, reference).step_before_decay
        step = max((n for n in checkpoints if n <= last_step), default=None)
        expected = f"at or before step {last_step:,}, where the decay begins"
    else:
        try:
            step = parse_count(re.sub(r"^step-0*(?=\d)", "", reference))
        except ValueError:
            raise CheckpointError(
                f"{run}@{reference}: not a checkpoint reference; expected a step, such as 40000 "
                "or step-00040000, `last`, `before-decay`, `best` or `ema`"
            ) from None
        expected = f"at step {step:,}"
    if step is None or step not in checkpoints:
        raise CheckpointError(
            f"{run}: no checkpoint {expected}; the run has checkpoints at steps "
            f"{', '.join(f'{n:,}' for n in checkpoints)}"
        )
    return checkpoints[step]


def _recipe_of(run: Path, reference: str) -> Recipe:
    try:
        return load_saved_recipe(run / "recipe.yaml")
    except RewarmError as error:
        raise CheckpointError(
            f"{run}@{reference}: cannot read the recipe of this run: {error}"
        ) from None


def _average_in(checkpoint: Path) -> Path:
    """Returns the folder with the average of the weights in a checkpoint.

    Raises:
        CheckpointError: it has none.
    """
    if not (checkpoint / AVERAGE).is_dir():
        raise CheckpointError(
            f"{checkpoint}: has no average of the weights; it is saved with optimizer.ema: "
            "{decay: 0.999}, or made of several checkpoints by `rewarm merge`"
        )
    return checkpoint / AVERAGE


class _StepFolders(NamedTuple):
    """What is named like a checkpoint, keyed by step in ascending order."""

    complete: dict[int, Path]
    incomplete: dict[int, Path]


def list_checkpoints(run: Path) -> dict[int, Path]:
    """Returns the complete checkpoints of a run directory, keyed by step in ascending order."""
    return _step_folders(run).complete


def incomplete_checkpoints(run: Path) -> dict[int, Path]:
    """Returns what is named like a checkpoint and is none, keyed by step in ascending order.

    Training renames a checkpoint when it is complete, and before it is deleted: an incomplete one
    was copied or deleted by something else, and only in part.
    """
    return _step_folders(run).incomplete


def later_checkpoints(run: Path, checkpoint: Path | None) -> list[Path]:
    """Returns the checkpoints of a run after one of them, complete or not; all after None."""
    complete, incomplete = _step_folders(run)
    folders = dict(sorted((complete | incomplete).items()))
    step = next((step for step, path in folders.items() if path == checkpoint), -1)
    return [path for later, path in folders.items() if later > step]


def _step_folders(run: Path) -> _StepFolders:
    while True:
        folders = _StepFolders({}, {})
        paths = _step_paths(run)
        for path in paths:
            is_complete = (path / MANIFEST).is_file()
            of_its_kind = folders.complete if is_complete else folders.incomplete
            of_its_kind[int(path.name.removeprefix("step-"))] = path
        # A run that is training may have saved one and deleted another meanwhile: a folder that is
        # listed while it changes may show neither.
        if paths == _step_paths(run):
            return folders


def _step_paths(run: Path) -> list[Path]:
    """Returns what is named like a checkpoint, by step in ascending order."""
    paths = [p for p in (run / "checkpoints").glob("step-*") if _STEP_FOLDER.fullmatch(p.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def last_checkpoint(run: Path) -> Path | None:
    """Returns the newest checkpoint of a run directory; None if there is none.

    Raises:
        CheckpointError: there is an incomplete checkpoint: an older one would be used instead.
    """
    checkpoints = list_checkpoints(run)
    if incomplete := incomplete_checkpoints(run):
        older = f", such as {run}@{max(checkpoints)}" if checkpoints else ""
        raise CheckpointError(
            f"{', '.join(map(str, incomplete.values()))}: not a complete checkpoint (no "
            f"{MANIFEST}): a copy of it may have been interrupted; copy it again or delete it, or "
            f"name another checkpoint{older} (`train`: --resume-from STEP)"
        )
    return checkpoints[max(checkpoints)] if checkpoints else None


def read_last_checkpoint(
    run: Path, read: Callable[[Path], CheckpointContent]
) -> CheckpointContent | None:
    """Returns `read(newest checkpoint)` of a run that may be training; None without a checkpoint.

    If the run deletes that checkpoint meanwhile (`keep`), the then newest one is read.

    Raises:
        CheckpointError: there is an incomplete checkpoint, or `read` raised it.
    """
    while checkpoint := last_checkpoint(run):
        try:
            return read(checkpoint)
        except (RewarmError, OSError):
            if checkpoint.exists():
                raise
    return None


def read_architecture(directory: Path) -> Architecture:
    """Returns the architecture in the config.json of a model directory.

    Raises:
        CheckpointError: config.json is missing, or is not that of a GPT-NeoX model.
    """
    path = directory / "config.json"
    try:
        check_files_inside(directory)
        config = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        contents = describe_path(directory, "runs")
        raise CheckpointError(
            f"{directory}: {contents.what}; expected a model directory (config.json): a Hugging "
            "Face NeoX model, a rewarm checkpoint, a run that has one, or a global_step folder of "
            f"GPT-NeoX{contents.instead}"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}; download the model again"
        ) from None
    try:
        if not isinstance(config, dict):
            raise ValueError("should be a JSON object")
        return Architecture.from_hugging_face(config)
    except ValidationError as error:
        reasons = "; ".join(
            ": ".join([*map(str, part["loc"]), part["msg"].removeprefix("Value error, ")])
            for part in error.errors()
        )
        raise CheckpointError(
            f"{path}: not a model that rewarm can build: {reasons}; name another model, or "
            "download it again"
        ) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; name another model") from None


def ignored_settings(directory: Path) -> list[str]:
    """Returns what the config.json of a model directory asks for that rewarm leaves out."""
    try:
        config = read_json(directory / "config.json")
    except (OSError, ValueError):  # a GPT-NeoX checkpoint, or a model that is not downloaded
        return []
    return Architecture.ignored_settings(config) if isinstance(config, dict) else []
