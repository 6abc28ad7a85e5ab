"""The folder OUT.partial, in which `rewarm shard` writes until everything is complete.

```
OUT.partial/job.json              marks the folder as rewarm's, and states the command's settings
OUT.partial/lock                  locked by the process that writes
OUT.partial/train/finished.jsonl  the shards that are finished: see shard_folder.py
```
What to write is decided by the settings and by the content of the documents, not by where these
are read from: inputs may be moved, and what follows the finished shards may change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from rewarm.data.sharding.bad_records import BAD_RECORDS_FILE
from rewarm.data.sharding.dataset_card import CARD
from rewarm.data.sharding.shard_folder import FINISHED, read_finished
from rewarm.data.sharding.validation_split import SplitLimit
from rewarm.errors import DataError
from rewarm.files import atomic_write, is_same_file, sync_to_disk, try_lock

FOLDERS = ("train", "val", ".")
"""The names of the folders that a job may write, relative to its own."""

_MARKER = "job.json"
_LOCK = "lock"
_TAR = re.compile(r"\d{5,}\.tar")
_UNFINISHED = re.compile(r".+\.\d+\.partial")  # of `atomic_write`
_ATTEMPTS = 100


class JobSettings(BaseModel):
    """What decides which documents go to which shard; commands that differ here are others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str
    """Its `document_digest`."""
    eos: int
    shard_tokens: int
    validation: float
    where: tuple[tuple[str, str], ...] = ()


