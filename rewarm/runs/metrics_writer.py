"""Writes the metrics.jsonl of a run that trains, and notices if anything else changes it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from rewarm.checkpoints.manifest import MetricsRecord
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import CheckpointError
from rewarm.files import atomic_write, free_name, is_same_file
from rewarm.runs.metrics_file import METRICS_FILE
from rewarm.runs.preconditions import unwritable
from rewarm.runs.recorded_metrics import lines_to_keep
from rewarm.table_cells import plural


def cut_metrics(
    run: Path, checkpoint: Path | None, state: TrainingState, *, is_complete: bool
) -> list[str]:
    """Keeps the lines of metrics.jsonl that belong to a state; a message for what it removes.

    A file with a gap that the user has accepted is kept beside the new one.

    Args:
        run: the run directory.
        checkpoint: the checkpoint that the run is resumed from; None for a new run.
        state: its training state.
        is_complete: whether no step is taken after it.

    Raises:
        CheckpointError: the checkpoint is damaged.
        OSError: a file cannot be written.
    """
    path = run / METRICS_FILE
    kept = lines_to_keep(run, checkpoint) if checkpoint else []
    data = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if kept == data and path.exists():
        return []
    messages = []
    if data[: len(kept)] == kept:
        removed = plural(len(data) - len(kept), "line")
        reason = "they are of no checkpoint" if is_complete else "those steps are taken again"
        if data:
            messages = [f"{METRICS_FILE}: {removed} after step {state.step:,} removed; {reason}"]
    elif data:
        copy = free_name(path.with_name(f"metrics-damaged-{state.step:08d}.jsonl"))
        atomic_write(copy, b"".join(data))
        messages = [f"{METRICS_FILE}: damaged before step {state.step:,}; kept as {copy.name}"]
    else:
        messages = [f"{METRICS_FILE}: missing; there are no metrics before step {state.step:,}"]
    atomic_write(path, b"".join(kept))
    return messages


class MetricsWriter:
    """Appends lines to the metrics.jsonl of a run, and keeps their number and digest."""

    def __init__(self, directory: Path) -> None:
        """Opens the file, which exists, of a run directory.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = directory / METRICS_FILE
        data = self._path.read_bytes()
        self._file = self._path.open("ab", buffering=0)
        self._size, self._line_count = len(data), data.count(b"\n")
        self._digest = hashlib.sha256(data)
        self._unwritten = b""

    def add(self, kind: str, **values: Any) -> bytes:
        """Adds a line, which `flush` writes, and returns it; in it, NaN and infinity are null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"kind": kind, **finite}).encode() + b"\n"
        self._unwritten += line
        self._line_count += 1
        self._digest.update(line)
        return line

    def record(self) -> MetricsRecord:
        """Returns the number of lines that were added so far, and their digest."""
        return MetricsRecord(lines=self._line_count, sha256=self._digest.hexdigest())

    def flush(self) -> str | None:
        """Writes pending lines; returns an error message if that failed, else None."""
        try:
            # A full disk may store a part of them: the rest is written with the next line.
            written = self._file.write(self._unwritten)
            self._unwritten, self._size = self._unwritten[written:], self._size + written
            if self._unwritten:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            return f"{self._path}: cannot be written: {error.strerror}"
        return None

    def sync(self) -> None:
        """Waits until the lines are on the disk.

        Raises:
            CheckpointError: they cannot be written.
        """
        if self._unwritten:
            raise unwritable(self._path.parent, os.strerror(errno.ENOSPC))
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self._path.parent, error.strerror) from None

    def follow(self, directory: Path) -> None:
        """Continues with the same file, after its directory was moved to another path."""
        self._path = directory / self._path.name

    def check_in_place(self) -> None:
        """Makes sure that nothing else has changed the file.

        It is reported once, so that what was reached can be saved.

        Raises:
            CheckpointError: the file was deleted, replaced or changed.
        """
        before = self._path
        if not is_same_file(before, self._file.fileno()):
            self._restore()
            raise CheckpointError(
                f"{before}: deleted or replaced while the run was using it; its lines are saved in "
                f"{self._path}"
            )
        size = os.fstat(self._file.fileno()).st_size
        if size != self._size:
            expected, self._size = self._size, size
            raise CheckpointError(
                f"{before}: {size:,} bytes long, and the run has written {expected:,}: changed "
                "while the run was using it"
            )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _restore(self) -> None:
        """Copies the open file to where there is none, and continues with the copy."""
        try:
            data = Path(f"/proc/self/fd/{self._file.fileno()}").read_bytes()
            self._path = free_name(self._path)
            atomic_write(self._path, data)
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
            self._size = len(data)
        except OSError as error:
            raise unwritable(self._path.parent, error.strerror) from None
