"""Lineage: the chain of models that a checkpoint was trained from, and trees of these chains."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import (
    BaseCheckpoint,
    find_local_model,
    locate_base,
    no_local_model,
    read_last_checkpoint,
)
from rewarm.checkpoints.manifest import MANIFEST, sha256_in_manifest
from rewarm.checkpoints.training_state import Ancestor, TrainingState, read_training_state
from rewarm.checkpoints.weight_files import weights_digest
from rewarm.errors import CheckpointError, RecipeError, RewarmError, hide_credentials
from rewarm.model.published_pythia import published_training
from rewarm.path_contents import describe_path
from rewarm.recipe.model_settings import ModelSettings
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.resolution import base_lr_in_recipe
from rewarm.recipe.saved_recipe import load_saved_document, load_saved_recipe
from rewarm.recipe.yaml_document import flatten_settings


def model_lineage(
    base: BaseCheckpoint, state: TrainingState | None = None, *, compute_digest: bool = True
) -> list[Ancestor]:
    """Returns the lineage of a base model: its ancestors, the oldest first, and then the base.

    Args:
        base: the base model.
        state: training state of the base, if it has already been read.
        compute_digest: compute the sha256 of the weights if there is no manifest that states it.

    Raises:
        CheckpointError: the base is a damaged rewarm checkpoint.
    """
    sha256 = sha256_in_manifest(base.directory)
    if sha256 is None and compute_digest:
        sha256 = weights_digest(base.directory)
    if base.kind != "rewarm checkpoint":
        return [_published_ancestor(base, sha256)]
    state = state or read_training_state(base.directory)
    return [*state.lineage, _checkpoint_as_ancestor(base.name, base.directory, state, sha256)]


def _checkpoint_as_ancestor(
    name: str, directory: Path, state: TrainingState, sha256: str | None
) -> Ancestor:
    return Ancestor(
        name=name,
        directory=str(directory),
        sha256=sha256,
        recipe=sha256_in_manifest(directory, "recipe.yaml"),
        step=state.step,
        tokens=state.tokens,
        lrs=state.lrs,
        schedule=state.schedule,
        losses=state.losses,
        corpora=_training_corpora(directory, state),
        averaging=state.averaging,
    )


def _training_corpora(checkpoint: Path, state: TrainingState) -> dict[str, str]:
    """Returns the shards of each corpus that a checkpoint was trained on, as in its recipe.

    "" where its recipe cannot be read: the names are in the training state, too.
    """
    settings: dict[str, Any] = {}
    with contextlib.suppress(RecipeError):
        settings = flatten_settings(load_saved_document(checkpoint / "recipe.yaml").data)
    return {
        name: hide_credentials(str(settings.get(f"data.train.{name}.shards", "")))
        for name in state.corpora
    }


def _published_ancestor(base: BaseCheckpoint, sha256: str | None) -> Ancestor:
    is_hub_model = base.kind == "hub model"
    training = published_training(base.name, base.revision) if is_hub_model else None
    return Ancestor(
        name=base.name,
        directory=str(base.directory),
        revision=base.revision,
        commit=base.commit,
        sha256=sha256,
        **(training._asdict() if training else {}),
    )


def read_lineages(path: Path) -> list[list[Ancestor]]:
    """Returns one lineage per run: its ancestors, the oldest first, and then its last checkpoint.

    Args:
        path: a checkpoint, a run, a checkpoint reference (RUN@step), or a folder that contains
            runs at any depth.

    Raises:
        CheckpointError: `path` contains no rewarm checkpoint, or a checkpoint is damaged.
    """
    if not (path / "checkpoints").is_dir():
        directory = find_local_model(str(path))
        if directory and (directory / MANIFEST).is_file():
            return [_checkpoint_lineage(str(path), directory)]
    lineages = [
        lineage
        for run in _runs_below(path)
        if (lineage := read_last_checkpoint(run, partial(_checkpoint_lineage, str(run))))
    ]
    if not lineages:
        contents = describe_path(path, "runs")
        raise CheckpointError(
            f"{path}: {contents.what}; expected a rewarm checkpoint, a run that has one, or a "
            f"folder of runs{contents.instead}"
        )
    return lineages


def _runs_below(path: Path) -> list[Path]:
    """Returns the folders, at any depth, that have a folder of checkpoints."""
    runs = []
    for folder, subfolders, _ in os.walk(path):  # passes over what a run deletes meanwhile
        if "checkpoints" in subfolders:
            runs.append(Path(folder))
            subfolders.remove("checkpoints")
    return sorted(runs)


def _checkpoint_lineage(name: str, checkpoint: Path) -> list[Ancestor]:
    state = read_training_state(checkpoint)
    sha256 = sha256_in_manifest(checkpoint)
    return [*state.lineage, _checkpoint_as_ancestor(name, checkpoint, state, sha256)]


class LineageNode(NamedTuple):
    """A model, and the models that were trained from it."""

    model: Ancestor
    children: list[LineageNode]


def lineage_forest(lineages: Iterable[list[Ancestor]]) -> list[LineageNode]:
    """Merges lineages into trees, and returns their roots.

    Models with the same weights are one node, even if their names differ.
    """
    roots: list[LineageNode] = []
    nodes: dict[str, LineageNode] = {}
    for lineage in lineages:
        siblings = roots
        for model in lineage:
            key = model.sha256 or model.name
            if key not in nodes:
                nodes[key] = LineageNode(model, [])
                siblings.append(nodes[key])
            siblings = nodes[key].children
    return roots


def last_lr_of_base(model: ModelSettings) -> float:
    """Returns the learning rate of the base model's last update; `5x base` is a multiple of it.

    Raises:
        CheckpointError: the base does not exist or cannot be read.
        ValueError: its last learning rate is unknown.
    """
    if model.base is None or model.base_lr is not None:
        return base_lr_in_recipe(model)
    if find_local_model(model.base):
        base = locate_base(model.base, weights=False)
        lrs = model_lineage(base, compute_digest=False)[-1].lrs
    elif training := published_training(model.base, model.revision):  # needs no download
        lrs = training.lrs
    else:
        raise no_local_model(model.base)
    return lrs[-1] if lrs else base_lr_in_recipe(model)


def lineage_corpora(model: ModelSettings) -> list[dict[str, str]]:
    """Returns what the base of a model and its ancestors were trained on, the oldest first.

    For each, the shards of each corpus, by name; empty for one of which that is not known.
    """
    if model.base is None or model.fresh:
        return []
    try:
        if find_local_model(model.base):
            base = locate_base(model.base, weights=False)
            lineage = model_lineage(base, compute_digest=False)
            return [dict(ancestor.corpora) for ancestor in lineage]
    except RewarmError:
        pass  # `check` reports it
    return [{}]


def recipe_of_checkpoint(checkpoint: Path) -> Recipe:
    """Returns the recipe that a checkpoint was trained with.

    Raises:
        CheckpointError: the recipe cannot be read, or needs a plug-in that is not installed.
    """
    try:
        return load_saved_recipe(checkpoint / "recipe.yaml")
    except RecipeError as error:
        raise CheckpointError(
            f"{checkpoint}: cannot read the recipe of this checkpoint: {error}"
        ) from None
