"""AdamW over decayed and undecayed parameters; a step gives it its rate, and can prove it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rewarm.errors import ScheduleError
from rewarm.model.neox import NeoX
from rewarm.recipe.fields import OptimizerSettings


def build_adamw(model: NeoX, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only: biases and norms are left out."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)
    # A step that nobody gave a rate would show at once, and not train at AdamW's own default.
    set_lr(optimizer, float("nan"))
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of the next step, on every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradient(model: NeoX, most: float | None, scale: Tensor | None = None) -> Tensor:
    """Returns the norm of the whole gradient, and shortens the gradient where that is above `most`.

    A loss `scale` is taken out of it first.
    """
    if scale is not None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / scale)
    return torch.nn.utils.clip_grad_norm_(model.parameters(), most or math.inf)


def apply_update(optimizer: torch.optim.Optimizer, lr: float, found_inf: Tensor) -> None:
    """Takes one step at a rate, unless `found_inf` is 1: then weights and moments stay.

    Raises:
        ScheduleError: something set another rate on the way, such as a hook.
    """
    set_lr(optimizer, lr)
    # As a GradScaler says it to a fused AdamW, which reads it on the device: no step waits.
    told: Any = optimizer  # the two are no part of its declared type
    told.found_inf, told.grad_scale = found_inf, None
    optimizer.step()
    for group in optimizer.param_groups:
        if group["lr"] != lr:
            raise ScheduleError(
                f"the optimiser stepped at a rate of {group['lr']!r}, and the schedule says "
                f"{lr!r}: something between them changed it, such as a hook on the optimiser"
            )
