"""The device that a process computes on, and how numbers are made there."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch


def find_device() -> torch.device:
    """Returns the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Returns what a person calls a device: `NVIDIA H200`, `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which forward passes run at this precision."""
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
    return torch.autocast(device.type, halves.get(precision), enabled=precision in halves)


def set_up_device(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Says how a GPU computes from here on; a CPU has no such choices.

    Both are said either way: PyTorch keeps them for the process, and a run before may have said
    otherwise.

    Args:
        device: where a run begins, with nothing computed yet.
        tf32: whether fp32 products round their factors to TF32.
        deterministic: whether only operations are used that give the same bits each time. Of those
            that a step takes, attention's way back is the one that else does not.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # A compiler's advice to take TF32: whoever wanted it has said so.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    torch.use_deterministic_algorithms(deterministic)
    # That would also fill all new memory, which is a pass over each tensor.
    settings: Any = torch.utils.deterministic  # its declared type lacks the one it has
    settings.fill_uninitialized_memory = False
