"""Writes a checkpoint: a Hugging Face model directory, plus the files needed for an exact resume.

```
step-00001000/  config.json  generation_config.json  model.safetensors  tokenizer files   the model
                model.safetensors.index.json                      names the file of each weight
                optimizer.safetensors  progress.json  recipe.yaml                         to resume
                README.md           a model card
                MANIFEST.json       size and sha256 of every file, digest of the metrics so far
                ema/                with `optimizer.ema`: a checkpoint of the averaged weights
```
Of several processes, each writes some of the tensors, whole, into files of its own:
`model-00001-of-00004.safetensors`, `optimizer-00001-of-00004.safetensors`.
The directory is written as step-00001000.partial, flushed to disk, and renamed when complete. It
contains only safetensors, JSON, YAML and text files: none of them can run code when it is loaded.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewarm.checkpoints.averaged_files import complete_averaged
from rewarm.checkpoints.manifest import (
    AVERAGE,
    MANIFEST,
    MODEL_CARD,
    FileEntries,
    MetricsRecord,
    build_manifest,
    file_entry,
)
from rewarm.checkpoints.model_card import model_card
from rewarm.checkpoints.model_files import TokenizerSource, write_json, write_model_files
from rewarm.checkpoints.optimizer_state import optimizer_state_tensors
from rewarm.checkpoints.part_files import MODEL, OPTIMIZER, part_name
from rewarm.checkpoints.retention import set_aside
from rewarm.checkpoints.training_state import Averaging, TrainingState, read_training_state
from rewarm.errors import CheckpointError
from rewarm.files import exchange, sync_to_disk
from rewarm.model.architecture import Architecture
from rewarm.model.divided_tensors import whole
from rewarm.model.neox import NeoX
from rewarm.quantities import format_bytes


class Part(NamedTuple):
    """The tensors of a checkpoint that a process writes."""

    number: int = 0
    """Of the process, from 0 on."""
    total: int = 1
    """Processes."""


_ALL_TENSORS = Part()


class AverageSource(NamedTuple):
    """The average of the weights that a run keeps beside them (`optimizer.ema`)."""

    tensors: Mapping[str, Tensor]
    """By the names of the weights; their values change while the run trains."""
    averaging: Averaging


class TensorSnapshot:
    """A copy of weights, their average and the optimizer state in host memory, as written here.

    A thread can write it while training continues. The memory is reused for the next copy; it is
    pinned for tensors on a GPU, so that copies run at the full speed of the bus.
    """

    def __init__(self, part: Part = _ALL_TENSORS, average: AverageSource | None = None) -> None:
        self.part = part
        self._average = average
        self.weights: dict[str, Tensor] = {}
        self.averages: dict[str, Tensor] = {}
        self.optimizer_state: dict[str, Tensor] = {}
        self.total_bytes = 0
        """Size of all tensors of the checkpoint."""
        self.weight_bytes = 0
        """Size of all weights of the checkpoint."""
        self.writers: dict[str, int] = {}
        """The number of the process that writes a weight, by the name of the weight."""

    @property
    def file_count(self) -> int:
        """Files into which the weights are divided, and the optimizer state too."""
        return max(self.writers.values()) + 1

    def copy_from(self, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
        """Copies the current tensors, and waits until the copy is complete.

        All processes have to call it: each tensor is made whole for the one that writes it.
        """
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        state = optimizer_state_tensors(model, optimizer)
        self.writers = self.writers or _divide_evenly(weights, self.part.total)
        self.weight_bytes = sum(tensor.nbytes for tensor in weights.values())
        self.total_bytes = self.weight_bytes + sum(tensor.nbytes for tensor in state.values())
        self._copy(weights, self.weights)
        if self._average:
            self.total_bytes += self.weight_bytes
            self._copy(self._average.tensors, self.averages)
        self._copy(state, self.optimizer_state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def averaging(self) -> Averaging | None:
        """How the average was made; None if there is none."""
        return self._average and self._average.averaging

    def _copy(self, tensors: Mapping[str, Tensor], copies: dict[str, Tensor]) -> None:
        """Copies tensors into `copies`, whose memory is allocated at the first call."""
        for name, divided in tensors.items():
            tensor = whole(divided)  # one at a time
            # The state of a weight, such as exp_avg/NAME, is written with it.
            if self.writers.get(name.partition("/")[2] or name, 0) != self.part.number:
                continue
            if name not in copies:
                pinned = tensor.is_cuda
                copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            copies[name].copy_(tensor, non_blocking=True)


def _divide_evenly(tensors: dict[str, Tensor], count: int) -> dict[str, int]:
    """Returns which of `count` processes writes each tensor: about the same bytes for each."""
    bytes_of = [0] * count
    writers = {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        writers[name] = min(range(count), key=lambda number: bytes_of[number])
        bytes_of[writers[name]] += tensors[name].nbytes
    return {name: writers[name] for name in tensors}


def write_tensors(folder: Path, snapshot: TensorSnapshot) -> FileEntries:
    """Writes this process's part of the tensors to the disk; returns what the manifest says of it.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    entries: FileEntries = {}
    for stem, tensors, metadata in (
        (MODEL, snapshot.weights, {"format": "pt"}),
        (OPTIMIZER, snapshot.optimizer_state, None),
        (f"{AVERAGE}/{MODEL}", snapshot.averages, {"format": "pt"}),
    ):
        if tensors:
            name = part_name(stem, snapshot.part.number, snapshot.file_count)
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            save_tensors(tensors, path, metadata=metadata)
            sync_to_disk(path)
            entries[name] = file_entry(path)
    return entries


