"""Writes a checkpoint: a Hugging Face model directory, plus the files needed for an exact resume.

```
step-00001000/  config.json  generation_config.json  model.safetensors  tokenizer files   the model
                model.safetensors.index.json                      names the file of each weight
                optimizer.safetensors  progress.json  recipe.yaml                         to resume
                MANIFEST.json       size and sha256 of every file, digest of the metrics so far
```
The directory is written as step-00001000.partial, flushed to disk, and renamed when complete. It
contains only safetensors, JSON, YAML and text files: none of them can run code when it is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewarm.checkpoints.manifest import (
    MANIFEST,
    OPTIMIZER_FILE,
    MetricsRecord,
    build_manifest,
)
from rewarm.checkpoints.optimizer_state import optimizer_state_tensors
from rewarm.checkpoints.retention import set_aside
from rewarm.checkpoints.training_state import TrainingState, read_training_state
from rewarm.errors import CheckpointError
from rewarm.files import exchange, sync_to_disk
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
    """The tokenizer of a run's data; its files are copied into each checkpoint."""

    directory: Path
    """Directory from which the tokenizer files are copied."""
    eos_token_id: int
    eos_token: str


class TensorSnapshot:
    """A copy of the weights and the optimizer state in host memory.

    A thread can write it while training continues. The memory is reused for the next copy; it is
    pinned for tensors on a GPU, so that copies run at the full speed of the bus.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.optimizer_state: dict[str, Tensor] = {}

    def copy_from(self, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
        """Copies the current tensors, and waits until the copy is complete."""
        weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        if model.architecture.tied:
            del weights["embed_out.weight"]
        _copy_to_host(weights, self.weights)
        _copy_to_host(optimizer_state_tensors(model, optimizer), self.optimizer_state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.nbytes for t in (*self.weights.values(), *self.optimizer_state.values()))


def _copy_to_host(tensors: dict[str, Tensor], copies: dict[str, Tensor]) -> None:
    """Copies tensors into `copies`, whose memory is allocated at the first call."""
    for name, tensor in tensors.items():
        if name not in copies:
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor, non_blocking=True)


def write_checkpoint(
    directory: Path,
    architecture: Architecture,
    snapshot: TensorSnapshot,
    state: TrainingState,
    recipe_yaml: str,
    tokenizer: TokenizerSource,
    metrics: MetricsRecord,
) -> str | None:
    """Writes a complete checkpoint, or raises an error and leaves no files behind.

    Returns the new name of a folder that was in its place, which something else left there.

    Args:
        directory: directory of the new checkpoint, such as RUN/checkpoints/step-00001000.
        architecture: architecture of the model.
        snapshot: the weights and the optimizer state.
        state: the training state, written to progress.json.
        recipe_yaml: the recipe as YAML.
        tokenizer: tokenizer whose files are copied.
        metrics: which lines of metrics.jsonl belong to the checkpoint; they are on the disk.

    Raises:
        CheckpointError: there is not enough free disk space, or the directory cannot be written.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _check_free_space(partial, snapshot.nbytes)
        _write_model(partial, architecture, snapshot.weights, tokenizer)
        _save_tensors(snapshot.optimizer_state, partial / OPTIMIZER_FILE)
        (partial / "recipe.yaml").write_text(recipe_yaml, encoding="utf-8")
        _write_json(partial / "progress.json", state.model_dump())
        _write_json(partial / MANIFEST, build_manifest(partial, metrics))
        for path in [*partial.iterdir(), partial]:
            sync_to_disk(path)
        moved = None
        if _lacks_evaluation(directory):
            exchange(partial, directory)
            shutil.rmtree(partial, ignore_errors=True)
        else:
            moved = set_aside(directory) if os.path.lexists(directory) else None
            partial.rename(directory)
        sync_to_disk(directory.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{directory}: cannot be written: {error}; earlier checkpoints are untouched; free "
            "disk space, or check the permissions of the folder"
        ) from None
    return moved.name if moved else None


def _lacks_evaluation(directory: Path) -> bool:
    """Returns whether a checkpoint was saved before its evaluation, which a stop prevented."""
    try:
        return read_training_state(directory).evaluation_owed
    except CheckpointError:
        return False


def _check_free_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OSError(
            f"the checkpoint needs {format_bytes(needed_bytes)}, and the disk has only "
            f"{format_bytes(free_bytes)} free"
        )


def _write_model(
    folder: Path, architecture: Architecture, weights: dict[str, Tensor], tokenizer: TokenizerSource
) -> None:
    """Writes the files of a Hugging Face model."""
    eos_token_id = tokenizer.eos_token_id
    ids = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    _write_json(folder / "config.json", architecture.to_hugging_face() | ids)
    # generate() pads with end-of-text by default, but older transformers warn if this is not set.
    _write_json(folder / "generation_config.json", ids | {"pad_token_id": eos_token_id})
    _write_tokenizer(folder, tokenizer, architecture.positions)
    _save_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # Without an index, vLLM loads each *.safetensors here as weights, also the optimizer state.
    _write_json(folder / "model.safetensors.index.json", _weight_index(weights))


def _save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file with the permissions of any new file here, as the umask says.

    safetensors replaces the file by one that only its owner can read.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, source: TokenizerSource, positions: int) -> None:
    for name in _TOKENIZER_FILES:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    if not (folder / "tokenizer_config.json").exists():
        _write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": source.eos_token,
                "eos_token": source.eos_token,
                "unk_token": source.eos_token,
                "clean_up_tokenization_spaces": False,
                "model_max_length": positions,
            },
        )


def _weight_index(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
        "weight_map": dict.fromkeys(weights, "model.safetensors"),
    }
