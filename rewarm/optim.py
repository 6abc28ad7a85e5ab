"""AdamW over decayed and undecayed parameters; a step gives it its learning rate."""

from __future__ import annotations

import torch
from torch import Tensor

from rewarm.errors import CheckpointError
from rewarm.neox import NeoX, is_finite
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
        CheckpointError: the state is of another model, or not what Adam leaves behind.
    """
    wanted = {f"{m}/{name}": p.shape for name, p in model.named_parameters() for m in _MOMENTS}
    wanted["updates"] = torch.Size([1])
    for name in sorted(wanted.keys() | state.keys()):
        complaint = _complaint(name, state.get(name), wanted.get(name))
        if complaint:
            raise CheckpointError(
                f"{source}: {name}: {complaint}; use another checkpoint, or start from this one's "
                "weights alone (set optimizer.carry: false)"
            )
    for name, parameter in model.named_parameters():
        step = state["updates"].reshape(()).clone()
        optimizer.state[parameter] = {
            "step": step.to(parameter.device if parameter.is_cuda else "cpu"),
            **{m: state[f"{m}/{name}"].to(parameter.device).clone() for m in _MOMENTS},
        }


def _complaint(name: str, found: Tensor | None, wanted: torch.Size | None) -> str | None:
    """Returns what is wrong with one tensor of Adam's state, if anything."""
    if found is None or wanted is None:
        return "missing" if found is None else "not part of this model's state"
    if found.dtype != torch.float32 or found.shape != wanted:
        return f"{found.dtype} {tuple(found.shape)}, and wanted is fp32 {tuple(wanted)}"
    if not is_finite(found):
        return "not finite"
    if name.startswith("exp_avg_sq/") and found.min() < 0:
        return "a mean of squares below 0"
    if name == "updates" and (found.item() < 0 or found.item() % 1):
        return f"{found.item()} is no count"
    return None
