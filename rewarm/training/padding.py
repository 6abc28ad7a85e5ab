"""Sequences that fill up a microbatch: their targets are ignored."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from rewarm.model.kernels.pytorch_reference import IGNORED_TARGET


def padded(tokens: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets of tokens (sequences, context + 1), each (rows, context).

    The targets of the sequences that are added are ignored: they add nothing to a summed loss.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if missing := rows - len(tokens):
        inputs = functional.pad(inputs, (0, 0, 0, missing))
        targets = functional.pad(targets, (0, 0, 0, missing), value=IGNORED_TARGET)
    return inputs, targets
