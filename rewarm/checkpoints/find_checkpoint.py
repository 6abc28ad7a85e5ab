"""Finds the model a run starts from: a folder, a checkpoint, a place in a run, or a hub name."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from rewarm.checkpoints.gpt_neox_import import (
    KIND,
    find_gpt_neox_checkpoint,
    read_gpt_neox_architecture,
)
from rewarm.checkpoints.manifest import MANIFEST
from rewarm.errors import CheckpointError, RewarmError
from rewarm.model.architecture import Architecture
from rewarm.quantities import parse_count
from rewarm.recipe.recipe import load_recipe
from rewarm.safe_loading import check_files_inside, read_json

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Base(NamedTuple):
    """A model directory on this machine."""

    name: str
    """As the recipe calls it."""
    directory: Path
    architecture: Architecture
    kind: str
    """`rewarm checkpoint`, `GPT-NeoX checkpoint`, `local model` or `hub model`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, as the recipe calls it."""
    commit: str | None = None
    """The commit that this was."""


def locate_base(name: str, revision: str | None = None, *, weights: bool = True) -> Base:
    """Returns the model behind a name, fetched from the hub where it is a hub name.

    Args:
        name: a model directory, a run directory (its last checkpoint), a place in a run
            (RUN@40000, RUN@last, RUN@before-decay), a checkpoint of the GPT-NeoX library or a
            folder whose `latest` file names one, or a hub name.
        revision: branch, tag or commit of a hub name.
        weights: without them only the configuration is fetched.

    Raises:
        CheckpointError: there is no such model, or it is not a GPT-NeoX model.
    """
    directory = find_local_model(name)
    if directory is None:
        directory = _from_hub(name, revision, weights=weights)
        commit = directory.name if re.fullmatch(r"[0-9a-f]{40}", directory.name) else None
        architecture = read_architecture(directory)
        return Base(name, directory, architecture, "hub model", revision, commit)
    if revision is not None:
        raise CheckpointError(
            f"{name}: a revision ({revision}) goes with a hub name; this is a folder here"
        )
    if written_by_neox := find_gpt_neox_checkpoint(directory):
        architecture = read_gpt_neox_architecture(written_by_neox)
        return Base(name, written_by_neox, architecture, KIND)
    kind = "rewarm checkpoint" if (directory / MANIFEST).exists() else "local model"
    return Base(name, directory, read_architecture(directory), kind)


def find_local_model(name: str) -> Path | None:
    """Returns the model directory behind a name, or None if it is nothing on this machine.

    Raises:
        CheckpointError: it is a run, and the place in it is not there.
    """
    path, at, place = name.rpartition("@")
    if Path(name).exists() or not at:
        return (last_checkpoint(Path(name)) or Path(name)) if Path(name).exists() else None
    return checkpoint_in_run(Path(path), place) if Path(path).is_dir() else None


def checkpoint_in_run(run: Path, place: str) -> Path:
    """Returns the checkpoint of a run at a step, at `last`, or at `before-decay`.

    `before-decay` is the newest one that the schedule's final decay has not touched.

    Raises:
        CheckpointError: there is none, or the place is none of these.
    """
    there = list_checkpoints(run)
    if not there:
        raise CheckpointError(f"{run}: no whole checkpoint there, so nothing at @{place}")
    if place == "last":
        return there[max(there)]
    if place == "before-decay":
        try:
            made = load_recipe(run / "recipe.yaml")
        except RewarmError as error:
            raise CheckpointError(f"{run}@{place}: the run's own recipe: {error}") from None
        step = max((one for one in there if one <= made.before_decay), default=None)
        wanted = f"at or before step {made.before_decay:,}, where the decay begins"
    else:
        try:
            step = parse_count(place)
        except ValueError:
            raise CheckpointError(
                f"{run}@{place}: no such place; wanted a step, `last` or `before-decay`"
            ) from None
        wanted = f"at step {step:,}"
    if step is None or step not in there:
        raise CheckpointError(
            f"{run}: no checkpoint {wanted}; there are {', '.join(f'{one:,}' for one in there)}"
        )
    return there[step]


def list_checkpoints(run: Path) -> dict[int, Path]:
    """Returns the whole checkpoints of a run directory by their step, in order."""
    found = [
        path
        for path in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and (path / MANIFEST).is_file()
    ]
    return dict(sorted((int(path.name.removeprefix("step-")), path) for path in found))


def last_checkpoint(run: Path) -> Path | None:
    """Returns the newest whole checkpoint of a run directory, or None where there is none."""
    there = list_checkpoints(run)
    return there[max(there)] if there else None


def weights_digest(directory: Path) -> str:
    """Returns the sha256 of a model's weights, as `sha256sum` gives it for a single file.

    Weights in several files have the digest of the list of their digests and names.
    """
    files = [directory / name for name in SAFETENSORS[:1] + PICKLED[:1]]
    files = [path for path in files if path.is_file()][:1] or sorted(
        path
        for kind in ("*.safetensors", "*.bin", "layer_*.pt")
        for path in directory.glob(kind)
        if path.is_file()
    )
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(files) == 1:
        return digests[0]
    listed = "".join(f"{one}  {path.name}\n" for one, path in zip(digests, files, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()


def read_architecture(directory: Path) -> Architecture:
    """Returns the architecture in a model directory's config.json.

    Raises:
        CheckpointError: there is none, or it is not a GPT-NeoX model.
    """
    path = directory / "config.json"
    try:
        check_files_inside(directory)
        config = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{directory}: not a model directory (no config.json); wanted a Hugging Face NeoX "
            "model, a rewarm checkpoint, a run that has one, or a global_step folder of GPT-NeoX"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; fetch the model again") from None
    try:
        if not isinstance(config, dict):
            raise ValueError("should be a JSON object")
        return Architecture.from_hugging_face(config)
    except ValidationError as error:
        reasons = "; ".join(
            ": ".join([*map(str, one["loc"]), one["msg"].removeprefix("Value error, ")])
            for one in error.errors()
        )
        raise CheckpointError(
            f"{path}: not a model rewarm can build: {reasons}; name another, or fetch it again"
        ) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; name another model") from None


def _from_hub(name: str, revision: str | None, *, weights: bool) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a hub name (owner/model)")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Its warnings about every retry end in the one error below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    try:
        if not weights:
            return Path(hf_hub_download(name, "config.json", revision=revision)).parent
        wanted = ["*.json", "*.safetensors", "tokenizer*"]
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if not any((directory / file).exists() for file in SAFETENSORS):
            # Early Pythia revisions were published as pytorch_model.bin only.
            wanted = ["*.json", "pytorch_model*.bin", "tokenizer*"]
            directory = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{name}{at}: no such folder here, and the hub did not give it: {reason}; check the "
            "name and the network, or fetch the model first and name its folder"
        ) from None
    return directory
