"""The disk that runs are written to."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rewarm.diagnostics.finding import MachineProblem
from rewarm.files import cache_dir, try_lock
from rewarm.quantities import format_bytes

LEAST_FREE = 10**10
"""Two checkpoints of Pythia-410M with optimizer state, 12 bytes for each of 405 M parameters."""

SLOWEST_WRITE = 50 * 10**6
"""Bytes per second: at this speed such a checkpoint takes 100 s."""

FEWEST_INODES = 10_000

_WRITE_SECONDS, _LARGEST_WRITE = 0.5, 2**26


@dataclass(frozen=True)
class Disk:
    """A folder and its file system.

    Attributes:
        folder: where runs would be written.
        file_system: its type, such as ext4 or nfs4.
        free: bytes that this user may write.
        total: bytes.
        free_inodes: files that can be created; None if the file system has no such number.
        write_speed: bytes per second that reach the disk; None if nothing can be written.
        can_lock: whether files can be locked, as rewarm does with a run directory.
        error: why nothing can be written.
        cache: where rewarm caches what can be computed or downloaded again.
    """

    folder: str
    file_system: str
    free: int
    total: int
    free_inodes: int | None
    write_speed: float | None
    can_lock: bool
    error: str | None
    cache: str

    def facts(self) -> dict[str, str]:
        """Returns space and speed."""
        return {
            "folder": f"{self.folder} ({self.file_system})",
            "free": f"{format_bytes(self.free)} of {format_bytes(self.total)}",
            "write speed": f"{format_bytes(int(self.write_speed))}/s, fsync included"
            if self.write_speed
            else f"not measured: {self.error}",
            "cache": self.cache,
        }

    def problems(self) -> list[MachineProblem]:
        """Returns why runs cannot be written here, or not well."""
        if self.error:
            return [
                MachineProblem(
                    f"{self.folder}: nothing can be written: {self.error}",
                    "a folder that runs can be written to",
                    "check its permissions, or name another folder: rewarm doctor DIR",
                )
            ]
        return [*self._space_problems(), *self._type_problems()]

    def _space_problems(self) -> list[MachineProblem]:
        problems = []
        if self.free < LEAST_FREE:
            problems.append(
                MachineProblem(
                    f"{self.folder}: {format_bytes(self.free)} are free",
                    f"at least {format_bytes(LEAST_FREE)}, two checkpoints of Pythia-410M; "
                    "rewarm plan prints what a recipe needs",
                    "free disk space, set keep in the recipe, or write runs to another disk",
                )
            )
        if self.free_inodes is not None and self.free_inodes < FEWEST_INODES:
            problems.append(
                MachineProblem(
                    f"{self.folder}: {self.free_inodes:,} more files can be created",
                    f"at least {FEWEST_INODES:,}",
                    "delete files that are not needed, or ask for a higher quota of files",
                )
            )
        return problems

    def _type_problems(self) -> list[MachineProblem]:
        problems = []
        if self.write_speed is not None and self.write_speed < SLOWEST_WRITE:
            problems.append(
                MachineProblem(
                    f"{self.folder}: {format_bytes(int(self.write_speed))}/s are written",
                    f"at least {format_bytes(SLOWEST_WRITE)}/s: a checkpoint of Pythia-410M is "
                    "4.86 GB",
                    "write runs to a local or parallel disk, or save less often (every.save)",
                )
            )
        if not self.can_lock:
            problems.append(
                MachineProblem(
                    f"{self.folder}: files cannot be locked on {self.file_system}",
                    "flock, with which rewarm keeps a second process out of a run directory",
                    "write runs to another disk, or mount this one with locks (Lustre: flock)",
                )
            )
        if self.file_system in ("tmpfs", "ramfs"):
            problems.append(
                MachineProblem(
                    f"{self.folder} is in memory ({self.file_system})",
                    "a disk: what is in memory counts as used memory, and is lost at a reboot",
                    "write runs to a disk",
                )
            )
        return problems


def examine_disk(folder: Path) -> Disk:
    """Returns the file system of a folder, and measures it with a file that is removed again.

    Args:
        folder: one that may not exist yet: then the one that it would be created in.
    """
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir()
    )
    speed, can_lock, error = None, True, None
    try:
        with TemporaryDirectory(prefix=".rewarm-doctor-", dir=existing) as work:
            can_lock = _can_lock(Path(work))
            speed = measure_write_speed(Path(work) / "file")
    except OSError as failure:
        error = failure.strerror or str(failure)
    state = os.statvfs(existing)
    return Disk(
        folder=str(existing),
        file_system=_file_system_type(existing, Path("/proc/mounts").read_text()),
        free=state.f_bavail * state.f_frsize,
        total=state.f_blocks * state.f_frsize,
        free_inodes=state.f_favail if state.f_files else None,
        write_speed=speed,
        can_lock=can_lock,
        error=error,
        cache=str(cache_dir()),
    )


def measure_write_speed(path: Path) -> float:
    """Writes a file for about half a second, and returns bytes per second.

    Every write is twice as long as the one before, and synced to the disk. The last one counts: in
    it, the disk's latency matters least.

    Raises:
        OSError: the file cannot be written.
    """
    size, seconds, left = 2**19, 0.0, _WRITE_SECONDS
    block = os.urandom(size)  # a file system may compress other bytes
    with path.open("wb", buffering=0) as file:
        while left > 0 and size < _LARGEST_WRITE:
            size *= 2
            start = time.perf_counter()
            for _ in range(size // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
            left -= seconds
    return size / seconds


def _can_lock(folder: Path) -> bool:
    lock = try_lock(folder / "lock")
    if lock is None:
        return False
    lock.close()
    return True


def _file_system_type(folder: Path, mounts: str) -> str:
    """Returns the type of the file system, from the lines of /proc/mounts."""
    path = os.path.realpath(folder)
    kinds = {}
    for line in mounts.splitlines():
        _, mount, kind, *_ = line.split(" ")
        kinds[mount.replace(r"\040", " ")] = kind  # a later mount hides an earlier one
    return next((kinds[p] for p in (path, *map(str, Path(path).parents)) if p in kinds), "unknown")
