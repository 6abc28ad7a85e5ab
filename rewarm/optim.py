"""AdamW over decayed and undecayed parameters; a step gives it its learning rate."""

from __future__ import annotations

import torch
from torch import Tensor

from rewarm.errors import CheckpointError
from rewarm.neox import NeoX
from rewarm.recipe import Optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(model: NeoX, settings: Optimizer) -> torch.optim.AdamW:
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


def moments(model: NeoX, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns Adam's state by parameter name: `exp_avg/...`, `exp_avg_sq/...` and `updates`."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        of = optimizer.state[parameter]
        for moment in _MOMENTS:
            state[f"{moment}/{name}"] = of[moment]
        state["updates"] = of["step"].detach().cpu().reshape(1)
    return state


def load_moments(
    model: NeoX, optimizer: torch.optim.Optimizer, state: dict[str, Tensor], source: str
) -> None:
    """Puts Adam's state back; the rate is no part of it, so none can come back with it.

    Raises:
        CheckpointError: the state is of another model.
    """
    for name, parameter in model.named_parameters():
        of = {moment: state.get(f"{moment}/{name}") for moment in _MOMENTS}
        for moment, tensor in of.items():
            if tensor is None or tensor.shape != parameter.shape:
                found = "none" if tensor is None else tuple(tensor.shape)
                raise CheckpointError(
                    f"{source}: {moment} of {name}: wanted {tuple(parameter.shape)}, found {found}"
                )
        updates = state.get("updates")
        if updates is None or updates.numel() != 1:
            raise CheckpointError(f"{source}: no count of updates; is it a rewarm optimiser state?")
        optimizer.state[parameter] = {
            "step": updates.reshape(())
            .clone()
            .to(parameter.device if parameter.is_cuda else "cpu", torch.float32),
            **{m: t.to(parameter.device).clone() for m, t in of.items() if t is not None},
        }
