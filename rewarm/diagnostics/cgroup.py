"""The limits of this process's control groups (cgroups), of version 1 or 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 2**60
"""Version 1 writes a number above this one where there is no limit."""


def memory_limit(root: Path = Path("/")) -> int | None:
    """Returns the most memory, in bytes, that this process and its siblings may use together."""
    limits = [
        int(text)
        for folder in _folders("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdigit()
    ]
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Returns the cores that this process and its siblings may keep busy together."""
    quotas = []
    for folder in _folders("cpu", root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yields the folders of the groups that limit this process, the innermost first."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        hierarchy = mount / controllers  # version 2 has one hierarchy and names no controllers
        inner = hierarchy / group.lstrip("/")
        yield from (inner, *inner.parents[: len(inner.parents) - len(hierarchy.parents)])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
