"""Rotary position embeddings (arXiv:2104.09864). Shapes: T positions, R rotary dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from rewarm.model.architecture import Architecture


def rotary_angles(architecture: Architecture, length: int) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines of the angles of positions 0 to length - 1, each (T, R) in fp32.

    At position t, pair i of the R/2 pairs rotates by t · base^(-2i / R) (arXiv:2104.09864).
    A pair is dimensions i and i + R/2, as in GPT-NeoX, so the angles are repeated once.
    """
    size = architecture.rotary_size
    frequencies = 1.0 / architecture.rotary_base ** (torch.arange(0, size, 2).float() / size)
    angles_TR = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles_TR.cos(), angles_TR.sin()
