"""Which GPUs each worker of `rewarm compare` uses: every worker as many as every other.

A worker keeps its GPUs for all runs that it takes, one after the other, so that every run of a
study is on the same number of them.
"""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple


class WorkerGpus(NamedTuple):
    """The GPUs of each worker."""

    sets: list[list[str]]
    """Of each worker, as `CUDA_VISIBLE_DEVICES` names them; empty on a machine without any."""
    unused: list[str]
    """The GPUs that are left over."""

    @property
    def per_worker(self) -> int:
        """GPUs of a worker; 0 on a machine without any."""
        return len(self.sets[0])

    def as_text(self) -> str:
        """Returns the GPUs of each worker as one line; empty on a machine without any."""
        if not self.per_worker:
            return ""
        sets = " | ".join(map(",".join, self.sets))
        count = len(self.sets)
        if len(set(map(tuple, self.sets))) < count:
            return f"fewer than the {count} workers, so that several share one: {sets}"
        workers = f"each of {count} workers" if count > 1 else "the runs, one after the other"
        unused = f"; not used: {','.join(self.unused)}" if self.unused else ""
        return f"{self.per_worker} for {workers}: {sets}{unused}"


def divide_gpus(gpus: list[str], workers: int) -> WorkerGpus:
    """Returns the GPUs of each worker: equally many, or one that several share if there are fewer.

    Args:
        gpus: their names.
        workers: runs at the same time.
    """
    if not gpus:
        return WorkerGpus([[] for _ in range(workers)], [])
    if len(gpus) < workers:
        return WorkerGpus([[gpus[index % len(gpus)]] for index in range(workers)], [])
    size = len(gpus) // workers
    sets = [gpus[size * index : size * (index + 1)] for index in range(workers)]
    return WorkerGpus(sets, gpus[size * workers :])


def visible_gpus() -> list[str]:
    """Returns the names of the GPUs that this process may use, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        devices = Path("/dev").glob("nvidia[0-9]*")
        return sorted((path.name.removeprefix("nvidia") for path in devices), key=int)
    names = [name.strip() for name in visible.split(",")]
    # As CUDA does: an invalid name, such as -1, hides those after it.
    return list(takewhile(lambda name: name and not name.startswith("-"), names))


def worker_environment(gpus: list[str], threads: int | None) -> dict[str, str]:
    """Returns the environment of a run, which gives it GPUs and a number of CPU threads.

    Args:
        gpus: the worker's; without any, the environment names none either.
        threads: CPU threads; None to leave the number to PyTorch.
    """
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment
