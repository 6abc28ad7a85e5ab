"""MANIFEST.json: the size and sha256 of every file of a checkpoint, and of its run's metrics.

It distinguishes a complete checkpoint from a damaged one. It is not a signature: anyone who can
change a file can also change the manifest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rewarm.checkpoints.part_files import MODEL, OPTIMIZER, part_names
from rewarm.errors import CheckpointError
from rewarm.safe_loading import check_files_inside, is_plain_file_name, read_json, read_json_as

MANIFEST = "MANIFEST.json"
AVERAGE = "ema"
"""Folder of the average of the weights in a checkpoint of a run with `optimizer.ema`."""
MODEL_CARD = "README.md"
"""Name of the model card. It is for people, who add a license to it: it may change."""
_REQUIRED_FILES = ("config.json", "progress.json", "recipe.yaml")


class _FileEntry(BaseModel):
    bytes: Annotated[int, Field(strict=True)]
    sha256: str


class MetricsRecord(BaseModel):
    """The lines of metrics.jsonl that belong to a checkpoint: all that were written before it."""

    model_config = ConfigDict(extra="forbid")

    lines: Annotated[int, Field(strict=True, ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of these lines, line ends included."""


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    files: dict[str, _FileEntry]
    metrics: MetricsRecord | None = None
    """None in checkpoints of earlier versions of rewarm."""
    weights_only: bool = False
    """Whether the weights are an average, which has no optimizer state."""


FileEntries = dict[str, dict[str, Any]]
"""Size (`bytes`) and `sha256` of files, by name."""


def build_manifest(
    directory: Path,
    metrics: MetricsRecord | None = None,
    known: FileEntries | None = None,
    *,
    weights_only: bool = False,
) -> dict[str, Any]:
    """Returns the content of the manifest for the files in a directory, and a run's metrics.

    Args:
        directory: that of the checkpoint.
        metrics: the lines that belong to it.
        known: entries that other processes have computed for the files that they wrote.
        weights_only: whether the weights are an average, which has no optimizer state.
    """
    known = known or {}
    files = {
        path.name: known.get(path.name) or file_entry(path)
        for path in sorted(directory.iterdir())
        if path.name != AVERAGE
    }
    manifest = {"files": files, "metrics": metrics and metrics.model_dump()}
    return manifest | ({"weights_only": True} if weights_only else {})


def file_entry(path: Path) -> dict[str, Any]:
    """Returns the size and the sha256 of a file, as the manifest states them."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def verify_checkpoint(directory: Path, only: str | None = None, *, digests: bool = True) -> None:
    """Checks that the files of a checkpoint match its manifest, except its model card.

    Those of the average of the weights in it, if it has one, are checked too.

    Args:
        directory: directory of the checkpoint.
        only: name of the only file to check; None for all files.
        digests: whether to compare the sha256 of each file; otherwise only sizes are compared,
            without reading the files.

    Raises:
        CheckpointError: `directory` is not a rewarm checkpoint, or a file is missing or changed.
    """
    path = directory / MANIFEST
    try:
        check_files_inside(directory)
        manifest = read_json_as(_Manifest, path)
        files = manifest.files
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{directory}: not a rewarm checkpoint (no {MANIFEST}); to start from these weights, "
            "name them as model.base"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None
    try:
        for name in _REQUIRED_FILES:
            if name not in files:
                raise ValueError(name)
        for stem in (MODEL,) if manifest.weights_only else (MODEL, OPTIMIZER):
            part_names(files, stem)
    except ValueError as missing:
        raise CheckpointError(f"{path}: does not list {missing}; use another checkpoint") from None
    for name in [only] if only else [name for name in files if name != MODEL_CARD]:
        if not is_plain_file_name(name):
            raise CheckpointError(
                f"{path}: lists {name!r}, which is not the name of a checkpoint file; use another "
                "checkpoint"
            )
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{directory}: {name} is missing; use another checkpoint")
        same_size = file.stat().st_size == files[name].bytes
        if not same_size or (digests and _sha256(file) != files[name].sha256):
            raise CheckpointError(
                f"{file}: changed since it was written (size or sha256); use another checkpoint"
            )
    average = directory / AVERAGE
    if not only and average.is_dir():
        if average.is_symlink():
            raise CheckpointError(f"{average}: a link; replace it with the folder itself")
        verify_checkpoint(average, digests=digests)


def metrics_record(directory: Path) -> MetricsRecord | None:
    """Returns which lines of metrics.jsonl belong to a checkpoint; None if it does not say so.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    path = directory / MANIFEST
    try:
        return read_json_as(_Manifest, path).metrics
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None


def sha256_in_manifest(directory: Path, name: str | None = None) -> str | None:
    """Returns the sha256 that the manifest states of a file; None if there is no manifest.

    Without a name, of the weights: of their file, or as `combined_digest` of their parts.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        files = read_json(path)["files"]
        names = [name] if name else part_names(files, MODEL)
        return combined_digest({name: str(files[name]["sha256"]) for name in names})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged: {type(error).__name__}: {error}; use another checkpoint"
        ) from None


def combined_digest(digests: dict[str, str]) -> str:
    """Returns the digest of a file; of several, the sha256 of what `sha256sum` prints of them."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
