"""What PyTorch sees, as JSON. A process of its own: a broken driver may hang or end it."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any


def describe_torch() -> dict[str, Any]:
    """Returns the fields of `gpu.TorchView`."""
    import torch as typed_torch

    torch: Any = typed_torch  # parts of it have no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error of init says the same
        error = _cuda_error(torch)
        count = 0 if error else torch.cuda.device_count()
        return {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": _dotted_cudnn_version(torch.backends.cudnn.version()),
            "nccl": _nccl_version(torch),
            "cuda_error": error,
            "architectures": [] if error else torch.cuda.get_arch_list(),
            "devices": [_describe_device(torch, index) for index in range(count)],
            "without_peer_access": [
                (first, second)
                for first in range(count)
                for second in range(first + 1, count)
                if not torch.cuda.can_device_access_peer(first, second)
            ],
        }


def _cuda_error(torch: Any) -> str | None:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return None


def _describe_device(torch: Any, index: int) -> dict[str, Any]:
    """Returns the fields of `gpu.Device`."""
    properties = torch.cuda.get_device_properties(index)
    device = {
        "name": properties.name,
        "capability": (properties.major, properties.minor),
        "memory": properties.total_memory,
        "free_memory": None,
        "error": None,
    }
    try:
        device["free_memory"] = torch.cuda.mem_get_info(index)[0]
    except RuntimeError as error:
        device["error"] = str(error).strip().splitlines()[0]
    return device


def _dotted_cudnn_version(number: int | None) -> str | None:
    """Returns `9.10.2` for 91002."""
    if number is None:
        return None
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _nccl_version(torch: Any) -> str | None:
    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


if __name__ == "__main__":
    json.dump(describe_torch(), sys.stdout)
