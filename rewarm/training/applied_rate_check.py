"""Measures on the weights themselves at which rate a step was applied."""

from __future__ import annotations

import torch

from rewarm.errors import ScheduleError
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
        self._before = self._parameter.detach().double().clone()

    def check(self, lr: float, step: int) -> float:
        """Returns the rate that the step since was applied at. Waits for the device.

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
        mean = state["exp_avg"].double() / (1 - beta1**updates)
        variance = state["exp_avg_sq"].double() / (1 - beta2**updates)
        direction = mean / (variance.sqrt() + group["eps"])
        moved = self._parameter.detach().double() - self._before
        squared_length = float(direction.square().sum())
        measured = -float((moved * direction).sum()) / squared_length
        unit = torch.finfo(torch.float32).eps * float(self._parameter.detach().abs().max())
        tolerance = 1e-3 * lr + unit * float(direction.abs().sum()) / squared_length
        if not abs(measured - lr) <= tolerance:
            raise ScheduleError(
                f"step {step:,} moved the weights at a rate of {measured:.6g}, and the schedule "
                f"says {lr:.6g} (± {tolerance:.2g}): the optimizer did not apply the scheduled "
                "rate; nothing of this step is saved"
            )
        return measured
