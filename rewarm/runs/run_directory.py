"""The run directory: one process at a time opens it, begins or resumes it, and writes to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.runs.resume_changes import recipe_changes


class RunDirectory:
    """An open run directory; a context manager, which holds its lock."""

    def __init__(self, recipe: Recipe, *, resume: bool, accept_changes: bool) -> None:
        """Opens the directory, to begin or to go on behind its last checkpoint.

        Raises:
            CheckpointError: another process is in it; it has checkpoints and `resume` is off; or
                the recipe differs from the one it began with in a way that changes the outcome.
        """
        self.directory = Path(recipe.run)
        self.checkpoints = self.directory / "checkpoints"
        self._yaml = recipe.to_yaml()
        self.accept_changes = accept_changes
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / "lock").open("a")
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._take_lock()
            self.resumed = last_checkpoint(self.directory)
            if self.resumed and not resume:
                raise CheckpointError(
                    f"{self.directory}: already has checkpoints, up to {self.resumed.name}; go on "
                    "with --resume, or name another directory with --set run=DIR"
                )
            self.changes = recipe_changes(self.resumed, recipe) if self.resumed else []
            if self.changes and not accept_changes:
                raise CheckpointError(
                    f"{self.directory}: the recipe would change how this run goes on:\n  "
                    + "\n  ".join(self.changes)
                    + "\ntake the changes back, or say --accept-changes"
                )
        except BaseException:
            self._lock.close()
            raise

    def begin(self, step: int) -> list[str]:
        """Writes the recipe, and drops the metrics of steps that will be taken again.

        Returns what it found half-written, or half-deleted, and cleared away.
        """
        left = [
            path
            for path in sorted(self.checkpoints.iterdir())
            if path.name.startswith("step-") and path.suffix in (".partial", DELETING_SUFFIX)
        ]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        path = self.directory / "metrics.jsonl"
        kept = []
        if self.resumed and path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= step]
        try:
            _replace(path, "".join(json.dumps(line) + "\n" for line in kept))
            _replace(self.directory / "recipe.yaml", self._yaml)
            self._metrics = path.open("ab", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from None
        self._unwritten = b""
        return [f"{path.name}: not whole, cleared away" for path in left]

    def log(self, kind: str, **values: Any) -> None:
        """Adds one line to metrics.jsonl; a number that is not finite is null there."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._unwritten += json.dumps({"kind": kind, **finite}).encode() + b"\n"
        self.catch_up()

    def catch_up(self) -> str | None:
        """Writes the lines that are waiting, or returns why they must go on waiting."""
        try:
            # On a full disk perhaps a part of them: the rest follows it with the next line.
            self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]
            if self._unwritten:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            return f"{self.directory / 'metrics.jsonl'}: cannot be written: {error.strerror}"
        return None

    def note(self, kind: str, **values: Any) -> None:
        """Adds one line to events.jsonl: what happened to this process, and when.

        Metrics are the same however often a run is stopped; events are not.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with (
            contextlib.suppress(OSError),  # on a full disk the run matters, its diary does not
            (self.directory / "events.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"kind": kind, "time": now, **values}) + "\n")

    def checkpoint(self, step: int) -> Path:
        """Returns where the checkpoint of a step belongs."""
        return self.checkpoints / f"step-{step:08d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._lock.close()
        if hasattr(self, "_metrics"):
            self._metrics.close()

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}: cannot be written: {error.strerror}; what is saved there is "
            "untouched; make room, see that the folder may be written to, or name another with "
            "--set run=DIR"
        )

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{self.directory}: in use by another process; wait for it, or name another "
                "directory with --set run=DIR"
            ) from None


def _replace(path: Path, text: str) -> None:
    """Puts a whole new file in a file's place, or leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # and never through a link that someone left there
    with partial.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
