"""The cores, memory, limits and compiler of this machine."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from rewarm.diagnostics import cgroup
from rewarm.diagnostics.finding import MachineProblem
from rewarm.quantities import format_bytes

FEWEST_CORES_PER_GPU = 2
"""One for the training process, one for reading data and writing checkpoints."""

LEAST_MEMORY_PER_GPU, LEAST_MEMORY_ON_CPU = 4 * 10**9, 10**9
"""A process needs about so much for PyTorch (and CUDA) before it reads any weights."""

LEAST_SHARED_MEMORY = 2**30
"""NVIDIA's advice for NCCL in containers: `--shm-size=1g`. Docker's default is 64 MB.
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html"""

LEAST_OPEN_FILES = 4096


@dataclass(frozen=True)
class Cpu:
    """The cores.

    Attributes:
        model: the processor's name.
        installed: cores of the machine.
        allowed: those that this process may run on (its affinity).
        quota: how many of them it may keep busy (its control group); None for all.
        load: processes that ran or waited in the last minute.
        omp_threads: OMP_NUM_THREADS, None if it is not set or no number.
        gpus: visible GPUs.
    """

    model: str
    installed: int
    allowed: int
    quota: float | None
    load: float
    omp_threads: int | None
    gpus: int

    @property
    def usable(self) -> float:
        """How many cores can be kept busy."""
        return min(self.allowed, self.quota or self.allowed)

    def facts(self) -> dict[str, str]:
        """Returns the cores."""
        quota = f", limited to the time of {self.quota:g} by the cgroup" if self.quota else ""
        return {
            "processor": self.model,
            "cores": f"{self.allowed} of {self.installed} usable{quota}; load {self.load:.1f}",
        }

    def problems(self) -> list[MachineProblem]:
        """Returns whether threads or processes outnumber cores."""
        problems = []
        threads = self.omp_threads or (self.allowed if self.gpus == 0 else 0)
        if threads > self.usable:
            source = f"OMP_NUM_THREADS={threads}" if self.omp_threads else "OMP_NUM_THREADS unset"
            problems.append(
                MachineProblem(
                    f"{source}: {threads} threads on {self.usable:g} usable cores",
                    "at most one thread for each core: others wait for each other",
                    f"export OMP_NUM_THREADS={max(1, int(self.usable))}",
                )
            )
        needed = FEWEST_CORES_PER_GPU * self.gpus
        if self.usable < needed:
            problems.append(
                MachineProblem(
                    f"{self.usable:g} usable cores for {self.gpus} GPUs",
                    f"at least {needed}: one for training and one for data on each GPU",
                    "request more: --cpus-per-task in Slurm, resources.requests.cpu in Kubernetes",
                )
            )
        return problems


@dataclass(frozen=True)
class Memory:
    """The memory of the host, in bytes; `limit` is that of the control group, None if none."""

    total: int
    available: int
    limit: int | None
    shared_total: int
    shared_free: int
    gpus: int

    def facts(self) -> dict[str, str]:
        """Returns memory, its limit, and /dev/shm."""
        return {
            "memory": f"{format_bytes(self.available)} of {format_bytes(self.total)} available",
            "cgroup limit": format_bytes(self.limit) if self.limit else "none",
            "/dev/shm": f"{format_bytes(self.shared_free)} of {format_bytes(self.shared_total)} "
            "free",
        }

    def problems(self) -> list[MachineProblem]:
        """Returns whether memory, or what NCCL needs of it, is short."""
        problems = []
        needed = self.gpus * LEAST_MEMORY_PER_GPU or LEAST_MEMORY_ON_CPU
        usable = min(self.available, self.limit or self.available)
        if usable < needed:
            reason = "the cgroup's limit" if usable == self.limit else "what is available"
            problems.append(
                MachineProblem(
                    f"{format_bytes(usable)} of host memory, {reason}",
                    f"at least {format_bytes(needed)}, and the weights on top",
                    "request more: --mem in Slurm, resources.limits.memory in Kubernetes",
                )
            )
        if self.gpus > 1 and self.shared_total < LEAST_SHARED_MEMORY:
            problems.append(
                MachineProblem(
                    f"/dev/shm has {format_bytes(self.shared_total)}",
                    f"at least {format_bytes(LEAST_SHARED_MEMORY)}: NCCL exchanges data there",
                    "docker run --shm-size=8g (or --ipc=host); in Kubernetes, mount an emptyDir "
                    "with medium: Memory at /dev/shm",
                )
            )
        return problems


@dataclass(frozen=True)
class Limits:
    """Limits of the process; None is unlimited."""

    open_files: int | None
    open_files_hard: int | None
    locked_memory: int | None
    infiniband: list[str]

    def facts(self) -> dict[str, str]:
        """Returns the limits."""
        soft, hard = (_number(n) for n in (self.open_files, self.open_files_hard))
        return {
            "open files": f"{soft}, can be raised to {hard}",
            "locked memory": "unlimited"
            if self.locked_memory is None
            else format_bytes(self.locked_memory),
        }

    def problems(self) -> list[MachineProblem]:
        """Returns the limits that are too low."""
        problems = []
        if self.open_files_hard is not None and self.open_files_hard < LEAST_OPEN_FILES:
            problems.append(
                MachineProblem(
                    f"at most {self.open_files_hard:,} files may be open",
                    f"at least {LEAST_OPEN_FILES:,}: every shard in use is an open file",
                    "raise the hard limit: ulimit -Hn, /etc/security/limits.conf, docker run "
                    "--ulimit nofile=65536",
                )
            )
        if self.infiniband and self.locked_memory is not None:
            problems.append(
                MachineProblem(
                    f"locked memory is limited to {format_bytes(self.locked_memory)}, and there "
                    f"is InfiniBand ({', '.join(self.infiniband)})",
                    "unlimited: NCCL locks what InfiniBand reads and writes",
                    "ulimit -l unlimited; docker run --ulimit memlock=-1; in Slurm, "
                    "LimitMEMLOCK=infinity of slurmd",
                )
            )
        return problems


@dataclass(frozen=True)
class Compiler:
    """What Triton and torch.compile need to build kernels: a C compiler and Python's headers."""

    command: str | None
    headers: str | None
    gpus: int

    def facts(self) -> dict[str, str]:
        """Returns both."""
        return {"C compiler": self.command or "none", "Python.h": self.headers or "not found"}

    def problems(self) -> list[MachineProblem]:
        """Returns what is missing; without a GPU nothing is compiled with it."""
        names = {"a C compiler": self.command, "Python.h": self.headers}
        missing = [name for name, path in names.items() if path is None]
        if not missing or not self.gpus:
            return []
        return [
            MachineProblem(
                f"not found: {' and '.join(missing)}",
                "a C compiler and Python's headers: Triton builds a launcher for its kernels",
                "apt-get install gcc python3-dev (or load the cluster's gcc module); CC names "
                "another compiler",
            )
        ]


