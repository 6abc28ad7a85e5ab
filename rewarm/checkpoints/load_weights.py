"""Fills a model from files that others wrote: safetensors, torch.save, the GPT-NeoX library."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rewarm.checkpoints.gpt_neox_import import find_gpt_neox_checkpoint, gpt_neox_layer_files
from rewarm.checkpoints.weight_files import find_weight_files
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX

# Buffers that older transformers versions saved; all of them follow from the configuration.
_DERIVED = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


class MatchedTensors(NamedTuple):
    """What became of the tensors in a model directory."""

    tensors: int
    """Those that are the model's."""
    ignored: int
    """Those that follow from the configuration, which older versions saved as well."""


def load_model(architecture: Architecture, directory: Path) -> tuple[NeoX, MatchedTensors]:
    """Returns the model of a directory of Hugging Face's or GPT-NeoX's format, in fp32.

    Raises:
        CheckpointError: as in `load_weights`; or the files are too small for such a model, so that
            memory is not set aside for what a configuration merely claims.
    """
    find_weight_files(directory, architecture)
    model = NeoX(architecture)
    return model, load_weights(model, directory)


def load_weights(model: NeoX, directory: Path) -> MatchedTensors:
    """Fills the model, converted to fp32, from a directory of Hugging Face's or GPT-NeoX's format.

    Raises:
        CheckpointError: weights are missing, damaged, left over, of another shape, or not numbers.
    """
    read = _read_tensors(directory, model.architecture)
    found = {name: tensor for name, tensor in read.items() if not name.endswith(_DERIVED)}
    matched = MatchedTensors(len(found), len(read) - len(found))
    head, embedding = "embed_out.weight", "gpt_neox.embed_in.weight"
    if model.architecture.tied and embedding in found:
        found.setdefault(head, found[embedding])
    if different := _differences(found, dict(model.state_dict())):
        raise CheckpointError(
            f"{directory}: the weights are not those of its configuration{different}"
        )
    if model.architecture.tied and not torch.equal(found[head], found[embedding]):
        raise CheckpointError(
            f"{directory}: the weights are not those of its configuration: {head} is not "
            f"{embedding}, and the configuration says that they are one; take both from the same "
            "model"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    broken = [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if broken:
        more = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        raise CheckpointError(
            f"{directory}: weights that are not finite numbers: {', '.join(sorted(broken)[:8])}"
            f"{more}; fetch the model again, or use another checkpoint"
        )
    return matched


def is_finite(tensor: Tensor) -> bool:
    """Returns whether a tensor is free of NaN and infinity."""
    return bool(torch.isfinite(tensor).all())


# What weights are published in; anything smaller needs scales that rewarm would not apply.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Returns a table of the tensors that are not the model's; nothing where all are."""
    there, here = _shapes(found), _shapes(wanted)
    different = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    if not different:
        return ""
    table = [
        ("tensor", "in the file", "in the model"),
        *((name, there.get(name, "missing"), here.get(name, "—")) for name in different[:8]),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    if len(different) > 8:
        lines.append(f"... and {len(different) - 8} more")
    name = "gpt_neox.embed_in.weight"
    if name in different and name in found and found[name].ndim:
        rows, vocabulary = len(found[name]), len(wanted[name])
        if rows != vocabulary:
            lines.append(f"the file's vocabulary has {rows:,} rows, the model's {vocabulary:,}")
    lines.append("take weights and configuration from the same model")
    return ":\n  " + "\n  ".join(lines)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Returns what to say of tensors: their shapes, and what makes some no plain numbers."""
    said = {}
    for name, tensor in tensors.items():
        said[name] = " × ".join(map(str, tensor.shape)) or "one number"
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}".replace("torch.", "")
            said[name] += f" ({kind})"
    return said


def _read_tensors(directory: Path, architecture: Architecture) -> dict[str, Tensor]:
    if find_gpt_neox_checkpoint(directory):
        return {
            file.rename(name): tensor
            for file in gpt_neox_layer_files(directory, architecture.layers, tied=architecture.tied)
            for name, tensor in _read_file(file.path).items()
        }
    tensors: dict[str, Tensor] = {}
    for path in find_weight_files(directory, architecture):
        held = _read_file(path)
        if again := tensors.keys() & held.keys():
            raise CheckpointError(
                f"{path}: holds {min(again)}, as another file does; fetch the model again"
            )
        tensors |= held
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _unpickled(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; fetch the model again") from None
    except Exception as error:  # torch.load raises what it likes on a stranger's file
        # Its own message advises to try again without the safety.
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it would call {called[1]}" if called else str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: not plain tensors: {reason}; nothing in it was run; fetch the model again, "
            "if possible as safetensors"
        ) from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Returns the tensors that torch.save wrote, made by its unpickler that calls nothing else."""
    with zipfile.ZipFile(path) as held:
        # torch.save compresses nothing. A compressed pickle could be of any size, and compressed
        # numbers would be mapped as if they were not.
        if any(one.compress_type or one.file_size > one.compress_size for one in held.infolist()):
            raise ValueError("compressed")
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = {name: t for name, t in loaded.items() if isinstance(t, Tensor)}
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError("their names are not text")
    return tensors
