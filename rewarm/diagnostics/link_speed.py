"""The speed of an all-reduce over all visible GPUs, as JSON. A process of its own: it may hang."""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_WARM_UP, _REPEATS = 3, 10


def all_reduce_bytes_per_second(world: int, backend: str, message_bytes: int) -> float:
    """Returns the bus bandwidth of an all-reduce over `world` processes of this machine.

    That is 2 (n - 1) / n times message size / time: what each link carries, whatever n is. See
    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    """
    from torch import multiprocessing

    processes: Any = multiprocessing  # without types
    with tempfile.TemporaryDirectory(prefix="rewarm-doctor-") as folder:
        processes.spawn(_run_rank, (world, backend, message_bytes, folder), nprocs=world)
        seconds = float((Path(folder) / "seconds").read_text())
    return 2 * (world - 1) / world * message_bytes / seconds


def _run_rank(rank: int, world: int, backend: str, message_bytes: int, folder: str) -> None:
    import torch
    from torch import distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
        device_id=device if backend == "nccl" else None,
    )
    message = torch.zeros(message_bytes // 4, device=device)
    seconds = []
    for _ in range(_WARM_UP + _REPEATS):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(message)
        message[0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        median = sorted(seconds[_WARM_UP:])[_REPEATS // 2]
        (Path(folder) / "seconds").write_text(str(median))
    distributed.destroy_process_group()


if __name__ == "__main__":
    _world, _backend, _message_bytes = sys.argv[1:]
    _speed = all_reduce_bytes_per_second(int(_world), _backend, int(_message_bytes))
    json.dump(_speed, sys.stdout)
