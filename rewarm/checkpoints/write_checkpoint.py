"""One checkpoint directory: a Hugging Face model, plus what is needed to go on exactly.

```
step-00001000/  config.json  generation_config.json  model.safetensors  tokenizer files   the model
                model.safetensors.index.json                      which files hold its weights
                optimizer.safetensors  progress.json  recipe.yaml                         to go on
                  (Adam's moments, and the magnitudes behind the scales of fp8)
                MANIFEST.json                                     bytes and sha256 of every file
```
Written beside as step-00001000.partial, flushed to the disk, and renamed when whole. Safetensors
and JSON only: nothing in it can run.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewarm.checkpoints.manifest import MANIFEST, OPTIMIZER_FILE, build_manifest
from rewarm.checkpoints.optimizer_state import (
    _AMAXES,
    optimizer_tensors,
)
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import CheckpointError
from rewarm.model.architecture import Architecture
from rewarm.model.neox import NeoX
from rewarm.quantities import format_bytes

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


class TokenizerSource(NamedTuple):
    """Where a checkpoint's tokenizer files come from."""

    directory: Path
    eos: int
    eos_token: str


class TensorSnapshot:
    """A copy of weights and moments in host memory, which a thread can write while steps go on.

    The memory is kept for the next copy; beside a GPU it is pinned, so that copies run at the
    bus's full speed.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}

    def take(self, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
        """Copies the tensors of this moment; waits for the device."""
        weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        if model.architecture.tied:
            del weights["embed_out.weight"]
        state = optimizer_tensors(model, optimizer)
        if model.scaling:
            state[_AMAXES] = model.scaling.amaxes
        for there, now in ((self.weights, weights), (self.moments, state)):
            for name, tensor in now.items():
                if name not in there:
                    there[name] = torch.empty(
                        tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                    )
                there[name].copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def bytes(self) -> int:
        """What they take up, in memory and on the disk."""
        return sum(t.nbytes for t in (*self.weights.values(), *self.moments.values()))


def write_checkpoint(
    directory: Path,
    architecture: Architecture,
    tensors: TensorSnapshot,
    progress: TrainingState,
    recipe: str,
    tokenizer: TokenizerSource,
) -> None:
    """Writes a whole checkpoint, or nothing.

    Raises:
        CheckpointError: there is no room for it, or the folder cannot be written.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < tensors.bytes:
            raise OSError(
                f"it takes {format_bytes(tensors.bytes)}, and {format_bytes(free)} are free on "
                "this disk"
            )
        config = architecture.to_hugging_face()
        ids = {"bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos}
        _write_json(partial / "config.json", config | ids)
        # generate() pads with end-of-text anyway; older transformers warn if they are not told to.
        _write_json(partial / "generation_config.json", ids | {"pad_token_id": tokenizer.eos})
        _write_tokenizer(partial, tokenizer, architecture.positions)
        save_file(tensors.weights, partial / "model.safetensors", metadata={"format": "pt"})
        # Without it, vLLM takes every *.safetensors here for weights, the moments too.
        _write_json(partial / "model.safetensors.index.json", _index(tensors.weights))
        save_file(tensors.moments, partial / OPTIMIZER_FILE)
        (partial / "recipe.yaml").write_text(recipe, encoding="utf-8")
        _write_json(partial / "progress.json", progress.model_dump())
        _write_json(partial / MANIFEST, build_manifest(partial))
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        partial.rename(directory)
        _flush(directory.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{directory}: cannot be written: {error}; earlier checkpoints are untouched; make "
            "room, or see that the folder may be written to"
        ) from None


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _write_tokenizer(partial: Path, source: TokenizerSource, positions: int) -> None:
    for name in _TOKENIZER_FILES:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, partial / name)
    if not (partial / "tokenizer_config.json").exists():
        _write_json(
            partial / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": source.eos_token,
                "eos_token": source.eos_token,
                "unk_token": source.eos_token,
                "clean_up_tokenization_spaces": False,
                "model_max_length": positions,
            },
        )


def _index(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": dict.fromkeys(tensors, "model.safetensors"),
    }


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
