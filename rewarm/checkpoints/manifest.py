"""MANIFEST.json: the bytes and the sha256 of every file of a checkpoint.

It tells a whole checkpoint from a damaged one. It is no signature: whoever can change a file can
change the manifest beside it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from rewarm.errors import CheckpointError
from rewarm.safe_loading import check_files_inside, is_plain_file_name, read_json_as

MANIFEST = "MANIFEST.json"
OPTIMIZER_FILE = "optimizer.safetensors"
_NEEDED = (
    "config.json",
    "model.safetensors",
    OPTIMIZER_FILE,
    "progress.json",
    "recipe.yaml",
)


class _Facts(BaseModel):
    """One file, as it was written."""

    bytes: Annotated[int, Field(strict=True)]
    sha256: str


class _Manifest(BaseModel):
    files: dict[str, _Facts]


def build_manifest(directory: Path) -> dict[str, Any]:
    """Returns what the manifest of the files in a directory says."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.iterdir())
    }
    return {"files": files}


def verify_checkpoint(directory: Path, only: str | None = None, *, digests: bool = True) -> None:
    """Makes sure that every file of a checkpoint, or only one, is what the manifest says.

    Without `digests` only names and sizes are compared, which reads none of the files.

    Raises:
        CheckpointError: it is not a rewarm checkpoint, or a file is missing or changed.
    """
    path = directory / MANIFEST
    try:
        check_files_inside(directory)
        files = read_json_as(_Manifest, path).files
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{directory}: not a rewarm checkpoint (no {MANIFEST}); to start from these weights, "
            "name them as model.base"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None
    for needed in _NEEDED:
        if needed not in files:
            raise CheckpointError(f"{path}: names no {needed}; use another checkpoint")
    for name in [only] if only else files:
        if not is_plain_file_name(name):
            raise CheckpointError(
                f"{path}: names {name!r}, which is no file of a checkpoint; use another checkpoint"
            )
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{directory}: {name} is missing; use another checkpoint")
        same = file.stat().st_size == files[name].bytes
        if not same or (digests and _sha256(file) != files[name].sha256):
            raise CheckpointError(
                f"{file}: changed since it was written (size or sha256); use another checkpoint"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
