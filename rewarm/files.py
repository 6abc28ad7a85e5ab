"""Files on the local disk: atomic writes, locks, and the cache directory."""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path
from typing import IO, NamedTuple


class FileStamp(NamedTuple):
    """What changes when a file is replaced or written to."""

    size: int
    modified_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Returns the stamp of a file by its status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes a file atomically; the content is on the disk when this returns.

    After an error, or a kill at any moment, the file is either the complete old or the complete
    new one.

    Raises:
        OSError: the file cannot be written. The old file stays, and no partial file is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # never write through a link at this path
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def create_folder_of(path: Path) -> None:
    """Creates the folder of a file that a command writes: `--out figures/x.png`.

    Raises:
        OSError: it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)


def create_folder(path: Path) -> None:
    """Creates a folder, and those above it; their names are on the disk when this returns.

    Raises:
        OSError: a folder cannot be created.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_to_disk(folder.parent)


def sync_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(path: Path, other: Path) -> None:
    """Exchanges two files or folders, at once where the system and the file system can.

    Raises:
        OSError: one of them does not exist, or cannot be renamed.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    current_folder, at_once = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = (current_folder, os.fsencode(path), current_folder, os.fsencode(other))
    if renameat2 is not None and renameat2(*names, at_once) == 0:
        return
    other.stat()
    between = path.rename(path.with_name(f"{path.name}.{os.getpid()}.partial"))
    other.rename(path)
    between.rename(other)


def free_name(path: Path) -> Path:
    """Returns a path, with a number where something has its name: `x.jsonl`, `x-2.jsonl`."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def is_same_file(path: Path, descriptor: int) -> bool:
    """Returns whether a path leads to an open file or folder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def try_lock(path: Path) -> IO[str] | None:
    """Locks a file exclusively and returns it; None if another process holds the lock.

    Closing the file, or the end of the process, releases the lock.

    Raises:
        OSError: the file cannot be opened for writing.
    """
    lock = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def cache_dir() -> Path:
    """Returns the folder for files that can be computed or downloaded again: `~/.cache/rewarm`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rewarm"
