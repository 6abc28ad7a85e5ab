"""Figures of checkpoints on tasks of the LM Evaluation Harness; what is measured is not repeated.

```
 weights, configuration, tokenizer ──┐
 task: version, settings, questions ─┼─ sha256 ──> ~/.cache/rewarm/tasks/SHA256.json ──> figures
 precision, limit, few-shot ─────────┘
```
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.checkpoints.find_checkpoint import BaseCheckpoint, locate_base, read_last_checkpoint
from rewarm.checkpoints.gpt_neox_import import GPT_NEOX_KIND
from rewarm.checkpoints.manifest import sha256_in_manifest, verify_checkpoint
from rewarm.checkpoints.weight_files import find_weight_files, weights_digest
from rewarm.errors import CheckpointError, DataError
from rewarm.files import atomic_write, cache_dir, create_folder
from rewarm.recipe.measurement_settings import TaskSettings
from rewarm.safe_loading import read_json
from rewarm.training.device_setup import find_device
from rewarm.training.harness_tasks import Figures, HarnessTasks, is_figures

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


class MeasuredTasks(NamedTuple):
    """The figures of one checkpoint."""

    figures: Figures
    kept: list[str]
    """The tasks that were measured before, and not again."""


class TaskEvaluator:
    """Measures checkpoints on tasks, which are loaded once for all of them."""

    def __init__(
        self,
        settings: TaskSettings,
        *,
        microbatch: int = 8,
        precision: str = "fp32",
        again: bool = False,
    ) -> None:
        """Loads the tasks.

        Args:
            settings: the tasks.
            microbatch: sequences at once.
            precision: of the weights and the forward pass.
            again: measure also what was measured before.

        Raises:
            DataError: the harness is not installed, or the data of a task cannot be loaded.
            RecipeError: there is no such task.
        """
        self._names = settings.names
        self._microbatch, self._precision, self._again = microbatch, precision, again
        self._tasks = HarnessTasks(settings)
        self._identities = {name: self._tasks.identity(name) for name in settings.names}

    def measure(self, name: str) -> MeasuredTasks:
        """Returns the figures of a checkpoint, a run's last checkpoint, or a NeoX base.

        Each task is kept as soon as it is measured.

        Raises:
            CheckpointError: the checkpoint cannot be found or loaded.
            DataError: a task cannot be measured, or its figures cannot be kept.
        """
        # A run that trains may delete a checkpoint while it is read, after it saved a newer one.
        return read_last_checkpoint(Path(name), self._measure) or self._measure(name)

    def _measure(self, directory: str | Path) -> MeasuredTasks:
        base = locate_base(str(directory))
        if base.kind == GPT_NEOX_KIND:
            raise CheckpointError(
                f"{base.name}: the harness reads models of Hugging Face only, and this is a "
                f"{GPT_NEOX_KIND}; continue it with rewarm, whose checkpoints are such models"
            )
        model = _identity(base)
        figures: Figures = {}
        kept = []
        language_model: Any = None
        for name in self._names:
            path = self._path(name, model)
            stored = None if self._again else _read(path)
            if stored is not None:
                kept.append(name)
            else:
                language_model = language_model or self._load(base)
                stored = self._measure_task(language_model, name, base)
                _write(path, {"task": name, "checkpoint": base.name, "figures": stored})
            figures |= stored
        return MeasuredTasks(figures, kept)

    def _measure_task(self, language_model: Any, name: str, base: BaseCheckpoint) -> Figures:
        try:
            return self._tasks.measure(language_model, name, show_progress=sys.stderr.isatty())
        except Exception as error:  # the harness can raise anything
            reason = str(error).strip().split("\n")[0] or "no reason"
            raise DataError(
                f"task {name} on {base.name}: {type(error).__name__}: {reason}; try --limit 2, or "
                "leave the task out"
            ) from None

    def _load(self, base: BaseCheckpoint) -> Any:
        """Returns the checkpoint as the harness loads it with `--model hf`."""
        return self._tasks.load_model(
            pretrained=str(base.directory.absolute()),  # a relative path is asked the hub for
            device=str(find_device()),
            dtype=_DTYPES[self._precision],
            batch_size=self._microbatch,
        )

    def _path(self, name: str, model: dict[str, str]) -> Path:
        key = {"model": model, "precision": self._precision, "task": self._identities[name]}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cache_dir() / "tasks" / f"{digest}.json"


def _identity(base: BaseCheckpoint) -> dict[str, str]:
    """Returns the digests of all files of a checkpoint that decide what it answers."""
    if base.kind == "rewarm checkpoint":
        verify_checkpoint(base.directory)
    find_weight_files(base.directory, base.architecture)
    weights = sha256_in_manifest(base.directory) or weights_digest(base.directory)
    paths = [base.directory / name for name in _MODEL_FILES]
    return {"weights": weights} | {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()
    }


def _read(path: Path) -> Figures | None:
    """Returns figures that were kept; None if there are none, or the file is damaged."""
    try:
        figures = read_json(path)["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return figures if is_figures(figures) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        create_folder(path.parent)
        atomic_write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
