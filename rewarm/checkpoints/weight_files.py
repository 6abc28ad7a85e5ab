"""Finds the files that hold a model's weights, without reading the weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from rewarm.checkpoints.find_checkpoint import PICKLED, SAFETENSORS
from rewarm.checkpoints.gpt_neox_import import find_gpt_neox_checkpoint, gpt_neox_layer_files
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.safe_loading import is_plain_file_name, read_json_as


def find_weight_files(directory: Path, architecture: Architecture) -> list[Path]:
    """Returns the files that hold the weights of a model directory.

    Raises:
        CheckpointError: there are none, one is missing, or together they are too small for a model
            of this architecture: memory is not allocated for what a configuration merely claims.
    """
    files = _weight_files(directory, architecture)
    size = sum(path.stat().st_size for path in files)
    if size < 2 * architecture.parameters:  # half precision is the smallest that is read
        raise CheckpointError(
            f"{directory}: its configuration describes {architecture.parameters:,} parameters, and "
            f"its weights are {size:,} bytes, too few for that; download the model again"
        )
    return files


def _weight_files(directory: Path, architecture: Architecture) -> list[Path]:
    if find_gpt_neox_checkpoint(directory):
        layers = gpt_neox_layer_files(directory, architecture.layers, tied=architecture.tied)
        return [file.path for file in layers]
    for whole, index in (SAFETENSORS, PICKLED):
        if (directory / whole).is_file():
            return [directory / whole]
        if (directory / index).is_file():
            return _files_in_index(directory / index, Path(whole).suffix)
    raise CheckpointError(
        f"{directory}: no weights; expected one of {', '.join(SAFETENSORS + PICKLED)}; download "
        "the model again"
    )


class _WeightIndex(BaseModel):
    weight_map: dict[str, str]


def _files_in_index(index: Path, suffix: str) -> list[Path]:
    """Returns the files that an index names, all of them beside it."""
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
