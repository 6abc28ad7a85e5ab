"""What all kernels share: launch options, tile sizes, and the dtype they compute in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MULTIPROCESSORS = 132
"""Multiprocessors of a Hopper GPU. Kernels whose programs loop over rows start only as many
as run at once: a few more would run in a second round, while most multiprocessors are idle.

It is a constant because it determines the order of a sum, and so the last bit of the trained
weights.
"""


def launch_options(warps: int) -> dict[str, Any]:
    """Returns the options with which a kernel is compiled and launched.

    With `enable_fp_fusion`, a·b + c is rounded once. It is set explicitly because Triton's default
    changes in 3.10, and with it the last bit of the trained weights.
    """
    return {"num_warps": warps, "enable_fp_fusion": True}


def next_power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`: the only sizes of Triton tiles."""
    return 1 << (size - 1).bit_length()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype to which autocast casts a matmul's input, or x's dtype without autocast."""
    device_type = x.device.type
    enabled = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else x.dtype
