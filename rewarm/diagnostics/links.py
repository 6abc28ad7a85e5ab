"""How the GPUs of a machine are connected, and how fast."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from rewarm.diagnostics.finding import MachineProblem, run_command, run_module
from rewarm.diagnostics.gpu import SMI_SECONDS, TorchView
from rewarm.safe_loading import parse_json

SLOWEST_LINK = 5e9
"""Bytes per second: what PCIe 3.0 x8 carries; less means that traffic goes through the host."""

SLOWEST_NVLINK = 50e9

_LINK_SECONDS = 90.0
_MESSAGE = 2**28
"""Bytes of an all-reduce: enough for bandwidth, and not latency, to decide."""

_MEMORY_TO_MEASURE = 3 * 10**9
"""Bytes that NCCL, a CUDA context and the message need on each GPU."""


@dataclass(frozen=True)
class Links:
    """How the visible GPUs are connected.

    Attributes:
        kinds: number of GPU pairs of the machine by the name that `nvidia-smi topo` gives to their
            connection; None if it does not run.
        without_peer_access: pairs of GPUs that cannot read each other's memory.
        bytes_per_second: bus bandwidth of an all-reduce; None if it was not measured.
        error: why the all-reduce failed.
        busy: GPUs with too little free memory to try it.
    """

    kinds: dict[str, int] | None
    without_peer_access: list[tuple[int, int]]
    bytes_per_second: float | None
    error: str | None
    busy: list[int]

    def facts(self) -> dict[str, str]:
        """Returns connections, peer access and measured speed."""
        kinds = [
            f"{kind} ({pairs} pair{'s' * (pairs > 1)})"
            for kind, pairs in (self.kinds or {}).items()
        ]
        missing = [f"{first}-{second}" for first, second in self.without_peer_access]
        return {
            "connection": ", ".join(kinds) or "not known",
            "peer access": f"not between {', '.join(missing)}" if missing else "between all",
            "all-reduce": self._describe_speed(),
        }

    def _describe_speed(self) -> str:
        if self.busy:
            busy = ", ".join(map(str, self.busy))
            return f"not measured: too little memory is free on GPU {busy}"
        if self.bytes_per_second is None:
            return f"failed: {self.error}"
        return f"{self.bytes_per_second / 1e9:.1f} GB/s bus bandwidth (256 MB, fp32)"

    def problems(self) -> list[MachineProblem]:
        """Returns whether an all-reduce fails or is slow."""
        if self.busy:  # why is a problem of that GPU
            return []
        if self.bytes_per_second is None:
            return [
                MachineProblem(
                    f"an all-reduce over the visible GPUs failed: {self.error}",
                    "an all-reduce that ends within seconds",
                    "run it again with NCCL_DEBUG=INFO; see docs/multi-gpu.md, NCCL settings",
                )
            ]
        has_nvlink = bool(self.kinds) and all(kind.startswith("NV") for kind in self.kinds or {})
        slowest = SLOWEST_NVLINK if has_nvlink else SLOWEST_LINK
        if self.bytes_per_second >= slowest:
            return []
        return [
            MachineProblem(
                f"an all-reduce reaches {self.bytes_per_second / 1e9:.1f} GB/s",
                f"at least {slowest / 1e9:.0f} GB/s "
                + ("with NVLink" if has_nvlink else "on PCIe")
                + ", while the GPUs do nothing else",
                "unset NCCL_P2P_DISABLE and NCCL_SHM_DISABLE; see which transport NCCL_DEBUG=INFO "
                "names; in a virtual machine, PCIe ACS and the IOMMU may slow down peer access",
            )
        ]


def examine_links(torch: TorchView) -> Links:
    """Returns how the GPUs that PyTorch sees are connected, and measures an all-reduce."""
    speed, error = None, None
    busy = [
        index
        for index, device in enumerate(torch.devices)
        if (device.free_memory or 0) < _MEMORY_TO_MEASURE
    ]
    try:
        if not busy:
            speed = measure_all_reduce(len(torch.devices), "nccl", _MESSAGE)
    except (OSError, RuntimeError) as failure:  # TimeoutError is an OSError
        error = str(failure)
    return Links(_connection_kinds(), torch.without_peer_access, speed, error, busy)


def measure_all_reduce(world: int, backend: str, message_bytes: int) -> float:
    """Returns the bus bandwidth of an all-reduce over processes of this machine.

    Raises:
        OSError, RuntimeError: it failed, or took too long.
    """
    arguments = (str(world), backend, str(message_bytes))
    return float(parse_json(run_module("link_speed", _LINK_SECONDS, *arguments).encode()))


def _connection_kinds() -> dict[str, int] | None:
    try:
        return count_connections(run_command(["nvidia-smi", "topo", "-m"], SMI_SECONDS))
    except (OSError, RuntimeError):
        return None


def count_connections(matrix: str) -> dict[str, int]:
    """Returns the number of GPU pairs by connection, from the matrix of `nvidia-smi topo -m`.

    NV18 is 18 NVLinks; PIX, PXB, PHB, NODE and SYS are PCIe, over an ever longer way.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", matrix)
    rows = [line.split() for line in plain.splitlines() if re.match(r"GPU\d+\s+\S", line)]
    rows = [row for row in rows if "X" in row]  # not the header
    return dict(Counter(row[1 + other] for index, row in enumerate(rows) for other in range(index)))
