"""The run directory: one process at a time opens it and writes its recipe, metrics and events."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rewarm.checkpoints.find_checkpoint import later_checkpoints
from rewarm.checkpoints.manifest import MetricsRecord
from rewarm.checkpoints.retention import DELETING_SUFFIX, set_aside
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import CheckpointError
from rewarm.files import atomic_write, create_folder, try_lock
from rewarm.runs.metrics_file import METRICS_FILE, lines_to_keep
from rewarm.runs.preconditions import had_checkpoint, in_use, unwritable
from rewarm.table_cells import plural


class RunDirectory:
    """An open run directory; a context manager, which holds its lock."""

    def __init__(
        self, path: Path, resumed_from: Path | None = None, *, skipped: Sequence[Path] = ()
    ) -> None:
        """Creates the directory where it is missing, and locks it.

        Args:
            path: the run directory.
            resumed_from: the checkpoint that the run is resumed from; None for a new run.
            skipped: its later checkpoints, complete or not, that the user does not resume from.

        Raises:
            CheckpointError: the directory cannot be written, another process has locked it, or it
                has other checkpoints after `resumed_from` than `skipped`.
        """
        self.path = path
        self.resumed_from = resumed_from
        self._skipped = skipped
        self._metrics_name = METRICS_FILE
        try:
            create_folder(self.checkpoints)
            lock = try_lock(path / "lock")
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            self._checkpoints_handle = -1
            self._open_checkpoints()
        except OSError as error:
            raise unwritable(path, error.strerror) from None
        if lock is None:
            os.close(self._handle)
            os.close(self._checkpoints_handle)
            raise in_use(path)
        self._lock = lock
        if others := set(later_checkpoints(path, resumed_from)) - set(skipped):
            self.__exit__(None, None, None)
            raise CheckpointError(
                f"{path}: another process saved {max(others).name} while this one was "
                "starting; run the command again"
            )

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def _open_checkpoints(self) -> None:
        create_folder(self.checkpoints)
        if self._checkpoints_handle >= 0:
            os.close(self._checkpoints_handle)
        self._checkpoints_handle = os.open(self.checkpoints, os.O_RDONLY | os.O_DIRECTORY)

    def prepare(self, recipe_yaml: str, state: TrainingState) -> list[str]:
        """Writes the recipe, and keeps of metrics and checkpoints what belongs to a state.

        Returns a message for everything that was removed or set aside.

        Raises:
            CheckpointError: the directory cannot be written, or its metrics cannot be read.
        """
        try:
            messages = self.remove_leftovers()
            if not self.resumed_from and had_checkpoint(self.path):
                messages.append("warning: the run had saved checkpoints; it starts from step 1")
            for checkpoint in self._skipped:
                messages.append(f"{checkpoint.name}: renamed to {set_aside(checkpoint).name}")
            atomic_write(self.path / "recipe.yaml", recipe_yaml)
            messages += self.cut_metrics(state)
            self._metrics = (self.path / METRICS_FILE).open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error.strerror) from None
        self._unwritten = b""
        self._size = os.fstat(self._metrics.fileno()).st_size
        return messages

    def remove_leftovers(self) -> list[str]:
        """Removes checkpoints that were partly written or partly deleted; a message for each."""
        leftovers = [
            path
            for path in sorted(self.checkpoints.iterdir())
            if path.name.startswith("step-") and path.suffix in (".partial", DELETING_SUFFIX)
        ]
        for checkpoint in leftovers:
            shutil.rmtree(checkpoint, ignore_errors=True)
        return [f"{path.name}: incomplete, removed" for path in leftovers]

    def cut_metrics(self, state: TrainingState, *, is_complete: bool = False) -> list[str]:
        """Keeps the lines of metrics.jsonl that belong to a state; a message for what it removes.

        A file with a gap that the user has accepted is kept beside the new one.
        """
        path, messages = self.path / METRICS_FILE, []
        kept = lines_to_keep(self.path, self.resumed_from, state) if self.resumed_from else []
        data = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        is_prefix = data[: len(kept)] == kept
        if not is_prefix and data:
            copy = _free_name(path.with_name(f"metrics-damaged-{state.step:08d}.jsonl"))
            atomic_write(copy, b"".join(data))
            messages.append(
                f"{METRICS_FILE}: damaged before step {state.step:,}; kept as {copy.name}"
            )
        elif not is_prefix:
            messages.append(f"{METRICS_FILE}: missing; there are no metrics before {state.step:,}")
        elif removed := len(data) - len(kept):
            reason = "they are of no checkpoint" if is_complete else "those steps are taken again"
            messages.append(
                f"{METRICS_FILE}: {plural(removed, 'line')} after step {state.step:,} removed; "
                f"{reason}"
            )
        if kept != data or not path.exists():
            atomic_write(path, b"".join(kept))
        self._line_count, self._digest = len(kept), hashlib.sha256(b"".join(kept))
        return messages

    def log_metrics(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl; a number that is not finite is null there."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"kind": kind, **finite}).encode() + b"\n"
        self._unwritten += line
        self._line_count += 1
        self._digest.update(line)
        self.flush_metrics()

    def metrics_record(self) -> MetricsRecord:
        """Returns the number of lines that were logged so far, and their digest."""
        return MetricsRecord(lines=self._line_count, sha256=self._digest.hexdigest())

    def sync_metrics(self) -> None:
        """Waits until the metrics are on the disk.

        Raises:
            CheckpointError: they cannot be written.
        """
        if self._unwritten:
            raise unwritable(self.path, os.strerror(errno.ENOSPC))
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise unwritable(self.path, error.strerror) from None

    def flush_metrics(self) -> str | None:
        """Writes pending metric lines; returns an error message if that failed, else None.

        Raises:
            CheckpointError: the run directory or its metrics.jsonl was moved, deleted or replaced.
        """
        self._check_in_place()
        try:
            # A full disk may store a part of them: the rest is written with the next line.
            written = self._metrics.write(self._unwritten)
            self._unwritten, self._size = self._unwritten[written:], self._size + written
            if self._unwritten:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            return f"{self.path / METRICS_FILE}: cannot be written: {error.strerror}"
        return None

    def _check_in_place(self) -> None:
        """Makes sure that the paths of the run still lead to what it has opened.

        Otherwise a run would be split: its checkpoints in a new folder, its metrics in the old one.
        After a move `path` is where the directory is now, so that what was reached is saved there.
        """
        if not _is_same_file(self.path, self._handle):
            before, now = self.path, _path_of(self._handle)
            if now is None:
                raise CheckpointError(f"{before}: deleted or moved while the run was using it")
            self.path = now
            raise CheckpointError(f"{before}: moved to {now} while the run was using it")
        if not _is_same_file(self.path / "lock", self._lock.fileno()):
            lock = try_lock(self.path / "lock")
            if lock is None:  # the file was deleted, and another process has locked a new one
                raise in_use(self.path)
            self._lock.close()
            self._lock = lock
        if not _is_same_file(self.checkpoints, self._checkpoints_handle):
            moved_to = _path_of(self._checkpoints_handle)
            what = f"moved to {moved_to}" if moved_to else "deleted"
            self._open_checkpoints()
            raise CheckpointError(f"{self.checkpoints}: {what} while the run was using it")
        if not _is_same_file(self._metrics_path, self._metrics.fileno()):
            before = self._metrics_path
            self._restore_metrics()
            raise CheckpointError(
                f"{before}: deleted or replaced while the run was using it; its lines are saved in "
                f"{self._metrics_path}"
            )
        size = os.fstat(self._metrics.fileno()).st_size
        if size != self._size:
            expected, self._size = self._size, size  # reported once: what was reached is saved
            raise CheckpointError(
                f"{self._metrics_path}: {size:,} bytes long, and the run has written {expected:,}: "
                "changed while the run was using it"
            )

    @property
    def _metrics_path(self) -> Path:
        return self.path / self._metrics_name

    def _restore_metrics(self) -> None:
        """Copies the open metrics file to where there is none, and continues with the copy."""
        try:
            data = Path(f"/proc/self/fd/{self._metrics.fileno()}").read_bytes()
            if self._metrics_path.exists():
                self._metrics_name = f"metrics-{os.getpid()}.jsonl"
            atomic_write(self._metrics_path, data)
            self._metrics.close()
            self._metrics = self._metrics_path.open("ab", buffering=0)
            self._size = len(data)
        except OSError as error:
            raise unwritable(self.path, error.strerror) from None

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
        os.close(self._handle)
        os.close(self._checkpoints_handle)
        if hasattr(self, "_metrics"):
            self._metrics.close()


def _free_name(path: Path) -> Path:
    """Returns a path, with a number where something has its name."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _path_of(descriptor: int) -> Path | None:
    """Returns the path of an open folder; None if it was deleted, or the system does not tell."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
    return path if _is_same_file(path, descriptor) else None


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Returns whether a path leads to an open file or folder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def checkpoint_path(run: Path, step: int) -> Path:
    """Returns where the checkpoint of a step of a run belongs."""
    return run / "checkpoints" / f"step-{step:08d}"
