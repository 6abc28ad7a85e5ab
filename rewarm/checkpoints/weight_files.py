"""Finds the files that hold the weights of a model, and computes their digest."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from rewarm.checkpoints.gpt_neox_import import find_gpt_neox_checkpoint, gpt_neox_layer_files
from rewarm.checkpoints.manifest import combined_digest, file_entry
from rewarm.checkpoints.part_files import OPTIMIZER
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.safe_loading import is_plain_file_name, read_json_as

SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json")
"""Hugging Face's names for weights in a single file, and for the index of several files."""
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""The same names for files written by torch.save."""


def find_weight_files(directory: Path, architecture: Architecture) -> list[Path]:
    """Returns the files that hold the weights of a model directory.

    Raises:
        CheckpointError: there are none, one is missing, or their total size is too small for this
            architecture. This prevents that a false configuration causes a huge allocation.
    """
    files = list_weight_files(directory, architecture)
    size = sum(path.stat().st_size for path in files)
    if size < 2 * architecture.parameters:  # half precision is the smallest that is read
        raise CheckpointError(
            f"{directory}: its configuration describes {architecture.parameters:,} parameters, and "
            f"its weights are {size:,} bytes, too few for that; download the model again"
        )
    return files


def list_weight_files(directory: Path, architecture: Architecture) -> list[Path]:
    """Returns the files that hold the weights of a model directory, whatever their size.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    if find_gpt_neox_checkpoint(directory):
        layers = gpt_neox_layer_files(directory, architecture.layers, tied=architecture.tied)
        return [file.path for file in layers]
    for single, index in (SAFETENSORS_FILES, PICKLE_FILES):
        if (directory / single).is_file():
            return [directory / single]
        if (directory / index).is_file():
            return _files_in_index(directory / index, Path(single).suffix)
    raise CheckpointError(
        f"{directory}: no weights; expected one of {', '.join(SAFETENSORS_FILES + PICKLE_FILES)}; "
        "download the model again"
    )


class _WeightIndex(BaseModel):
    weight_map: dict[str, str]


def _files_in_index(index: Path, suffix: str) -> list[Path]:
    """Returns the files that an index names, which must be in the same folder."""
    try:
        names = sorted(set(read_json_as(_WeightIndex, index).weight_map.values()))
        for name in names:
            if not (is_plain_file_name(name) and name.endswith(suffix)):
                raise ValueError(f"{name!r} is not the name of a {suffix} file")
            if not (index.parent / name).is_file():
                raise ValueError(f"{name} is missing")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{index}: cannot be read: {error}; download the model again"
        ) from None
    return [index.parent / name for name in names]


def weights_digest(directory: Path) -> str:
    """Returns the sha256 of a model's weights.

    That of the only file, or the `combined_digest` of several.
    """
    single_files = [directory / names[0] for names in (SAFETENSORS_FILES, PICKLE_FILES)]
    files = [path for path in single_files if path.is_file()][:1] or sorted(
        path
        for pattern in ("*.safetensors", "*.bin", "layer_*.pt")
        for path in directory.glob(pattern)
        if path.is_file() and not path.name.startswith(OPTIMIZER)
    )
    return combined_digest({path.name: file_entry(path)["sha256"] for path in files})
