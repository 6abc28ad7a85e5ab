"""Tensors of which every process holds a part (FSDP2): the whole, the part, and how to fill it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor as a whole; all processes have to call it for a divided one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds: all of it, if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(whole_tensor: Tensor, tensor: Tensor) -> Tensor:
    """Returns a view of the part of a whole tensor that this process holds of a divided one."""
    if not isinstance(tensor, DTensor):
        return whole_tensor
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
