"""Work that one process on a node does for all: downloading a shard, computing its sha256.

A process that works holds a lock on a file, and the others wait for its result. The lock ends with
its process, so that another one takes over after a kill.

A verified file has a record: an empty file in `~/.cache/rewarm/verified`, whose name is a digest of
the launch, the file's stamp and its sha256. A file that was replaced or written to has another
stamp, and so no record. Another launch has other records: each launch reads each file once, which
also finds damage that leaves the stamp as it was (of a disk, for example).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from rewarm.files import FileStamp, cache_dir, is_same_file
from rewarm.reader_threads import pause_reading

_POLL_SECONDS = 0.05
_RECORDS_KEPT_SECONDS = 7 * 24 * 3600
"""After which a record is removed; a launch that still runs verifies the file again."""


def once_per_node(lock: Path, is_done: Callable[[], bool], work: Callable[[], bool]) -> bool:
    """Does work in one of the processes that ask for it, while the others wait.

    If that process ends, fails or returns False, the next one does the work. Where the file system
    has no locks, or `lock` cannot be created, each process does it.

    Args:
        lock: path of the lock, a file that exists while a process does the work.
        is_done: returns whether the result is there.
        work: does the work; returns whether it succeeded.

    Returns:
        True if the work is done, else what `work` returned.

    Raises:
        ReadAbandonedError: this is a reader thread, and it was closed while it waited.
    """
    while not is_done():
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a", encoding="utf-8")
        except OSError:
            return work()
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pause_reading(_POLL_SECONDS)
                continue
            except OSError:
                return work()
            if not is_same_file(lock, file.fileno()):  # removed by the process that held it
                continue
            try:
                return is_done() or work()
            finally:
                with contextlib.suppress(OSError):
                    lock.unlink()
    return True


def has_sha256(stamp: FileStamp, sha256: str, compute_sha256: Callable[[], str]) -> bool:
    """Returns whether a file has a sha256, which one process of a launch computes on each node.

    Args:
        stamp: the file's stamp, from before `compute_sha256` is called.
        sha256: the sha256 that is expected.
        compute_sha256: reads the file and returns its sha256.
    """
    record = _record(stamp, sha256)
    if record is None:
        return compute_sha256() == sha256

    def compare() -> bool:
        equal = compute_sha256() == sha256
        if equal:
            record_sha256(stamp, sha256)
        return equal

    return once_per_node(record.with_suffix(".lock"), record.exists, compare)


def record_sha256(stamp: FileStamp, sha256: str) -> None:
    """Records for the processes of this launch that a file has a sha256."""
    record = _record(stamp, sha256)
    if record is not None:
        with contextlib.suppress(OSError):  # then each process computes it
            record.parent.mkdir(parents=True, exist_ok=True)
            _remove_old_records(record.parent)
            record.touch()


def _record(stamp: FileStamp, sha256: str) -> Path | None:
    launch = _launch()
    if launch is None:
        return None
    key = " ".join(map(str, (launch, *stamp, sha256)))
    return cache_dir() / "verified" / hashlib.sha256(key.encode()).hexdigest()


@functools.cache
def _launch() -> str | None:
    """Returns what only the processes have in common that one launcher started on this node.

    That is the launcher: their parent process, by its id and start time. None if this process was
    started alone, or where this cannot be read.
    """
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == "1":
        return None
    parent, restarts = os.getppid(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    start_time = status.rpartition(")")[2].split()[19]  # field 22 of proc(5)
    return f"{boot} {parent} {start_time} {restarts}"


@functools.cache
def _remove_old_records(folder: Path) -> None:
    """Removes the records of launches long ago, once per process."""
    for record in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if time.time() - record.stat().st_mtime > _RECORDS_KEPT_SECONDS:
                record.unlink()
