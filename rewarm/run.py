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

from rewarm import contract, lineage, manifest
from rewarm.bases import checkpoints, last_checkpoint
from rewarm.document import Document
from rewarm.errors import CheckpointError, RecipeError, printable
from rewarm.recipe import Recipe
from rewarm.sections import Keep

_GONE = ".deleting"

# What may differ on --resume without a word: it decides what is written, not what is learnt.
_HARMLESS = (
    *("run", "every", "keep", "on_save_error", "guard.patience"),
    *("data.validation", "data.workers", "data.cache", "data.verify"),
)


class Run:
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
            self.changes = changes(self.resumed, recipe) if self.resumed else []
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
            if path.name.startswith("step-") and path.suffix in (".partial", _GONE)
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

    def prune(self, keep: Keep, named: int | None) -> list[str]:
        """Deletes checkpoints that need not be kept, and returns their names.

        Those of the last `keep.last`, of every `keep.every` steps and of step `named` stay, and
        whatever is not called step-NNNNNNNN.
        """
        there = checkpoints(self.directory)
        removed = []
        for step in sorted(there.keys() - keep.among(list(there), named)):
            # A name that no one takes for a checkpoint, before the first file goes.
            try:
                gone = there[step].rename(there[step].with_suffix(_GONE))
            except OSError:  # another's, say: one too many is no reason to end a run
                continue
            shutil.rmtree(gone, ignore_errors=True)
            removed.append(there[step].name)
        return removed

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


def changes(checkpoint: Path, recipe: Recipe) -> list[str]:
    """Returns how a recipe would change the outcome of a run that goes on behind a checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    manifest.verify(checkpoint, only="recipe.yaml")  # damage is not a change of mind
    try:
        said = Document.load(checkpoint / "recipe.yaml").data
    except RecipeError as error:
        raise CheckpointError(
            f"{checkpoint}: its recipe cannot be read: {error.problems[0]}; use another checkpoint"
        ) from None
    with contextlib.suppress(CheckpointError):  # its plug-in may be gone
        said = lineage.made_by(checkpoint).document()  # with settings that are newer than it
    began, now = flat(said), flat(recipe.document())
    if now["batch.microbatch"] == "auto":
        now["batch.microbatch"] = began.get("batch.microbatch")
    changed = [
        printable(f"{path}: {began.get(path, 'not set')} → {now.get(path, 'not set')}")
        for path in [*began, *(path for path in now if path not in began)]
        if began.get(path) != now.get(path)
        and not any(path == h or path.startswith(f"{h}.") for h in _HARMLESS)
    ]
    return changed + contract.curve_changes(checkpoint, recipe)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        CheckpointError: the file cannot be read, or is damaged before its last line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed = json.loads(line)
            if not ("kind" in parsed and isinstance(parsed["step"], int)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                break
            raise CheckpointError(f"{path}:{number}: not a line of metrics") from None
        read.append(parsed)
    return read


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Returns nested settings as {"a.b": value}."""
    if not isinstance(data, dict):
        return {path: data}
    return {
        inner: value
        for key, part in data.items()
        for inner, value in flat(part, f"{path}.{key}" if path else str(key)).items()
    }


def _replace(path: Path, text: str) -> None:
    """Puts a whole new file in a file's place, or leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # and never through a link that someone left there
    with partial.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
