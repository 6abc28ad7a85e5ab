"""Finds the base model of a run: a model directory, a checkpoint of a run, or a hub model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from rewarm.checkpoints.gpt_neox_import import (
    GPT_NEOX_KIND,
    find_gpt_neox_checkpoint,
    read_gpt_neox_architecture,
)
from rewarm.checkpoints.hub_download import download_from_hub
from rewarm.checkpoints.manifest import MANIFEST
from rewarm.errors import CheckpointError, RewarmError
from rewarm.model.architecture import Architecture
from rewarm.quantities import parse_count
from rewarm.recipe.recipe import load_recipe
from rewarm.safe_loading import check_files_inside, read_json


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
            (RUN@40000, RUN@last, RUN@before-decay), a checkpoint of the GPT-NeoX library or a
            folder whose `latest` file names one, or a hub name.
        revision: branch, tag or commit of a hub model.
        weights: whether to download the weights of a hub model, and not only its configuration.

    Raises:
        CheckpointError: there is no such model, or it is not a GPT-NeoX model.
    """
    directory = find_local_model(name)
    if directory is None:
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
    return BaseCheckpoint(name, directory, read_architecture(directory), kind)


def find_local_model(name: str) -> Path | None:
    """Returns the model directory that a name refers to; None if it is not on this machine.

    Raises:
        CheckpointError: the name refers to a checkpoint that the run does not have.
    """
    path, separator, reference = name.rpartition("@")
    if Path(name).exists() or not separator:
        return (last_checkpoint(Path(name)) or Path(name)) if Path(name).exists() else None
    return resolve_checkpoint_reference(Path(path), reference) if Path(path).is_dir() else None


def resolve_checkpoint_reference(run: Path, reference: str) -> Path:
    """Returns the checkpoint that a reference names: a step, `last`, or `before-decay`.

    `before-decay` is the newest checkpoint before the final decay of the learning rate.

    Raises:
        CheckpointError: there is no such checkpoint, or the reference is invalid.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise CheckpointError(
            f"{run}: the run has no complete checkpoint, so @{reference} does not exist"
        )
    if reference == "last":
        return checkpoints[max(checkpoints)]
    if reference == "before-decay":
        try:
            last_step = load_recipe(run / "recipe.yaml").step_before_decay
        except RewarmError as error:
            raise CheckpointError(
                f"{run}@{reference}: cannot read the recipe of this run: {error}"
            ) from None
        step = max((n for n in checkpoints if n <= last_step), default=None)
        expected = f"at or before step {last_step:,}, where the decay begins"
    else:
        try:
            step = parse_count(reference)
        except ValueError:
            raise CheckpointError(
                f"{run}@{reference}: not a checkpoint reference; expected a step, `last` or "
                "`before-decay`"
            ) from None
        expected = f"at step {step:,}"
    if step is None or step not in checkpoints:
        raise CheckpointError(
            f"{run}: no checkpoint {expected}; the run has checkpoints at steps "
            f"{', '.join(f'{n:,}' for n in checkpoints)}"
        )
    return checkpoints[step]


def list_checkpoints(run: Path) -> dict[int, Path]:
    """Returns the complete checkpoints of a run directory, keyed by step in ascending order."""
    paths = [
        path
        for path in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and (path / MANIFEST).is_file()
    ]
    return dict(sorted((int(path.name.removeprefix("step-")), path) for path in paths))


def last_checkpoint(run: Path) -> Path | None:
    """Returns the newest complete checkpoint of a run directory; None if there is none."""
    checkpoints = list_checkpoints(run)
    return checkpoints[max(checkpoints)] if checkpoints else None


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
        raise CheckpointError(
            f"{directory}: not a model directory (no config.json); expected a Hugging Face NeoX "
            "model, a rewarm checkpoint, a run that has one, or a global_step folder of GPT-NeoX"
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
