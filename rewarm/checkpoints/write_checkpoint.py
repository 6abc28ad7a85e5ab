"""Writes a checkpoint: a Hugging Face model directory, plus the files needed for an exact resume.

```
step-00001000/  config.json  generation_config.json  model.safetensors  tokenizer files   the model
                model.safetensors.index.json                      names the file of each weight
                optimizer.safetensors  progress.json  recipe.yaml                         to resume
                README.md           a model card
                MANIFEST.json       size and sha256 of every file, digest of the metrics so far
```
Of several processes, each writes some of the tensors, whole, into files of its own:
`model-00001-of-00004.safetensors`, `optimizer-00001-of-00004.safetensors`.
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
    MODEL_CARD,
    FileEntries,
    MetricsRecord,
    build_manifest,
    file_entry,
)
from rewarm.checkpoints.model_card import model_card
from rewarm.checkpoints.optimizer_state import optimizer_state_tensors
from rewarm.checkpoints.part_files import MODEL, OPTIMIZER, part_name
from rewarm.checkpoints.retention import set_aside
from rewarm.checkpoints.training_state import TrainingState, read_training_state
from rewarm.errors import CheckpointError
from rewarm.files import exchange, sync_to_disk
from rewarm.model.architecture import Architecture
from rewarm.model.divided_tensors import whole
from rewarm.model.neox import NeoX
from rewarm.quantities import format_bytes
from rewarm.safe_loading import read_json

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


class Part(NamedTuple):
    """The tensors of a checkpoint that a process writes."""

    number: int = 0
    """Of the process, from 0 on."""
    total: int = 1
    """Processes."""


_ALL_TENSORS = Part()


class TensorSnapshot:
    """A copy of the weights and the optimizer state in host memory: of those that are written here.

    A thread can write it while training continues. The memory is reused for the next copy; it is
    pinned for tensors on a GPU, so that copies run at the full speed of the bus.
    """

    def __init__(self, part: Part = _ALL_TENSORS) -> None:
        self.part = part
        self.weights: dict[str, Tensor] = {}
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
        self._copy(state, self.optimizer_state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _copy(self, tensors: dict[str, Tensor], copies: dict[str, Tensor]) -> None:
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
    ):
        if tensors:
            path = folder / part_name(stem, snapshot.part.number, snapshot.file_count)
            _save_tensors(tensors, path, metadata=metadata)
            sync_to_disk(path)
            entries[path.name] = file_entry(path)
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
        _write_model_files(partial, architecture, snapshot, tokenizer)
        (partial / "recipe.yaml").write_text(recipe_yaml, encoding="utf-8")
        _write_json(partial / "progress.json", state.model_dump())
        card = model_card(architecture, state, recipe_yaml)
        (partial / MODEL_CARD).write_text(card, encoding="utf-8")
        entries |= other_parts.wait()
        _write_json(partial / MANIFEST, build_manifest(partial, metrics, entries))
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


def _write_model_files(
    folder: Path, architecture: Architecture, snapshot: TensorSnapshot, tokenizer: TokenizerSource
) -> None:
    """Writes the files of a Hugging Face model, except its weights."""
    eos_token_id = tokenizer.eos_token_id
    ids = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    _write_json(folder / "config.json", architecture.to_hugging_face() | ids)
    # generate() pads with end-of-text by default, but older transformers warn if this is not set.
    _write_json(folder / "generation_config.json", ids | {"pad_token_id": eos_token_id})
    write_tokenizer(folder, tokenizer, architecture.positions)
    # Without an index, vLLM loads each *.safetensors here as weights, also the optimizer state.
    _write_json(folder / "model.safetensors.index.json", _weight_index(snapshot))


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


def write_tokenizer(folder: Path, source: TokenizerSource, positions: int) -> None:
    """Writes the tokenizer files of a Hugging Face model into a folder.

    Args:
        folder: where to write them.
        source: what to copy.
        positions: that the model has.
    """
    for name in _TOKENIZER_FILES:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    config = folder / "tokenizer_config.json"
    if config.exists():
        _make_readable_by_transformers_4(config)
    else:
        _write_json(
            config,
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": source.eos_token,
                "eos_token": source.eos_token,
                "unk_token": source.eos_token,
                "clean_up_tokenization_spaces": False,
                "model_max_length": positions,
            },
        )


def _make_readable_by_transformers_4(config: Path) -> None:
    """Replaces two names that transformers 5 writes by older ones, which all versions read."""
    try:
        settings = read_json(config)
    except ValueError:  # it stays as it was copied
        return
    if not isinstance(settings, dict) or settings.get("tokenizer_class") != "TokenizersBackend":
        return
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write_json(config, settings)


def _weight_index(snapshot: TensorSnapshot) -> dict[str, Any]:
    files = [part_name(MODEL, n, snapshot.file_count) for n in range(snapshot.file_count)]
    return {
        "metadata": {"total_size": snapshot.weight_bytes},
        "weight_map": {name: files[number] for name, number in snapshot.writers.items()},
    }
