"""Files on the local disk: written whole or not at all, locked by one process, cached."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def atomic_write(path: Path, text: str) -> None:
    """Puts a new file in a file's place, on the disk when this returns; or leaves the old one.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # never write through a link that someone left there
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
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


def locked(path: Path) -> IO[str] | None:
    """Returns a file's exclusive lock, held until it is closed; None while another process has it.

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
