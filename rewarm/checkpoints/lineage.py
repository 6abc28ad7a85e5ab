"""Who descends from whom: every checkpoint knows its chain of bases, and runs draw as a tree."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rewarm.checkpoints.find_checkpoint import (
    Base,
    find_local_model,
    last_checkpoint,
    locate_base,
    weights_digest,
)
from rewarm.checkpoints.manifest import MANIFEST
from rewarm.checkpoints.training_state import Ancestor, TrainingState, read_training_state
from rewarm.errors import CheckpointError, RecipeError, RewarmError
from rewarm.model.published_checkpoints import published_training
from rewarm.recipe.fields import ModelSettings
from rewarm.recipe.recipe import Recipe, base_lr_in_recipe, load_recipe
from rewarm.safe_loading import read_json


def ancestry(base: Base, *, digest: bool = True) -> list[Ancestor]:
    """Returns the models that a base descends from, the oldest first and itself the last.

    Args:
        base: the model.
        digest: read the weights for their sha256, where no manifest says it.

    Raises:
        CheckpointError: the base is a damaged rewarm checkpoint.
    """
    sha256 = recorded_digest(base.directory)
    if sha256 is None and digest:
        sha256 = weights_digest(base.directory)
    if base.kind != "rewarm checkpoint":
        return [_published(base, sha256)]
    done = read_training_state(base.directory)
    return [*done.lineage, as_ancestor(base.name, base.directory, done, sha256)]


def as_ancestor(name: str, directory: Path, done: TrainingState, sha256: str | None) -> Ancestor:
    """Returns a rewarm checkpoint as an ancestor."""
    return Ancestor(
        name=name,
        directory=str(directory),
        sha256=sha256,
        recipe=recorded_digest(directory, "recipe.yaml"),
        step=done.step,
        tokens=done.tokens,
        lrs=done.lrs,
        schedule=done.schedule,
        losses=done.losses,
    )


def _published(base: Base, sha256: str | None) -> Ancestor:
    known = published_training(base.name, base.revision) if base.kind == "hub model" else None
    return Ancestor(
        name=base.name,
        directory=str(base.directory),
        revision=base.revision,
        commit=base.commit,
        sha256=sha256,
        **(known._asdict() if known else {}),
    )


def lineage_chains(path: Path) -> list[list[Ancestor]]:
    """Returns the chain of models, the oldest first, up to each run's last checkpoint.

    Args:
        path: a checkpoint, a run, a place in one (RUN@step), or a folder with runs somewhere below.

    Raises:
        CheckpointError: there is none, or one is damaged.
    """
    found = find_local_model(str(path))
    if found and (found / MANIFEST).is_file():
        ends = [(str(path), found)]
    else:
        runs = sorted({one.parent.parent for one in path.glob("**/checkpoints/step-*")})
        ends = [(str(run), last) for run in runs if (last := last_checkpoint(run))]
    if not ends:
        raise CheckpointError(
            f"{path}: neither a rewarm checkpoint, nor a run that has one, nor a folder of runs"
        )
    return [_chain(name, end) for name, end in ends]


class LineageNode(NamedTuple):
    """A model, and those that started from it."""

    model: Ancestor
    children: list[LineageNode]


def lineage_forest(found: Iterable[list[Ancestor]]) -> list[LineageNode]:
    """Returns chains as trees: what is the same weights is one node, whatever it was called."""
    roots: list[LineageNode] = []
    nodes: dict[str, LineageNode] = {}
    for chain in found:
        level = roots
        for model in chain:
            key = model.sha256 or model.name
            if key not in nodes:
                nodes[key] = LineageNode(model, [])
                level.append(nodes[key])
            level = nodes[key].children
    return roots


def _chain(name: str, directory: Path) -> list[Ancestor]:
    done = read_training_state(directory)
    return [*done.lineage, as_ancestor(name, directory, done, recorded_digest(directory))]


def recorded_digest(directory: Path, name: str = "model.safetensors") -> str | None:
    """Returns the sha256 of a checkpoint's weights from its manifest, or None without one.

    Or of another of its files, by `name`.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        return str(read_json(path)["files"][name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged: {type(error).__name__}: {error}; use another"
        ) from None


def last_lr_of_base(model: ModelSettings) -> float:
    """Returns the rate of the last update of a model's base, which `5x base` is resolved against.

    Raises:
        ValueError: it is not known.
    """
    if model.base is None or model.base_lr is not None:
        return base_lr_in_recipe(model)
    try:
        if find_local_model(model.base):
            parent = ancestry(locate_base(model.base, weights=False), digest=False)[-1]
            lrs = parent.lrs
        else:  # no need to ask the hub
            known = published_training(model.base, model.revision)
            lrs = known.lrs if known else None
    except RewarmError as error:
        raise ValueError(str(error)) from None
    return lrs[-1] if lrs else base_lr_in_recipe(model)


def recipe_of_checkpoint(checkpoint: Path) -> Recipe:
    """Returns the recipe that a checkpoint was made by.

    Raises:
        CheckpointError: it cannot be read any more, or needs a plug-in that is not installed.
    """
    try:
        return load_recipe(checkpoint / "recipe.yaml")
    except RecipeError as error:
        raise CheckpointError(f"{checkpoint}: its own recipe cannot be read: {error}") from None
