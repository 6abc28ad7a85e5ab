"""AdamW with weight decay on matrices only; every update is given its rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewarm.errors import ScheduleError
from rewarm.model.divided_tensors import own_part
from rewarm.model.neox import NeoX
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training.processes import ALONE, Processes


def build_adamw(model: NeoX, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only: biases and norms have none."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)
    # An update without a rate makes every weight NaN, in place of training at AdamW's default.
    set_lr(optimizer, float("nan"))
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of the next update, in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradient(
    model: NeoX,
    max_norm: float | None,
    scale: Tensor | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Returns the norm of the whole gradient, and scales the gradient down to `max_norm`.

    A loss `scale` is divided out of it first. The squares of the tensors' norms are summed in
    double precision: how the gradient is divided among processes does not change the norm.
    """
    gradients = [own_part(p.grad) for p in model.parameters() if p.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale)
    norm = processes.sum_of_parts(sum_of_squares(gradients)).sqrt().float()
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """Returns the sum of the squares of all elements; shape (), in double precision."""
    if tensors[0].is_cuda:
        norms = torch.stack(torch._foreach_norm(tensors))
    else:
        # On a CPU, `_foreach_norm` adds up a tensor in fp32, element by element: wrong by 0.1 % for
        # 25 million elements. A row is short enough.
        norms = torch.cat([torch.linalg.vector_norm(t, dim=-1).reshape(-1) for t in tensors])
    return norms.double().square().sum()


def apply_update(optimizer: torch.optim.Optimizer, lr: float, found_inf: Tensor) -> None:
    """Applies one update at a rate; where `found_inf` is 1, weights and Adam moments stay.

    Raises:
        ScheduleError: something changed the rate in between, such as a hook.
    """
    set_lr(optimizer, lr)
    # A fused AdamW reads these two on the device, as a GradScaler sets them: no step waits.
    fused: Any = optimizer  # they are not part of its declared type
    fused.found_inf, fused.grad_scale = found_inf, None
    optimizer.step()
    for group in optimizer.param_groups:
        if group["lr"] != lr:
            raise ScheduleError(
                f"the optimizer stepped at a rate of {group['lr']!r}, and the schedule says "
                f"{lr!r}: something between them changed it, such as a hook on the optimizer"
            )
