"""One checkpoint directory: a Hugging Face model, plus what is needed to go on exactly.

```
step-00001000/  config.json  generation_config.json  model.safetensors  tokenizer files   the model
                optimizer.safetensors  progress.json  recipe.yaml                         to go on
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
from safetensors.torch import load_file, save_file

from rewarm import manifest
from rewarm.errors import CheckpointError
from rewarm.neox import NeoX
from rewarm.optim import load_moments, moments
from rewarm.progress import Progress

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


def save(
    directory: Path,
    model: NeoX,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    recipe: str,
    tokenizer: TokenizerSource,
) -> None:
    """Writes a whole checkpoint, or nothing.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        config = model.architecture.to_hugging_face()
        ids = {"bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos}
        _write_json(partial / "config.json", config | ids)
        _write_json(partial / "generation_config.json", ids)
        _write_tokenizer(partial, tokenizer, model.architecture.positions)
        tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        if model.architecture.tied:
            del tensors["embed_out.weight"]
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        state = {n: t.cpu().contiguous() for n, t in moments(model, optimizer).items()}
        save_file(state, partial / "optimizer.safetensors")
        (partial / "recipe.yaml").write_text(recipe, encoding="utf-8")
        _write_json(partial / "progress.json", progress.model_dump())
        _write_json(partial / manifest.MANIFEST, manifest.of(partial))
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        partial.rename(directory)
        _flush(directory.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{directory}: cannot be written: {error}; earlier checkpoints are untouched"
        ) from None


def load_optimizer(directory: Path, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's Adam moments into the optimiser.

    Raises:
        CheckpointError: there are none, or they are of another model.
    """
    path = directory / "optimizer.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: has no Adam moments to carry (no optimizer.safetensors; published "
            "models come without); set optimizer.carry: false"
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}; use another checkpoint, or start from this one's "
            "weights alone (set optimizer.carry: false)"
        ) from None
    load_moments(model, optimizer, state, str(path))


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


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
