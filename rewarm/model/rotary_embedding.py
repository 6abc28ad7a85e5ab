"""Rotary position embeddings (arXiv:2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from rewarm.model.architecture import Architecture


def rotary_angles(architecture: Architecture, length: int) -> tuple[Tensor, Tensor]:
    """Returns cos and sin of every position's angles, each (T, R), in fp32 (arXiv:2104.09864)."""
    size = architecture.rotary_size
    inverse = 1.0 / architecture.rotary_base ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()
