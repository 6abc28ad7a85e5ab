"""Tensors of which every process holds a part (FSDP2): the whole, the part, and how to fill it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def _is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    # Importing it takes 0.7 s, for which a run on one GPU need not wait.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor as a whole; all processes have to call it for a divided one."""
    return tensor.full_tensor() if _is_divided(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds: all of it, if it is not divided."""
    return tensor.to_local() if _is_divided(tensor) else tensor


def part_of(whole_tensor: Tensor, tensor: Tensor) -> Tensor:
    """Returns a view of the part of a whole tensor that this process holds of a divided one."""
    if not _is_divided(tensor):
        return whole_tensor
    from torch.distributed.tensor import Shard

    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            parts = whole_tensor.chunk(tensor.device_mesh.size(dimension), placement.dim)
            index = coordinate[dimension]
            # There are fewer parts than processes where a side is shorter than their number.
            whole_tensor = parts[index] if index < len(parts) else whole_tensor[:0]
    return whole_tensor


@torch.no_grad()
def copy_whole(tensor: Tensor, whole_tensor: Tensor) -> None:
    """Copies a whole tensor into one that may be divided; only this process's part is read."""
    own_part(tensor).copy_(part_of(whole_tensor, tensor))
