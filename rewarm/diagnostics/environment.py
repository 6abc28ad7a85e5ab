"""The environment variables that a run may depend on, and the network interfaces."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rewarm.diagnostics.finding import MachineProblem
from rewarm.errors import hide_credentials, printable

_RELEVANT = re.compile(
    r"(CUDA|NVIDIA|NCCL|TORCH|TORCHELASTIC|TORCHINDUCTOR|PYTORCH|OMP|GOMP|KMP|MKL|OPENBLAS|HF|"
    r"TRANSFORMERS|TOKENIZERS|TRITON|REWARM|UCX|FI)_\w+"
    r"|SLURM_(JOB_ID|JOB_NUM_NODES|JOB_NODELIST|NTASKS|NTASKS_PER_NODE|CPUS_PER_TASK|PROCID|"
    r"LOCALID|NODEID|GPUS_ON_NODE|MEM_PER_NODE|RESTART_COUNT|JOB_PARTITION)"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|XDG_CACHE_HOME|TMPDIR|CC|VIRTUAL_ENV|CONDA_PREFIX"
)
_SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASS|KEY|CREDENTIAL|AUTH|COOKIE|JWT", re.IGNORECASE)
_LONGEST = 200

_WARNINGS = {
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
    "NCCL_P2P_DISABLE": "GPUs exchange data through host memory",
    "NCCL_SHM_DISABLE": "GPUs exchange data through the network",
    "NCCL_IB_DISABLE": "InfiniBand is not used",
}
"""Variables for finding a fault, and what setting them to 1 costs."""


@dataclass(frozen=True)
class Environment:
    """Variables by name, those with secrets left out, and the network interfaces."""

    variables: dict[str, str]
    interfaces: list[str]

    def facts(self) -> dict[str, str]:
        """Returns all of them."""
        variables = {
            name: value.replace(":", ", ") if name.endswith("PATH") else value
            for name, value in self.variables.items()
        }
        return {"network": ", ".join(self.interfaces) or "none", **variables}

    def problems(self) -> list[MachineProblem]:
        """Returns settings that make training slow."""
        return [
            MachineProblem(
                f"{name}={self.variables[name]}: {cost}",
                "unset, except to find a fault",
                f"unset {name}",
            )
            for name, cost in _WARNINGS.items()
            if self.variables.get(name, "0") != "0"
        ]


def examine_environment() -> Environment:
    """Returns the variables and interfaces of this process."""
    folder = Path("/sys/class/net")
    interfaces = [_describe_interface(path) for path in sorted(folder.iterdir())]
    return Environment(relevant_variables(dict(os.environ)), list(filter(None, interfaces)))


def relevant_variables(environment: dict[str, str]) -> dict[str, str]:
    """Returns the variables that a run may depend on, without secrets, sorted by name.

    A variable whose name looks like that of a secret is only said to be set.
    """
    return {
        name: "(set, not shown)" if _SECRET.search(name) else _shorten(hide_credentials(value))
        for name, value in sorted(environment.items())
        if _RELEVANT.fullmatch(name)
    }


def _shorten(value: str) -> str:
    text = printable(value).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _describe_interface(path: Path) -> str | None:
    """Returns the name of a network interface that is up, with its speed where it is known."""
    if path.name == "lo" or (path / "operstate").read_text().strip() == "down":
        return None
    try:
        megabits = int((path / "speed").read_text())
    except (OSError, ValueError):  # a virtual interface has none
        return path.name
    return f"{path.name} ({megabits / 1000:g} Gbit/s)" if megabits > 0 else path.name
