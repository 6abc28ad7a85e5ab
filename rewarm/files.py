"""Files on the local disk: atomic writes, locks, and the cache directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def atomic_write(path: Path, text: str) -> None:
    """Replaces a file by a new one that is on the disk when this returns.

    An error, or a kill at any moment, leaves the old file or the new one, whole.

    Raises:
        OSError: it cannot be written; the old file stays, and no other is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # never write through a link that someone placed here
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> IO[str] | None:
    """Returns the exclusively locked file; None while another process holds the lock.

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
    """Returns the folder for what can be computed or downloaded again: `~/.cache/rewarm`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rewarm"
