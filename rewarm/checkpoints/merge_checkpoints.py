"""Merges checkpoints of one run into one: the weighted sum of their weights (`rewarm merge`).

```
 RUN@last:8 ── find ──> checkpoints ── verify, same run ──> one tensor after the other:
                                                             Σ weight · tensor in fp64 ──> fp32
```
The memory is that of one model, in fp32, and of two tensors in fp64: files are mapped.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rewarm.checkpoints.averaged_files import complete_averaged
from rewarm.checkpoints.find_checkpoint import (
    find_local_model,
    last_checkpoint,
    list_checkpoints,
    no_local_model,
    read_architecture,
)
from rewarm.checkpoints.load_weights import all_finite
from rewarm.checkpoints.manifest import sha256_in_manifest, verify_checkpoint
from rewarm.checkpoints.merge_weights import MergeMethod, checkpoint_weights
from rewarm.checkpoints.model_files import write_weight_index
from rewarm.checkpoints.part_files import MODEL, part_name, part_paths
from rewarm.checkpoints.training_state import (
    Averaging,
    TrainingState,
    WeightedCheckpoint,
    read_training_state,
)
from rewarm.checkpoints.write_checkpoint import save_tensors
from rewarm.errors import CheckpointError
from rewarm.files import sync_to_disk

_TOKENIZER = "tokenizer.json"


class MergeSource(NamedTuple):
    """A checkpoint to merge."""

    directory: Path
    state: TrainingState


def find_merge_sources(references: Sequence[str]) -> list[MergeSource]:
    """Returns the checkpoints that references name, in ascending order of their steps.

    Args:
        references: checkpoints; or one RUN@last:N, the last N checkpoints of a run.

    Raises:
        CheckpointError: one does not exist, is damaged or already averaged, or they are not two or
            more checkpoints of one run.
    """
    last = re.fullmatch(r"(.+)@last:(\d+)", references[0]) if len(references) == 1 else None
    if last:
        directories = _last_checkpoints(Path(last[1]), int(last[2]))
    else:
        directories = [_find(reference) for reference in references]
    sources = sorted(map(_read, directories), key=lambda source: source.state.step)
    _check_same_run(sources)
    return sources


def _last_checkpoints(run: Path, count: int) -> list[Path]:
    if not run.is_dir():
        raise no_local_model(f"{run}@last:{count}")
    last_checkpoint(run)  # refuses to pass over an incomplete one
    checkpoints = list(list_checkpoints(run).values())
    if not 0 < count <= len(checkpoints):
        raise CheckpointError(
            f"{run}@last:{count}: the run has {len(checkpoints)} complete checkpoints; choose a "
            "number from 2 up to that, or keep more of them (every.save, keep.last)"
        )
    return checkpoints[-count:]


def _find(reference: str) -> Path:
    directory = find_local_model(reference)
    if directory is None:
        raise no_local_model(reference)
    return directory


def _read(directory: Path) -> MergeSource:
    """Returns a checkpoint whose files except the optimizer state are intact."""
    verify_checkpoint(directory, digests=False)
    weights = [path.name for path in part_paths(directory, MODEL)]
    tokenizer = [_TOKENIZER] if (directory / _TOKENIZER).is_file() else []
    for name in [*weights, *tokenizer, "config.json", "recipe.yaml"]:
        verify_checkpoint(directory, only=name)
    state = read_training_state(directory)
    if state.averaging:
        raise CheckpointError(
            f"{directory}: its weights are averaged already ({state.averaging.one_line()}); merge "
            "the checkpoints of the run themselves"
        )
    return MergeSource(directory, state)


def _check_same_run(sources: list[MergeSource]) -> None:
    """Makes sure that these are two or more checkpoints of one run, with one model and tokenizer.

    Raises:
        CheckpointError: they are not.
    """
    if len(sources) < 2:
        raise CheckpointError(
            f"{sources[0].directory}: one checkpoint, and a merge takes two or more; try RUN@last:8"
        )
    first, *others = sources
    for (previous, state), other in zip(sources, others, strict=False):
        if state.step == other.state.step:
            raise CheckpointError(
                f"{previous} and {other.directory}: both are of step {state.step:,}; name each "
                "checkpoint once"
            )
    for what, read in (
        ("architectures", lambda source: read_architecture(source.directory)),
        ("tokenizers", lambda source: _tokenizer_digest(source.directory)),
        ("runs", lambda source: (source.directory.resolve().parent, source.state.lineage)),
    ):
        for other in others:
            if read(other) != read(first):
                raise CheckpointError(
                    f"{first.directory} and {other.directory}: of different {what}; a merge is "
                    "an average along one run: name checkpoints of the same run directory"
                )


def _tokenizer_digest(directory: Path) -> str | None:
    is_there = (directory / _TOKENIZER).is_file()
    return sha256_in_manifest(directory, _TOKENIZER) if is_there else None


def rate_note(sources: list[MergeSource]) -> list[str]:
    """Returns a warning if the learning rate changed between the checkpoints, else nothing."""
    lrs = [source.state.lr or 0.0 for source in sources]
    if all(math.isclose(lr, lrs[0], rel_tol=1e-6) for lr in lrs):
        return []
    first, last = f"{lrs[0]:.4g}", f"{lrs[-1]:.4g}"
    return [
        f"warning: the learning rate was {first} at the oldest checkpoint, {last} at the newest; "
        "merging stands for a decay where the rate was constant"
    ]


def write_merged(
    sources: list[MergeSource], method: MergeMethod, directory: Path, *, decay: float = 0.8
) -> list[WeightedCheckpoint]:
    """Writes a checkpoint of the merged weights; returns the checkpoints with their weights.

    Args:
        sources: what `find_merge_sources` returns.
        method: how to weight them; see `checkpoint_weights`.
        directory: the new checkpoint, which must not exist.
        decay: for `ema`.

    Raises:
        CheckpointError: the directory exists or cannot be written, or the tensors do not match.
    """
    if directory.exists():
        raise CheckpointError(
            f"{directory}: already exists; name another directory with --out DIR, or delete it"
        )
    if "checkpoints" in (parent.name for parent in directory.absolute().parents):
        raise CheckpointError(
            f"{directory}: is in the folder of a run's own checkpoints, which `--resume` and "
            "pruning are about; name a directory outside of it with --out DIR, or leave that out"
        )
    steps = [source.state.step for source in sources]
    weights = checkpoint_weights(method, steps, decay)
    merged = [
        WeightedCheckpoint(
            directory=str(source.directory),
            step=source.state.step,
            sha256=sha256_in_manifest(source.directory) or "",
            weight=weight,
        )
        for source, weight in zip(sources, weights, strict=True)
    ]
    averaging = Averaging(
        method=method, decay=decay if method == "ema" else None, checkpoints=merged
    )
    newest = sources[-1]
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        tensors = _weighted_sum([source.directory for source in sources], weights)
        file = part_name(MODEL, 0, 1)
        save_tensors(tensors, partial / file, metadata={"format": "pt"})
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_weight_index(partial, dict.fromkeys(tensors, file), size)
        complete_averaged(partial, newest.directory, newest.state.of_average(averaging))
        for path in [*partial.iterdir(), partial]:
            sync_to_disk(path)
        partial.rename(directory)
        sync_to_disk(directory.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory}: cannot be written: {error}; free disk space, check the permissions, or "
            "name another directory with --out DIR"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return merged


def _weighted_sum(directories: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    """Returns Σ weight · tensor by name: added up in fp64, tensor by tensor, rounded once to fp32.

    Raises:
        CheckpointError: the checkpoints have other tensors, or one is not finite.
        OSError, SafetensorError: a file cannot be read.
    """
    with ExitStack() as stack:
        files = [_open_tensors(directory, stack) for directory in directories]
        merged: dict[str, Tensor] = {}
        for name in files[0]:
            total: Tensor | None = None
            for directory, tensors, weight in zip(directories, files, weights, strict=True):
                tensor = tensors[name].get_tensor(name) if name in tensors else None
                if tensor is None or (total is not None and tensor.shape != total.shape):
                    raise CheckpointError(
                        f"{directory}: {name} is missing or of another shape than in "
                        f"{directories[0]}; name checkpoints of one run"
                    )
                scaled = tensor.double().mul_(weight)
                total = scaled if total is None else total.add_(scaled)
            assert total is not None
            if not all_finite(total):
                raise CheckpointError(f"{name}: not finite in one of the checkpoints; leave it out")
            merged[name] = total.to(torch.float32)
        return merged


def _open_tensors(directory: Path, stack: ExitStack) -> dict[str, Any]:
    """Returns the open file of each weight by name."""
    tensors: dict[str, Any] = {}
    for path in part_paths(directory, MODEL):
        file = stack.enter_context(safe_open(path, "pt"))
        tensors |= dict.fromkeys(file.keys(), file)
    return tensors
