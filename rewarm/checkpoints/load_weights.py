"""Loads weights into a model from the formats of safetensors, torch.save and GPT-NeoX."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rewarm.checkpoints.gpt_neox_import import find_gpt_neox_checkpoint, gpt_neox_layer_files
from rewarm.checkpoints.new_rows import with_new_rows
from rewarm.checkpoints.torch_files import check_not_legacy
from rewarm.checkpoints.weight_files import find_weight_files, list_weight_files
from rewarm.data.vocabulary_growth import VocabularyGrowth
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.model.divided_tensors import copy_whole, own_part
from rewarm.model.neox import NeoX

_EMBEDDING, _OUTPUT_LAYER = "gpt_neox.embed_in.weight", "embed_out.weight"
# The output layer's name in a state dict of transformers from version 5 on, and of accelerate.
_OUTPUT_LAYER_IN_MEMORY = "lm_head.weight"
# Buffers that older versions of transformers saved; they follow from the configuration.
_DERIVED_SUFFIXES = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
# Types of published weights. Smaller types need scales, which rewarm would not apply.
_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAX_SHOWN = 8


class TensorCounts(NamedTuple):
    """Numbers of tensors in a model directory."""

    loaded: int
    """Weights of the model."""
    derived: int
    """Buffers that follow from the configuration, which older versions of transformers saved."""


def load_model(architecture: Architecture, directory: Path) -> tuple[NeoX, TensorCounts]:
    """Builds a model, loads its weights in fp32, and returns it with the numbers of tensors.

    Args:
        architecture: architecture of the model.
        directory: model directory in the format of Hugging Face or GPT-NeoX.

    Raises:
        CheckpointError: as in `load_weights`; or the files are too small for this architecture,
            which is checked before memory is allocated for the model.
    """
    find_weight_files(directory, architecture)
    model = NeoX(architecture)
    return model, load_weights(model, directory)


def load_weights(
    model: NeoX, directory: Path, growth: VocabularyGrowth | None = None
) -> TensorCounts:
    """Loads weights into a model, converted to fp32, and returns the numbers of tensors.

    Of a model that is divided among processes, each reads its own part: files are mapped.

    Args:
        model: the model to load the weights into.
        directory: model directory in the format of Hugging Face or GPT-NeoX.
        growth: new tokens, whose rows the model has and the directory has not.

    Raises:
        CheckpointError: weights are missing, damaged, unknown to the model, of another shape, or
            not finite floating-point numbers.
    """
    stored = _read_tensors(directory, model.architecture)
    weights = {name: t for name, t in stored.items() if not name.endswith(_DERIVED_SUFFIXES)}
    counts = TensorCounts(loaded=len(weights), derived=len(stored) - len(weights))
    if _OUTPUT_LAYER not in weights and _OUTPUT_LAYER_IN_MEMORY in weights:
        weights[_OUTPUT_LAYER] = weights.pop(_OUTPUT_LAYER_IN_MEMORY)
    if growth:
        for name in weights.keys() & {_EMBEDDING, _OUTPUT_LAYER}:
            weights[name] = with_new_rows(weights[name], growth)
    if model.architecture.tied and _EMBEDDING in weights:
        weights.setdefault(_OUTPUT_LAYER, weights[_EMBEDDING])
    _check_tensors_match(weights, model, directory)
    for name, tensor in model.state_dict().items():
        copy_whole(tensor, weights[name])
    _check_weights_finite(model, directory)
    return counts


def _check_tensors_match(weights: dict[str, Tensor], model: NeoX, directory: Path) -> None:
    """Checks names, shapes and types of the weights, and that tied embeddings are equal."""
    if table := _table_of_differences(weights, dict(model.state_dict())):
        raise CheckpointError(f"{directory}: the weights do not match the configuration{table}")
    if model.architecture.tied and not torch.equal(weights[_OUTPUT_LAYER], weights[_EMBEDDING]):
        raise CheckpointError(
            f"{directory}: the weights do not match the configuration: {_OUTPUT_LAYER} differs "
            f"from {_EMBEDDING}, and the configuration says that they are tied; use weights and "
            "configuration of the same model"
        )


def _check_weights_finite(model: NeoX, directory: Path) -> None:
    state = model.state_dict()
    names = sorted(name for name, tensor in state.items() if not all_finite(own_part(tensor)))
    if names:
        omitted = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
        raise CheckpointError(
            f"{directory}: weights that are not finite numbers: {', '.join(names[:_MAX_SHOWN])}"
            f"{omitted}; download the model again, or use another checkpoint"
        )


def all_finite(tensor: Tensor) -> bool:
    """Returns whether a tensor is free of NaN and infinity."""
    return bool(torch.isfinite(tensor).all())


def _table_of_differences(stored: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Returns a table of the tensors that differ in name, shape or type; "" if none differ."""
    stored_shapes, model_shapes = _describe_shapes(stored), _describe_shapes(expected)
    all_names = sorted(stored_shapes | model_shapes)
    names = [n for n in all_names if stored_shapes.get(n) != model_shapes.get(n)]
    if not names:
        return ""
    rows = [("tensor", "in the file", "in the model")]
    rows += [
        (n, stored_shapes.get(n, "missing"), model_shapes.get(n, "—")) for n in names[:_MAX_SHOWN]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if len(names) > _MAX_SHOWN:
        lines.append(f"... and {len(names) - _MAX_SHOWN} more")
    if _EMBEDDING in names and _EMBEDDING in stored and stored[_EMBEDDING].ndim:
        file_rows, model_rows = len(stored[_EMBEDDING]), len(expected[_EMBEDDING])
        if file_rows != model_rows:
            lines.append(
                f"the file's vocabulary has {file_rows:,} rows, the model's {model_rows:,}"
            )
    lines.append("use weights and configuration of the same model")
    return ":\n  " + "\n  ".join(lines)


def _describe_shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Returns the shape of each tensor, with its type, layout and device if they are unusual."""
    shapes = {}
    for name, tensor in tensors.items():
        shapes[name] = " × ".join(map(str, tensor.shape)) or "one number"
        if tensor.dtype not in _WEIGHT_DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}".replace("torch.", "")
            shapes[name] += f" ({kind})"
    return shapes


def _read_tensors(directory: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Returns the tensors of a model directory, keyed by their names in Hugging Face's format."""
    if find_gpt_neox_checkpoint(directory):
        return {
            file.hugging_face_name(name): tensor
            for file in gpt_neox_layer_files(directory, architecture.layers, tied=architecture.tied)
            for name, tensor in _read_file(file.path).items()
        }
    tensors: dict[str, Tensor] = {}
    for path in list_weight_files(directory, architecture):
        tensors_in_file = _read_file(path)
        if duplicates := tensors.keys() & tensors_in_file.keys():
            raise CheckpointError(
                f"{path}: contains {min(duplicates)}, as does another file; download the model "
                "again"
            )
        tensors |= tensors_in_file
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_not_legacy(path)
        return _load_pickled_tensors(path)
    except CheckpointError:
        raise
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}; download the model again"
        ) from None
    except Exception as error:  # torch.load can raise anything on an untrusted file
        # Do not quote torch.load's message: it recommends weights_only=False.
        call = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it would call {call[1]}" if call else str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: not plain tensors: {reason}; nothing in it was run; download the model "
            "again, if possible as safetensors"
        ) from None


def _load_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors in a file of torch.save, using the unpickler that runs no code."""
    with zipfile.ZipFile(path) as archive:
        # torch.save never compresses. A compressed pickle could expand to any size, and compressed
        # tensor data would be memory-mapped as if it were uncompressed.
        if any(m.compress_type or m.file_size > m.compress_size for m in archive.infolist()):
            raise ValueError("compressed")
    contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = {name: t for name, t in contents.items() if isinstance(t, Tensor)}
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError("the names of its tensors are not text")
    return tensors
