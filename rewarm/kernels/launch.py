"""What the kernels' launches have in common."""

from __future__ import annotations

import torch
from torch import Tensor

PROGRAMS = 528
"""Programs that share the rows of a sum: four for each of a Hopper's 132 multiprocessors.

A constant, because it decides the order of a sum, and so the last bit of what is trained.
"""


def padded(size: int) -> int:
    """Returns the least power of two that is not less: Triton's tiles have no other sizes."""
    return 1 << (size - 1).bit_length()


def working_dtype(x: Tensor) -> torch.dtype:
    """Returns what autocast would cast a product's input to; its own dtype without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