class OtherParts:
    """The parts of a checkpoint that other processes write; here there are none."""

    def start(self, folder: Path) -> None:
        """Has the other processes write their parts into a folder."""

    def wait(self) -> FileEntries:
        """Returns what the manifest says of their files, when all are on the disk.

        Raises:
            OSError: one of them could not be written.
        """
        return {}

    def cancel(self) -> None:
        """Tells the other processes that there is nothing to write."""


def write_checkpoint(
    directory: Path,
    architecture: Architecture,
    snapshot: TensorSnapshot,
    state: TrainingState,
    recipe_yaml: str,
    tokenizer: TokenizerSource,
    metrics: MetricsRecord,
    other_parts: OtherParts | None = None,
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
        other_parts: tensors that other processes write.

    Raises:
        CheckpointError: there is not enough free disk space, or the directory cannot be written.
    """
    other_parts = other_parts or OtherParts()
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _check_free_space(partial, snapshot.total_bytes)
        other_parts.start(partial)
        entries = write_tensors(partial, snapshot)
        weight_files = {
            name: part_name(MODEL, number, snapshot.file_count)
            for name, number in snapshot.writers.items()
        }
        write_model_files(partial, architecture, tokenizer, weight_files, snapshot.weight_bytes)
        (partial / "recipe.yaml").write_text(recipe_yaml, encoding="utf-8")
        write_json(partial / "progress.json", state.model_dump())
        card = model_card(architecture, state, recipe_yaml)
        (partial / MODEL_CARD).write_text(card, encoding="utf-8")
        entries |= other_parts.wait()
        write_json(partial / MANIFEST, build_manifest(partial, metrics, entries))
        if snapshot.averaging:
            of_average = {name.removeprefix(f"{AVERAGE}/"): entries[name] for name in entries}
            averaged_state = state.of_average(snapshot.averaging)
            complete_averaged(partial / AVERAGE, partial, averaged_state, of_average)
        for path in [*partial.rglob("*"), partial]:
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
        other_parts.cancel()
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


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file with the permissions of any new file here, as the umask says.

    safetensors replaces the file by one that only its owner can read.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)
