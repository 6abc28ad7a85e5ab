"""`precision: fp8`: the scales by which a layer's four linear layers are rounded to 8 bits.

```
 x        ── · scale ── e4m3 ─┬── matmul ── / both scales ──> output in bf16
 weight   ── · scale ── e4m3 ─┘                     its gradient times weight ──> gradient of x
 gradient ── · scale ── e5m2 ───────────────────────             and times x ──> gradient of weight
    └── amax of this step ── after the step ──> amaxes of the last 16 steps ──> the next scales
```
Formats and per-tensor scales are those of arXiv:2209.05433. A scale is computed from earlier steps
("delayed scaling"), so numbers can be rounded where they are computed, without an extra pass over
memory that looks for the amax first. Embeddings, head, norms, attention, master weights and
optimizer state are as in bf16, and so is evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rewarm.errors import RecipeError

INPUT, WEIGHT, GRADIENT = range(3)
"""The operands of a linear layer's three matmuls: the index of their formats and scales."""
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2)
FP8_MAX = tuple(torch.finfo(dtype).max for dtype in FP8_DTYPES)

AMAX_HISTORY = 16
"""Steps whose amaxes determine a scale."""

_INITIAL_FACTORS = (1.0, 2.0**6, 2.0**20)  # without any amax: near the middle of the range
_MAX_CALIBRATION_RUNS = 8
_MIN_COMPUTE_CAPABILITY = (8, 9)  # Ada


def check_fp8_device(device: torch.device) -> None:
    """Checks that a device has fp8 matmuls, or is a CPU, which rounds as a GPU does.

    Raises:
        RecipeError: the device has no fp8 matmuls.
    """
    if device.type == "cpu":
        return
    if torch.cuda.get_device_capability(device) < _MIN_COMPUTE_CAPABILITY:
        raise RecipeError(
            [
                f"precision: fp8: {torch.cuda.get_device_name(device)} has no 8-bit float matmuls; "
                "expected a Hopper GPU (H100, H200), Ada or later; set precision: bf16"
            ]
        )


class TensorScale(NamedTuple):
    """The scale of one operand, and its amax: fp32 scalars, read and written on the device.

    Each is a tensor of its own, not a view of a larger one. A compiled layer may write to a tensor
    in its forward pass or in its backward pass, not in both; and PyTorch 2.11 cannot compile a
    matmul whose `inverse` is a view.
    """

    factor: Tensor
    """The power of two that the operand is multiplied by."""
    inverse: Tensor
    """1 / factor."""
    amax: Tensor
    """The largest finite absolute value since the last step."""


LinearScales = tuple[TensorScale, TensorScale, TensorScale]
"""The scales of a linear layer's input, weight and gradient."""


class ScaledLinear(nn.Linear):
    """A linear layer with fp8 scales, which `Fp8Scaling` sets; without them it is a plain one."""

    scales: LinearScales


def get_scales(linear: nn.Linear) -> LinearScales:
    """Returns the scales of a `ScaledLinear`."""
    return cast(ScaledLinear, linear).scales


def _unchanged(amaxes: Tensor) -> Tensor:
    return amaxes


class Fp8Scaling:
    """The scales of all linear layers of a model, updated after each step from the amaxes."""

    def __init__(self, layers: nn.Module) -> None:
        """Sets the scales of every `ScaledLinear` in `layers`; they need calibration."""
        linears = [module for module in layers.modules() if isinstance(module, ScaledLinear)]
        device = linears[0].weight.device
        self.amax_history = torch.zeros(AMAX_HISTORY, len(linears), 3, device=device)
        """The amaxes of each step, the last step first; 0 for steps that have not happened yet."""
        self._max = torch.tensor(FP8_MAX, device=device)
        self.needs_calibration = True
        """Whether the scales are still initial, since no amaxes were measured yet."""
        self._initial_factors = torch.tensor(_INITIAL_FACTORS, device=device)
        self.maximum: Callable[[Tensor], Tensor] = _unchanged
        """Returns the largest amaxes of all processes, which have the same scales."""
        self._scales: list[TensorScale] = []
        """Three for the first linear layer, three for the second, and so on."""
        for linear in linears:
            x, weight, gradient = (
                TensorScale(factor.clone(), 1 / factor, torch.zeros_like(factor))
                for factor in self._initial_factors
            )
            linear.scales = x, weight, gradient
            self._scales += linear.scales

    def calibrate(self, run: Callable[[], object]) -> None:
        """Finds the scales of the first step: repeats a part of it, `run`, until they are stable.

        `run` is called eight times at most. Numbers that an initial scale rounds to zero or clamps
        are missing in what is computed from them, so each run measures amaxes a little further than
        the last. With good initial scales the second run confirms the first.
        """
        self.discard_amaxes()
        for _ in range(_MAX_CALIBRATION_RUNS):
            previous_factors = self._factors()
            run()
            self.amax_history.zero_()
            self.update()
            if torch.equal(self._factors(), previous_factors):
                break

    def update(self, skipped: Tensor | None = None) -> None:
        """Adds the amaxes of the last step to the history and computes the scales of the next.

        If the step was skipped (`skipped` is 1), the amaxes of the step before it are repeated
        instead, since its own may belong to numbers about to overflow.
        """
        step_amaxes = self.maximum(torch.stack(self._amaxes)).view(1, -1, len(FP8_DTYPES))
        if skipped is not None:
            step_amaxes = torch.where(skipped > 0, self.amax_history[:1], step_amaxes)
        self.amax_history = torch.cat((step_amaxes, self.amax_history[:-1]))
        self._set_scales()
        self.discard_amaxes()

    def discard_amaxes(self) -> None:
        """Sets the amaxes since the last step to 0, after a computation that was not a step."""
        torch._foreach_zero_(self._amaxes)

    def load_history(self, amaxes: Tensor) -> None:
        """Restores the amaxes of a checkpoint, (16, linear layers, 3) in fp32, and their scales.

        Raises:
            ValueError: the amaxes belong to another model, or are not finite or below 0.
        """
        if amaxes.shape != self.amax_history.shape or amaxes.dtype != torch.float32:
            raise ValueError(
                f"{amaxes.dtype} {tuple(amaxes.shape)}, expected torch.float32 "
                f"{tuple(self.amax_history.shape)}"
            )
        if not bool((amaxes.isfinite() & (amaxes >= 0)).all()):
            raise ValueError("not amaxes: below 0, or not finite")
        self.amax_history = amaxes.to(self.amax_history.device)
        self._set_scales()
        self.discard_amaxes()

    @property
    def _amaxes(self) -> list[Tensor]:
        return [scale.amax for scale in self._scales]

    def _factors(self) -> Tensor:
        return torch.stack([scale.factor for scale in self._scales])

    def _set_scales(self) -> None:
        """Sets each scale to the largest power of two that clamps nothing in the history.

        They lie between 2⁻¹⁰⁰ and 2¹⁰⁰, as their inverses do. Where all amaxes are zero they are
        the initial factors.
        """
        self.needs_calibration = False
        amax = self.amax_history.amax(0)
        ratio = torch.where(amax > 0, (self._max / amax).clamp(max=2.0**100), self._initial_factors)
        exponent = (torch.frexp(ratio).exponent - 1).clamp(min=-100)
        factors, inverses = (
            ((127 + power) << 23).view(torch.float32).flatten() for power in (exponent, -exponent)
        )
        scales = [scale.factor for scale in self._scales]
        scales += [scale.inverse for scale in self._scales]
        torch._foreach_copy_(scales, [*factors.unbind(), *inverses.unbind()])
