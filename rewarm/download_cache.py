"""A folder of downloaded files, of bounded size, that all processes on this machine share.

```
CACHE/FOLDER/00000.tar              complete; its readers hold a shared lock on it (flock)
CACHE/FOLDER/00000.tar.PID.partial  being downloaded by process PID
CACHE/FOLDER/00000.tar.lock         locked by that process
```
If the files take up too much space, those that no process has open are deleted, the least recently
used first. The system releases the locks of a process that ends, and another one removes what it
left. The locks are `fcntl.flock`, and not of `filelock`, which has none that readers share.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rewarm import open_files
from rewarm.errors import DataError
from rewarm.files import FileStamp, is_same_file, try_lock
from rewarm.once_per_node import once_per_node
from rewarm.quantities import format_bytes
from rewarm.reader_threads import pause_reading

_POLL_SECONDS = 0.02
_OPEN_ATTEMPTS = 100
_ABANDONED_SECONDS = 3600.0
"""Without data, after which a partial file is removed where the file system has no locks."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DownloadCache:
    """Files in the subfolders of one folder, which several processes may use at once."""

    folder: Path
    evictable_files: str
    """Pattern of the file names that may be deleted if the cache is too large: `*.tar`."""
    max_bytes: int
    """Upper bound on the total size of these. Files in use count, and are never deleted."""

    def open(self, path: Path, size: int | None, download: Callable[[Path], None]) -> int:
        """Returns the descriptor of a file; the file is not evicted until it is closed.

        Args:
            path: of the file, in a subfolder of the cache.
            size: its bytes; a file of another size is replaced. None if it is not known.
            download: writes the file to the path that it is called with.

        Raises:
            DataError: the cache cannot be read or written, or `download` raised it.
            ReadAbandonedError: this is a reader thread, and it was closed while it waited.
        """
        downloaded: list[int] = []

        def fetch() -> bool:
            _report_wrong_size(path, size)
            try:
                downloaded.append(self._fetch(path, download))
            except OSError as error:
                raise DataError(f"{self.folder}: cannot be written: {error.strerror}") from None
            self._evict(self.max_bytes)
            return True

        _remove_leftovers_once(self.folder)
        for _ in range(_OPEN_ATTEMPTS):
            once_per_node(_lock_of(path), lambda: _is_complete(path, size), fetch)
            descriptor = downloaded[0] if downloaded else _open_shared(path)
            if descriptor is not None:
                _set_access_time(descriptor)
                return descriptor
            pause_reading(_POLL_SECONDS)  # another process is deleting it
        raise DataError(
            f"{path}: deleted before it was opened, {_OPEN_ATTEMPTS} times; no other program "
            "should delete files in the download cache"
        )

    def _fetch(self, path: Path, download: Callable[[Path], None]) -> int:
        """Downloads a file, and returns its descriptor."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.folder, except_of=path)
        try:
            self._download(partial, download)
            descriptor = _open_shared(partial)  # locked before another process can evict it
            assert descriptor is not None
            partial.rename(path)
            return descriptor
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _download(self, partial: Path, download: Callable[[Path], None]) -> None:
        """Calls `download`; again after eviction if the disk is full below the cache's limit."""
        try:
            download(partial)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._evict(0):
                raise
            download(partial)

    def discard(self, path: Path, damaged: FileStamp) -> None:
        """Deletes a damaged file, unless another process has already replaced it."""
        with contextlib.suppress(OSError):
            if FileStamp.of(path.stat()) == damaged:
                path.unlink()

    def _evict(self, max_bytes: int) -> bool:
        """Deletes files that no process has open, the least recently used first.

        Returns:
            whether a file was deleted.
        """
        files = _statuses(self.folder.glob(f"*/{self.evictable_files}"))
        total = before = sum(status.st_size for status in files.values())
        for path, status in sorted(files.items(), key=lambda item: item[1].st_atime_ns):
            if total > max_bytes and _delete_unused(path):
                total -= status.st_size
        return total < before


def _open_shared(path: Path) -> int | None:
    """Opens a file and locks it for reading; None if it does not exist, or is being deleted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            open_files.release_reserve()  # what was reached is saved after this error
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks, where an open file stays readable all the same
        pass
    if is_same_file(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _delete_unused(path: Path) -> bool:
    """Deletes a file unless a process has it open; returns whether it was deleted."""
    with contextlib.suppress(OSError), path.open("r+b") as file:  # NFS locks what can be written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        if is_same_file(path, file.fileno()):
            path.unlink()
            return True
    return False


def _is_complete(path: Path, size: int | None) -> bool:
    """Returns whether a file exists with its size: it has its name only when it is complete."""
    try:
        return path.stat().st_size == size or size is None
    except OSError:
        return False


def _report_wrong_size(path: Path, size: int | None) -> None:
    with contextlib.suppress(OSError):  # it is not there
        found = path.stat().st_size
        if size is not None and found != size:
            _logger.warning(
                "warning: %s: %s bytes long in the download cache, and it should be %s; it is "
                "downloaded again",
                *(path, f"{found:,}", f"{size:,}"),
            )


def _set_access_time(descriptor: int) -> None:
    """Records that a file is used now. A new modification time would mean another content."""
    with contextlib.suppress(OSError):  # a file of another user
        os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


@functools.cache
def _remove_leftovers_once(folder: Path) -> None:
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path, except_of: Path | None = None) -> None:
    """Removes partial files and locks of processes that have ended, and reports how many.

    Args:
        folder: of the cache.
        except_of: a file whose lock this process holds.
    """
    partials = _statuses(folder.glob("*/*.partial"))
    locks = _statuses(folder.glob("*/*.lock"))
    files = {path.with_name(path.name.rsplit(".", 2)[0]) for path in partials}
    files |= {path.with_suffix("") for path in locks}
    removed = {path for file in files - {except_of} for path in _leftovers_of(file, partials)}
    if removed:
        size = sum(status.st_size for path, status in partials.items() if path in removed)
        _logger.warning(
            "warning: %s: partial downloads of ended processes removed: %d (%s)",
            *(folder, len(removed), format_bytes(size)),
        )


def _leftovers_of(file: Path, partials: dict[Path, os.stat_result]) -> list[Path]:
    """Removes the partial downloads of a file, if no process downloads it; returns their paths."""
    of_file = [path for path in partials if path.name.rsplit(".", 2)[0] == file.name]
    lock_path, removed = _lock_of(file), []
    with contextlib.suppress(OSError):
        lock = try_lock(lock_path)
        if lock is None:  # in use, or a file system without locks
            end = time.time() - _ABANDONED_SECONDS
            of_file = [path for path in of_file if partials[path].st_mtime < end]
        with lock or contextlib.nullcontext():
            if lock and not is_same_file(lock_path, lock.fileno()):
                return []
            for path in of_file:
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    path.unlink()
                    removed.append(path)
            if lock:
                lock_path.unlink()
    return removed


def _lock_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _statuses(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Returns the status of each file that exists: other processes may remove some."""
    statuses = {}
    for path in paths:
        with contextlib.suppress(OSError):
            statuses[path] = path.stat()
    return statuses
