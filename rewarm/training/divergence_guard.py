"""Guards the loss: steps that are not finite are not applied, and spikes are found.

```
 loss, gradient norm ── should_skip ──> found_inf ──> AdamW changes no weight and no Adam moment
      (on the device)        ├─── read, when metrics are ──> events, or a reason to stop
                             └─── DelayedNumber ──> the same, within 8 steps of a reason to stop
```
A step is judged on the device, so that no step waits for the host. A rise of the loss while the
rate is raised is expected: it is measured as the stability gap, without a warning.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rewarm.data.batch_loader import DataPosition
from rewarm.recipe.training_settings import GuardSettings, LossScaleSettings
from rewarm.training.delayed_number import DelayedNumber
from rewarm.training.fp16_loss_scale import LossScaler, LossScaleState
from rewarm.training.stability_gap import GuardEvent, RateRise, StabilityGap

_WINDOW = 64
"""Losses that a new one is compared with."""
_MIN_LOSSES = 16
"""With fewer losses in the window, nothing is called a spike."""


class StopReason(NamedTuple):
    """Why the run has to stop."""

    reason: str
    position_before_batch: DataPosition
    """The data position at which the batch of the deciding step starts."""
    first_bad_step: int
    """Checkpoints of earlier steps are good."""


class GuardState(BaseModel):
    """What a checkpoint keeps of the guard."""

    model_config = ConfigDict(extra="forbid")

    losses: Annotated[list[float], Field(max_length=_WINDOW)] = []
    """The last losses that were not spikes."""
    unfit: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Steps in a row, up to now, that were not finite."""
    skipped: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Steps that were not applied, in the whole run."""
    gap: StabilityGap | None = None
    loss_scale: LossScaleState | None = None
    """None if the precision needs none."""


def not_finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """Returns 1 if loss or gradient norm is not finite, else 0; shape (), on the device."""
    return (~(torch.isfinite(loss) & torch.isfinite(grad_norm))).float()


def _median(x_N: Tensor) -> Tensor:
    """Returns the lower median of the numbers that are not NaN; shape (), on the device.

    Of PyTorch's own two, one waits for a GPU, and the other is not deterministic.
    """
    last = (~x_N.isnan()).sum() - 1
    return x_N.sort().values.take((last // 2).clamp(min=0))  # NaNs come last


class DivergenceGuard:
    """Judges each step by its loss and gradient norm, and those of the steps before."""

    def __init__(
        self,
        settings: GuardSettings,
        device: torch.device,
        state: dict[str, Any],
        base_lr: float | None,
        loss_scale: LossScaleSettings | None = None,
    ) -> None:
        """Continues from the `state` of a checkpoint, or starts; `base_lr` is the rate before."""
        self._settings = settings
        saved = GuardState.model_validate(state)
        self._scaler = LossScaler(loss_scale, device, saved.loss_scale) if loss_scale else None
        self.loss_scale: float | None = None
        """The loss scale of the last step that was read."""
        padding = [math.nan] * (_WINDOW - len(saved.losses))
        self._losses = torch.tensor(padding + saved.losses, device=device)
        self._unfit = torch.tensor(float(saved.unfit), device=device)
        self.skipped = saved.skipped
        """Steps that were not applied, in the whole run."""
        self.gap = saved.gap or StabilityGap(rise=RateRise(lr=base_lr or 0.0))
        """The stability gap, up to the last step that was read."""
        self._rise = self.gap.rise.model_copy()  # runs ahead, to the step that is judged next
        self._unfit_read = saved.unfit
        self._rows: list[Tensor] = []
        self._steps: list[tuple[int, float, DataPosition]] = []
        self._rise_expected = False
        self._stop_flags = DelayedNumber(device)
        self.must_stop = False
        """Whether a step gave a reason to stop, which `read` returns: known with some delay."""
        self.last_judged = 0
        """The last step that was judged: from then on its update may have been applied."""

    def start_step(self, step: int, lr: float, before: DataPosition) -> None:
        """Sets which step is judged next, its rate, and the data position before its batch."""
        self._rise_expected = self._rise.update(step, lr)
        self._steps.append((step, lr, before))

    @property
    def scale(self) -> Tensor | None:
        """The loss scale of the next step; None if the precision needs none."""
        return self._scaler.scale if self._scaler else None

    def should_skip(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Returns 1 if the step should not be applied, else 0; shape (), on the device."""
        unfit = not_finite(loss, grad_norm).bool()
        overflow, scale = torch.zeros_like(unfit), torch.ones_like(loss)
        if self._scaler:
            scale = self._scaler.scale
            overflow = self._scaler.update(grad_norm) & torch.isfinite(loss)
            unfit &= ~overflow
        z_score = self._z_score(loss)
        spike = (z_score > self._settings.spike) & ~unfit
        if self._rise_expected:
            spike = torch.zeros_like(spike)
        skip = unfit | overflow
        if self._settings.on_spike == "skip":
            skip |= spike
        self._unfit = torch.where(unfit, self._unfit + 1, 0.0)
        # A spike is not remembered: later losses are compared with those before it.
        shifted = torch.cat([self._losses[1:], loss.reshape(1)])
        self._losses = torch.where(unfit | spike, self._losses, shifted)
        z_score = torch.where(spike, z_score, 0.0)
        row = [loss, grad_norm, z_score, skip, self._unfit, overflow, scale]
        self._rows.append(torch.stack([value.float() for value in row]))
        self.last_judged = self._steps[-1][0]
        must_stop = self._unfit >= self._settings.patience
        if self._settings.on_spike == "stop":
            must_stop |= spike
        self.must_stop |= any(self._stop_flags.add(must_stop.float()))
        return skip.float()

    def _z_score(self, loss: Tensor) -> Tensor:
        """Returns how far a loss is above the window's median, in robust standard deviations."""
        median = _median(self._losses)
        # 0.6745 σ is the median deviation of a normal distribution. The floor is for losses of tiny
        # or repeated texts, which are so close together that any change would stand out.
        sigma = _median((self._losses - median).abs()) / 0.6745 + 1e-3 * median.abs()
        enough = torch.isfinite(self._losses).sum() >= _MIN_LOSSES
        return torch.where(enough, (loss - median) / sigma, 0.0)

    @property
    def last_step_not_finite(self) -> bool:
        """Whether the last step that was read was not finite."""
        return self._unfit_read > 0

    def read(self, tokens_per_step: int) -> tuple[list[GuardEvent], StopReason | None]:
        """Returns what happened since the last reading, and a reason to stop, if there is one.

        Waits for the device.
        """
        rows = torch.stack(self._rows).tolist() if self._rows else []
        # A step that an error ended was started, and not judged.
        steps, self._rows, self._steps = self._steps[: len(rows)], [], self._steps[len(rows) :]
        events: list[GuardEvent] = []
        stop: StopReason | None = None
        for (step, lr, before), row in zip(steps, rows, strict=True):
            loss, norm, z_score, skip, unfit, overflow, scale = row
            self.loss_scale = scale if self._scaler else None
            self.skipped, self._unfit_read = self.skipped + int(skip), int(unfit)
            values = {"loss": loss, "grad_norm": norm, "applied": not skip}
            if overflow:
                events.append(GuardEvent("overflow", step, {**values, "loss_scale": scale}))
            if unfit:
                events.append(GuardEvent("not-finite", step, values))
                stop = stop or self._stop_unfit(step, int(unfit), values, before)
            elif z_score:
                events.append(GuardEvent("spike", step, {**values, "z": round(z_score, 1)}))
                stop = stop or self._stop_at_spike(step, loss, z_score, before)
            elif gap := self.gap.update(step, lr, loss, tokens_per_step):
                events.append(gap)
        return events, stop

    def _stop_unfit(
        self, step: int, unfit: int, values: dict[str, Any], before: DataPosition
    ) -> StopReason | None:
        if unfit < self._settings.patience:
            return None
        first = step - unfit + 1
        steps = f"steps {first:,} to {step:,} were" if unfit > 1 else f"step {step:,} was"
        numbers = f"loss {values['loss']:g}, gradient norm {values['grad_norm']:g}"
        return StopReason(f"{steps} not finite: {numbers}", before, first)

    def _stop_at_spike(
        self, step: int, loss: float, z_score: float, before: DataPosition
    ) -> StopReason | None:
        if self._settings.on_spike != "stop":
            return None
        reason = f"the loss spiked at step {step:,}: {loss:.4f}, z-score {z_score:.1f}"
        return StopReason(reason, before, step)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep, after a reading. Waits for the device."""
        known = self._losses[torch.isfinite(self._losses)]
        return {
            "losses": known.tolist(),
            "unfit": int(self._unfit.item()),
            "skipped": self.skipped,
            "gap": self.gap.model_dump(),
            "loss_scale": self._scaler.state().model_dump() if self._scaler else None,
        }
