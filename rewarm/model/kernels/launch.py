"""What the kernels have in common: how they are launched, and in which dtype they work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MULTIPROCESSORS = 132
"""Of a Hopper GPU, for kernels whose programs share all rows: as many as run at once, since a few
left over for a second round would keep the rest waiting.

A constant, because it decides the order of a sum, and so the last bit of what is trained.
"""


def options(warps: int) -> dict[str, Any]:
    """Returns how to compile a kernel.

    a·b + c is rounded once. That is said because Triton's default changes in 3.10, and with it
    the last bit of what is trained.
    """
    return {"num_warps": warps, "enable_fp_fusion": True}


def padded(size: int) -> int:
    """Returns the least power of two that is not less: Triton's tiles have no other sizes."""
    return 1 << (size - 1).bit_length()


def working_dtype(x: Tensor) -> torch.dtype:
    """Returns what autocast would cast a product's input to; its own dtype without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
