"""Measures on the weights themselves at which rate a step was applied."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rewarm.errors import ScheduleError
from rewarm.model.divided_tensors import whole
from rewarm.model.neox import NeoX


class AppliedRateProbe:
    """Measures the rate of one step, from the weights before and after it.

    Adam moves a parameter without decay by -lr · m̂ / (√v̂ + ε) (arXiv:1412.6980, algorithm 1). With
    the moments after the step, the rate is the factor that fits the final layer norm's bias best,
    by least squares. The rate that the optimizer itself states is not used.
    """

    def __init__(self, model: NeoX, optimizer: torch.optim.Optimizer) -> None:
        """Copies the weights before the step."""
        self._parameter = model.gpt_neox.final_layer_norm.bias
        self._optimizer = optimizer
        self._before = whole(self._parameter.detach()).double().clone()

    def check(self, lr: float, step: int) -> float | None:
        """Returns the rate that the step since was applied at; None if the weights cannot tell.

        They cannot where no gradient reached the bias, where ε dwarfs its gradients, and where the
        bias is so large that fp32 rounds a step of this rate away. Waits for the device.

        Raises:
            ScheduleError: it differs from `lr` by more than rounding in fp32 explains.
        """
        state = self._optimizer.state[self._parameter]
        group = next(
            group
            for group in self._optimizer.param_groups
            if any(parameter is self._parameter for parameter in group["params"])
        )
        (beta1, beta2), updates = group["betas"], float(state["step"])
        mean = whole(state["exp_avg"]).double() / (1 - beta1**updates)
        variance = whole(state["exp_avg_sq"]).double() / (1 - beta2**updates)
        direction = mean / (variance.sqrt() + group["eps"])
        after = whole(self._parameter.detach())
        moved = after.double() - self._before
        squared_length = float(direction.square().sum())
        if not squared_length:
            return None
        measured = -float((moved * direction).sum()) / squared_length
        rounding = _rounding(after, direction) / squared_length
        if not math.isfinite(rounding) or rounding > lr > 0:
            return None
        tolerance = 1e-3 * lr + rounding
        if not abs(measured - lr) <= tolerance:
            raise ScheduleError(
                f"step {step:,} moved the weights at a rate of {measured:.6g}, and the schedule "
                f"says {lr:.6g} (± {tolerance:.2g}): the optimizer did not apply the scheduled "
                "rate; nothing of this step is saved"
            )
        return measured


def _rounding(weights: Tensor, direction: Tensor) -> float:
    """Returns what rounding in fp32 may add to the product of the movement and `direction`.

    A weight moves by a whole number of units in its last place; numbers below the smallest normal
    one are rounded to it, or to 0.
    """
    info, largest = torch.finfo(torch.float32), float(weights.abs().max())
    return max(info.eps * largest, info.tiny) * float(direction.abs().sum())
