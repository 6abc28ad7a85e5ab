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
from rewarm.files import atomic_write, locked
from rewarm.runs.metrics_file import read_metrics
from rewarm.runs.preconditions import in_use, unwritable


class RunDirectory:
    """An open run directory; a context manager, which holds its lock."""

    def __init__(self, directory: Path, resumed: Path | None = None) -> None:
        """Creates the directory where it is missing, and locks it.

        Args:
            directory: the run's.
            resumed: its last checkpoint, which the run is resumed from; None for a new run.

        Raises:
            CheckpointError: it cannot be written, another process has locked it, or it has another
                last checkpoint by now.
        """
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self.resumed = resumed
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = locked(directory / "lock")
        except OSError as error:
            raise unwritable(directory, error.strerror) from None
        if lock is None:
            raise in_use(directory)
        self._lock = lock
        if (last := last_checkpoint(directory)) != resumed:
            self._lock.close()
            raise CheckpointError(
                f"{directory}: another process saved {last and last.name} while this one was "
                "starting; run the command again"
            )

    def prepare(self, recipe_yaml: str, step: int) -> list[str]:
        """Writes the recipe, and removes the metrics of steps after `step`: they are taken again.

        Returns a line for each partly written or partly deleted checkpoint, which it removes.

        Raises:
            CheckpointError: the directory cannot be written, or its metrics are damaged.
        """
        partial = [
            path
            for path in sorted(self.checkpoints.iterdir())
            if path.name.startswith("step-") and path.suffix in (".partial", DELETING_SUFFIX)
        ]
        for path in partial:
            shutil.rmtree(path, ignore_errors=True)
        path = self.directory / "metrics.jsonl"
        kept = []
        if self.resumed and path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= step]
        try:
            atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
            atomic_write(self.directory / "recipe.yaml", recipe_yaml)
            self._metrics = path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.directory, error.strerror) from None
        self._unwritten = b""
        return [f"{path.name}: incomplete, removed" for path in partial]

    def log_metrics(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl; a number that is not finite is null there."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._unwritten += json.dumps({"kind": kind, **finite}).encode() + b"\n"
        self.flush_metrics()

    def flush_metrics(self) -> str | None:
        """Writes the lines of metrics that are pending, or returns why they cannot be written."""
        try:
            # A full disk may take a part of them: the rest follows it with the next line.
            self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]
            if self._unwritten:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            return f"{self.directory / 'metrics.jsonl'}: cannot be written: {error.strerror}"
        return None

    def log_event(self, kind: str, **values: Any) -> None:
        """Appends a line to events.jsonl: what happened to this process, and when.

        Metrics are the same however often a run is stopped; events are not.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with (
            contextlib.suppress(OSError),  # on a full disk the run matters, its event log does not
            (self.directory / "events.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"kind": kind, "time": now, **values}) + "\n")

    def checkpoint_path(self, step: int) -> Path:
        """Returns where the checkpoint of a step belongs."""
        return checkpoint_path(self.directory, step)

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