class _JobRecord(BaseModel):
    """job.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["rewarm-shard-job/3"] = "rewarm-shard-job/3"
    settings: JobSettings
    split_limit: SplitLimit | None = None
    """Which documents are held out, if the share of `settings` left a folder empty."""


def _as_text(setting: Any) -> str:
    if isinstance(setting, tuple):  # `where`
        return " ".join(f"{path}={value}" for path, value in setting) or "none"
    return f"{setting!s:.12}"


class ShardJob:
    """OUT.partial, locked for this process while the job is open."""

    def __init__(self, out: Path, settings: JobSettings) -> None:
        """Creates the folder, or continues in the one that the same command left.

        Args:
            out: the folder to create from it at the end; new or empty.
            settings: of this command.

        Raises:
            DataError: `out` is not empty, another process writes it, or OUT.partial is not
                rewarm's, or that of another command that has finished shards.
            OSError: the folder cannot be written.
        """
        self.out = out = _resolve(out)
        self.folder = out.with_name(out.name + ".partial")
        self._lock = self._acquire_lock()
        try:
            _check_empty(out)
            self._record = self._read_record(settings)
            self.removed_files = self._remove_unfinished_files()
            """Files that a process left unfinished when it was killed."""
        except BaseException:
            self.close()
            raise

    @property
    def split_limit(self) -> SplitLimit | None:
        """The limit that `restart` has set."""
        return self._record.split_limit

    @property
    def finished_shards(self) -> int:
        """Number of finished shards in all folders."""
        return sum(len(read_finished(folder)) for folder in self._folders())

    def restart(self, split_limit: SplitLimit | None) -> None:
        """Removes all shards, and records which documents are held out from now on."""
        self._remove_shards()
        self._write_record(_JobRecord(settings=self._record.settings, split_limit=split_limit))

    def publish(self) -> None:
        """Renames the complete folder to `out`."""
        _check_empty(self.out)
        self.folder.rename(self.out)  # it replaces an empty folder
        # After a kill before the rename, the same command has nothing to write again.
        _remove_records(self.out)
        sync_to_disk(self.out)
        sync_to_disk(self.out.parent)

    def remove(self) -> None:
        """Removes the folder, except for files that are not rewarm's.

        Raises:
            OSError: it cannot be removed.
        """
        self._remove_shards()
        for folder in self._folders():
            if folder != self.folder and not any(folder.iterdir()):
                folder.rmdir()
        (self.folder / _MARKER).unlink(missing_ok=True)
        (self.folder / _LOCK).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self.close()

    def _acquire_lock(self) -> IO[str]:
        """Creates the folder unless it is there, and locks it.

        Raises:
            DataError: the folder is not rewarm's, or another process has locked it.
        """
        path = self.folder / _LOCK
        for _ in range(_ATTEMPTS):
            _check_empty(self.out)
            self._check_ownership()
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = try_lock(path)
            except FileNotFoundError:  # the other process has just finished, or given up
                continue
            if lock is None:
                raise DataError(
                    f"{self.out}: another `rewarm shard` is writing it (it has locked {path}); "
                    "wait for its end, or name another --out"
                )
            if is_same_file(path, lock.fileno()):
                return lock
            lock.close()
        raise DataError(f"{path}: cannot be locked: other processes create and remove it")

    def _check_ownership(self) -> None:
        """Checks that the folder, if it exists, is rewarm's: nothing else is touched.

        Raises:
            DataError: it is not.
        """
        if not self.folder.exists():
            return
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else {""}
        if _MARKER in names:
            self._parse_record()
        elif any(name != _LOCK and not name.startswith(f"{_MARKER}.") for name in names):
            raise DataError(
                f"{self.folder}: needed while {self.out} is written, and not a folder of `rewarm "
                f"shard` (it has no {_MARKER}); move it, or name another --out"
            )

    def _read_record(self, settings: JobSettings) -> _JobRecord:
        """Returns the record that the same command left, or else a new one.

        Raises:
            DataError: the folder holds finished shards of another command.
        """
        new = _JobRecord(settings=settings)
        if not (self.folder / _MARKER).exists():
            return self._write_record(new)
        record = self._parse_record()
        if record.settings == settings:
            return record
        if finished := self.finished_shards:
            old, this = record.settings.model_dump(), settings.model_dump()
            differences = ", ".join(
                f"{key} {_as_text(old[key])} there and {_as_text(this[key])} here"
                for key in old
                if old[key] != this[key]
            )
            raise DataError(
                f"{self.folder}: holds {finished:,} finished shards of another command "
                f"({differences}); repeat that one, delete the folder, or name another --out"
            )
        self._remove_shards()
        return self._write_record(new)

    def _parse_record(self) -> _JobRecord:
        path = self.folder / _MARKER
        try:
            return _JobRecord.model_validate_json(path.read_bytes())
        except ValidationError:
            raise DataError(
                f"{path}: not written by this version of `rewarm shard`; delete {self.folder} to "
                "write all shards again, move it, or name another --out"
            ) from None

    def _write_record(self, record: _JobRecord) -> _JobRecord:
        atomic_write(self.folder / _MARKER, record.model_dump_json())
        self._record = record
        return record

    def _folders(self) -> list[Path]:
        return [path for name in FOLDERS if (path := self.folder / name).is_dir()]

    def _remove_shards(self) -> None:
        for folder in self._folders():
            for path in self._shard_files(folder):
                path.unlink()

    def _remove_unfinished_files(self) -> int:
        """Removes what a killed process was writing; returns the number of files."""
        removed = 0
        for folder in self._folders():
            finished = {line.shard.name for line in read_finished(folder)}
            for path in folder.iterdir():
                is_unfinished_tar = _TAR.fullmatch(path.name) and path.name not in finished
                if is_unfinished_tar or _UNFINISHED.fullmatch(path.name):
                    path.unlink()
                    removed += 1
        return removed

    @staticmethod
    def _shard_files(folder: Path) -> Iterator[Path]:
        """Yields the files in a folder that a `ShardWriter` has written."""
        names = {FINISHED, CARD, BAD_RECORDS_FILE, "index.json", "tokenizer.json"}
        for path in list(folder.iterdir()):
            if _TAR.fullmatch(path.name) or path.name in names:
                yield path


def _resolve(out: Path) -> Path:
    """Returns the folder that a link leads to.

    Raises:
        DataError: a folder cannot be renamed to it.
    """
    folder = Path(os.path.realpath(out)) if out.is_symlink() else out
    if folder.is_symlink():
        raise DataError(f"{out}: a link that leads to itself; name another folder")
    if os.path.ismount(folder):
        raise DataError(
            f"{out}: a mount point, which a finished folder cannot replace; name a folder in it"
        )
    return folder


def _check_empty(out: Path) -> None:
    """Checks that a folder is empty or does not exist.

    Raises:
        DataError: it is not. Records of a command that was killed when it had completed the folder
            are removed from it.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if _is_completed_job(out) and (lock := try_lock(out / _LOCK)):
        with lock:
            _remove_records(out)
        raise DataError(
            f"{out}: complete, by an earlier command that was killed at its very end; what it left "
            "beside the shards is removed; name another folder to write them again"
        )
    raise DataError(f"{out}: not empty; name another folder, or move this one first")


def _is_completed_job(out: Path) -> bool:
    try:
        _JobRecord.model_validate_json((out / _MARKER).read_bytes())
    except (OSError, ValidationError):
        return False
    return True


def _remove_records(out: Path) -> None:
    """Removes what is in a complete folder only because a job wrote it."""
    for name in FOLDERS:
        (out / name / FINISHED).unlink(missing_ok=True)
    (out / _MARKER).unlink(missing_ok=True)
    (out / _LOCK).unlink(missing_ok=True)