def examine_cpu(gpus: int) -> Cpu:
    """Returns the cores."""
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    installed = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Cpu(
        model=match[1] if match else os.uname().machine,
        installed=installed,
        allowed=len(os.sched_getaffinity(0)),
        quota=cgroup.cpu_quota(),
        load=os.getloadavg()[0],
        omp_threads=int(threads) if threads.isdigit() else None,
        gpus=gpus,
    )


def examine_memory(gpus: int) -> Memory:
    """Returns the memory of the host and of /dev/shm."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    shared = shutil.disk_usage("/dev/shm")
    return Memory(
        total=1024 * int(rows["MemTotal"].split()[0]),
        available=1024 * int(rows["MemAvailable"].split()[0]),
        limit=cgroup.memory_limit(),
        shared_total=shared.total,
        shared_free=shared.free,
        gpus=gpus,
    )


def examine_limits() -> Limits:
    """Returns the limits of this process, which those that it starts inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    folder = Path("/sys/class/infiniband")
    return Limits(
        open_files=_or_none(soft),
        open_files_hard=_or_none(hard),
        locked_memory=_or_none(locked),
        infiniband=sorted(path.name for path in folder.iterdir()) if folder.exists() else [],
    )


def examine_compiler(gpus: int) -> Compiler:
    """Returns the compiler that Triton would use."""
    names = (os.environ.get("CC"), "gcc", "clang", "cc")
    found = (shutil.which(name) for name in names if name)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return Compiler(next(filter(None, found), None), str(header) if header.exists() else None, gpus)


def _or_none(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _number(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"
