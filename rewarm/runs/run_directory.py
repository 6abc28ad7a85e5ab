"""The run directory: one process at a time opens it and writes its recipe, metrics and events."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from typing_extensions import override

from rewarm.checkpoints.find_checkpoint import later_checkpoints
from rewarm.checkpoints.manifest import MetricsRecord
from rewarm.checkpoints.retention import DELETING_SUFFIX, set_aside
from rewarm.checkpoints.training_state import TrainingState, read_training_state
from rewarm.errors import CheckpointError, Preempted
from rewarm.files import atomic_write, create_folder, is_same_file, try_lock
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import METRICS_FILE
from rewarm.runs.metrics_writer import MetricsWriter, cut_metrics
from rewarm.runs.preconditions import had_checkpoint, in_use, unwritable
from rewarm.trackers.run_trackers import RunTrackers, closing_warnings


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
        self._trackers: RunTrackers | None = None
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
            messages += cut_metrics(self.path, self.resumed_from, state, is_complete=False)
            self.metrics = MetricsWriter(self.path)
        except OSError as error:
            raise unwritable(self.path, error.strerror) from None
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

    def log_metrics(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl; a number that is not finite is null there.

        Raises:
            CheckpointError: as for `flush_metrics`.
        """
        line = self.metrics.add(kind, **values)
        for warning in self._trackers.send(line) if self._trackers else []:
            self._announce(warning)
        self.flush_metrics()

    def start_trackers(self, recipe: Recipe, announce: Callable[[str], object]) -> None:
        """Starts the trackers of a recipe, which get each line of metrics from now on.

        Args:
            recipe: the recipe of the run.
            announce: prints a message, while the run trains.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        step = read_training_state(self.resumed_from).step if self.resumed_from else None
        try:
            self._trackers = RunTrackers(
                recipe.trackers, self.path / METRICS_FILE, recipe.document(), step
            )
        except OSError as error:
            raise unwritable(self.path, error.strerror) from None
        self._announce = announce

    def flush_metrics(self) -> str | None:
        """Writes pending metric lines; returns an error message if that failed, else None.

        Raises:
            CheckpointError: something that the run uses was moved, deleted or replaced.
        """
        self._check_in_place()
        return self.metrics.flush()

    def _check_in_place(self) -> None:
        """Makes sure that the paths of the run still lead to what it has opened.

        Otherwise a run would be split: its checkpoints in a new folder, its metrics in the old one.
        After a move `path` is where the directory is now, so that what was reached is saved there.
        """
        if not is_same_file(self.path, self._handle):
            before, now = self.path, _path_of(self._handle)
            if now is None:
                raise CheckpointError(f"{before}: deleted or moved while the run was using it")
            self.path = now
            self.metrics.follow(now)
            raise CheckpointError(f"{before}: moved to {now} while the run was using it")
        if not is_same_file(self.path / "lock", self._lock.fileno()):
            lock = try_lock(self.path / "lock")
            if lock is None:  # the file was deleted, and another process has locked a new one
                raise in_use(self.path)
            self._lock.close()
            self._lock = lock
        if not is_same_file(self.checkpoints, self._checkpoints_handle):
            moved_to = _path_of(self._checkpoints_handle)
            what = f"moved to {moved_to}" if moved_to else "deleted"
            self._open_checkpoints()
            raise CheckpointError(f"{self.checkpoints}: {what} while the run was using it")
        self.metrics.check_in_place()

    def record_metrics(self) -> MetricsRecord | None:
        """Returns which lines of metrics.jsonl have been written so far."""
        return self.metrics.record()

    def sync_metrics(self) -> None:
        """Waits until all metrics are on the disk.

        Raises:
            CheckpointError: they cannot be written.
        """
        self.metrics.sync()

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
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _t: TracebackType | None,
    ) -> None:
        if self._trackers:
            events = self._trackers.close(quickly=isinstance(error, Preempted))
            for event in events:
                self.log_event("tracker", **event)
            with contextlib.suppress(OSError):  # a full disk under the printed log
                for warning in closing_warnings(events):
                    print(warning, file=sys.stderr)
        self._lock.close()
        os.close(self._handle)
        os.close(self._checkpoints_handle)
        if hasattr(self, "metrics"):
            self.metrics.close()


class RunDirectoryOfRankZero(RunDirectory):
    """The run directory in a process that does not write it: another one does."""

    def __init__(self, path: Path, resumed_from: Path | None = None) -> None:
        """Neither creates the directory nor locks it."""
        self.path = path
        self.resumed_from = resumed_from

    @override
    def prepare(self, recipe_yaml: str, state: TrainingState) -> list[str]:
        return []

    @override
    def log_metrics(self, kind: str, **values: Any) -> None:
        pass

    @override
    def start_trackers(self, recipe: Recipe, announce: Callable[[str], object]) -> None:
        pass

    @override
    def flush_metrics(self) -> str | None:
        return None

    @override
    def record_metrics(self) -> MetricsRecord | None:
        return None

    @override
    def sync_metrics(self) -> None:
        pass

    @override
    def log_event(self, kind: str, **values: Any) -> None:
        pass

    @override
    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        pass


def _path_of(descriptor: int) -> Path | None:
    """Returns the path of an open folder; None if it was deleted, or the system does not tell."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
    return path if is_same_file(path, descriptor) else None


def checkpoint_path(run: Path, step: int) -> Path:
    """Returns where the checkpoint of a step of a run belongs."""
    return run / "checkpoints" / f"step-{step:08d}"
