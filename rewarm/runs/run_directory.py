"""The run directory: one process at a time opens it and writes its recipe, metrics and events."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.retention import DELETING_SUFFIX
from rewarm.errors import CheckpointError
from rewarm.files import atomic_write, try_lock
from rewarm.runs.metrics_file import read_metrics
from rewarm.runs.preconditions import in_use, unwritable


class RunDirectory:
    """An open run directory; a context manager, which holds its lock."""

    def __init__(self, path: Path, resumed_from: Path | None = None) -> None:
        """Creates the directory where it is missing, and locks it.

        Args:
            path: the run directory.
            resumed_from: its last checkpoint, if the run is resumed; None for a new run.

        Raises:
            CheckpointError: the directory cannot be written, another process has locked it, or it
                has a newer checkpoint than `resumed_from`.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.resumed_from = resumed_from
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = try_lock(path / "lock")
        except OSError as error:
            raise unwritable(path, error.strerror) from None
        if lock is None:
            raise in_use(path)
        self._lock = lock
        if (last := last_checkpoint(path)) != resumed_from:
            self._lock.close()
            raise CheckpointError(
                f"{path}: another process saved {last and last.name} while this one was "
                "starting; run the command again"
            )

    def prepare(self, recipe_yaml: str, step: int) -> list[str]:
        """Writes the recipe, and removes incomplete checkpoints and the metrics after `step`.

        Returns a message for each incomplete checkpoint: partly written, or partly deleted.

        Raises:
            CheckpointError: the directory cannot be written, or its metrics are damaged.
        """
        incomplete = [
            path
            for path in sorted(self.checkpoints.iterdir())
            if path.name.startswith("step-") and path.suffix in (".partial", DELETING_SUFFIX)
        ]
        for checkpoint in incomplete:
            shutil.rmtree(checkpoint, ignore_errors=True)
        metrics = self.path / "metrics.jsonl"
        kept = []
        if self.resumed_from and metrics.exists():
            kept = [line for line in read_metrics(metrics) if line["step"] <= step]
        try:
            atomic_write(metrics, "".join(json.dumps(line) + "\n" for line in kept))
            atomic_write(self.path / "recipe.yaml", recipe_yaml)
            self._metrics = metrics.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error.strerror) from None
        self._unwritten = b""
        return [f"{path.name}: incomplete, removed" for path in incomplete]

    def log_metrics(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl; a number that is not finite is null there."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._unwritten += json.dumps({"kind": kind, **finite}).encode() + b"\n"
        self.flush_metrics()

    def flush_metrics(self) -> str | None:
        """Writes pending metric lines; returns an error message if that failed, else None."""
        try:
            # A full disk may store a part of them: the rest is written with the next line.
            self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]
            if self._unwritten:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            return f"{self.path / 'metrics.jsonl'}: cannot be written: {error.strerror}"
        return None

    def log_event(self, kind: str, **values: Any) -> None:
        """Appends a line to events.jsonl: what happened to this process, and when.

        Metrics are the same however often a run is stopped; events are not.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with (
            contextlib.suppress(OSError),  # on a full disk the run matters, its event log does not
            (self.path / "events.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"kind": kind, "time": now, **values}) + "\n")

    def checkpoint_path(self, step: int) -> Path:
        """Returns where the checkpoint of a step belongs."""
        return checkpoint_path(self.path, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._lock.close()
        if hasattr(self, "_metrics"):
            self._metrics.close()


def checkpoint_path(run: Path, step: int) -> Path:
    """Returns where the checkpoint of a step of a run belongs."""
    return run / "checkpoints" / f"step-{step:08d}"
