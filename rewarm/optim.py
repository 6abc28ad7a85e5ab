"""AdamW over decayed and undecayed parameters; a step gives it its rate, and can prove it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rewarm.errors import CheckpointError, ScheduleError
from rewarm.neox import NeoX
from rewarm.sections import Optimizer
from rewarm.weights import is_finite

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


def clip(model: NeoX, most: float | None, scale: Tensor | None = None) -> Tensor:
    """Returns the norm of the whole gradient, and shortens the gradient where that is above `most`.

    A loss `scale` is taken out of it first.
    """
    if scale is not None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / scale)
    return torch.nn.utils.clip_grad_norm_(model.parameters(), most or math.inf)


def apply(optimizer: torch.optim.Optimizer, lr: float, found_inf: Tensor) -> None:
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


class Probe:
    """Measures on the weights themselves at which rate a step was applied.

    Adam moves a parameter without decay by -lr · m̂ / (√v̂ + ε) (arXiv:1412.6980, algorithm 1). With
    the moments behind the step, the rate is the factor that fits the whole final layer norm's bias
    best. What an optimiser says of itself takes no part in it.
    """

    def __init__(self, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
        """Takes the weights as they are before the step."""
        self._parameter = model.gpt_neox.final_layer_norm.bias
        self._optimizer = optimizer
        self._before = self._parameter.detach().double().clone()

    def insist(self, lr: float, step: int) -> float:
        """Returns the rate that the step since was applied at. Waits for the device.

        Raises:
            ScheduleError: it is not `lr`, by more than rounding in fp32 explains.
        """
        state = self._optimizer.state[self._parameter]
        group = next(
            one
            for one in self._optimizer.param_groups
            if any(p is self._parameter for p in one["params"])
        )
        (beta1, beta2), updates = group["betas"], float(state["step"])
        mean = state["exp_avg"].double() / (1 - beta1**updates)
        variance = state["exp_avg_sq"].double() / (1 - beta2**updates)
        direction = mean / (variance.sqrt() + group["eps"])
        moved = self._parameter.detach().double() - self._before
        along = float(direction.square().sum())
        measured = -float((moved * direction).sum()) / along
        unit = torch.finfo(torch.float32).eps * float(self._parameter.detach().abs().max())
        tolerance = 1e-3 * lr + unit * float(direction.abs().sum()) / along
        if not abs(measured - lr) <= tolerance:
            raise ScheduleError(
                f"step {step:,} moved the weights at a rate of {measured:.6g}, and the schedule "
                f"says {lr:.6g} (± {tolerance:.2g}): the optimiser did not do what it was told; "
                "nothing of this step is saved"
            )
        return measured


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
