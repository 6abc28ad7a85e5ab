"""Guards over the loss: steps that are not applied, spikes, and the gap that re-warming tears.

```
 loss, gradient norm ── judge ──> found_inf ──> AdamW leaves weights and moments as they are
      (on the device)     └────── read, when metrics are ──> events, or a reason to stop
```
A step is judged on the device, so that none waits for the host. A rise of the loss while the rate
is raised is expected: it is measured, not warned about.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rewarm.data.batch_loader import DataPosition
from rewarm.quantities import format_count
from rewarm.recipe.fields import GuardSettings as Settings
from rewarm.recipe.fields import LossScaleSettings
from rewarm.training.fp16_loss_scale import LossScaler, LossScaleState

_WINDOW = 64
"""Losses that a new one is compared with."""
_ENOUGH = 16
"""Losses below which nothing is called a spike."""
_SMOOTH = 8
"""Losses whose mean is the smoothed loss of the stability gap."""


class GuardEvent(NamedTuple):
    """Something that belongs in the metrics."""

    kind: Literal["not-finite", "overflow", "spike", "stability-gap"]
    step: int
    values: dict[str, Any]

    def in_words(self) -> str:
        """Returns a line for a person."""
        said, values = f"step {self.step:,}  ", self.values
        if self.kind == "stability-gap":
            tokens = values["tokens_to_recover"]
            over = f"over after {format_count(tokens)} tokens" if tokens else "not over"
            return (
                f"{said}stability gap: the training loss rose by {values['height']:.4f} up to step "
                f"{values['top_step']:,}; {over}"
            )
        if self.kind == "overflow":
            scale = f"{values['loss_scale']:,.0f}"
            return f"{said}the gradient overflowed fp16 at a loss scale of {scale}; not applied"
        done = "applied" if values["applied"] else "not applied"
        if self.kind == "spike":
            return f"{said}warning: loss {values['loss']:.4f} is a spike (z {values['z']}); {done}"
        norm = values["grad_norm"]
        return f"{said}warning: loss {values['loss']:g}, gradient norm {norm:g}; {done}"


class StopReason(NamedTuple):
    """A reason to stop the run."""

    reason: str
    before: DataPosition
    """Where in the stream the batch of the step that decided it begins."""
    trouble: int
    """The first step that was not as it should be: checkpoints before it are good."""


class RateRise(BaseModel):
    """The last stretch of steps in which the rate rose."""

    lr: float = 0.0
    """The rate of the last step seen."""
    began: int = 0
    """First step of the rise; 0 where there was none."""
    ended: int = 0
    """Its last step so far."""

    def see(self, step: int, lr: float) -> bool:
        """Takes the rate of the next step; returns whether a rise of the loss is expected there.

        It is while the rate rises, and as long again afterwards.
        """
        if lr > self.lr:
            self.began = self.began if self.began and self.ended == step - 1 else step
            self.ended = step
        self.lr = lr
        return bool(self.began) and step <= 2 * self.ended - self.began + 1


class StabilityGap(BaseModel):
    """The stability gap: the rise of the training loss that raising the rate causes.

    Height is counted from the smoothed loss where the rate began to rise to the highest smoothed
    loss since; the gap is over when the smoothed loss is down at that level again.
    """

    rise: RateRise
    first: int = 0
    """The step that the gap is measured from."""
    level: float | None = None
    """The smoothed loss there; None when no gap is being measured."""
    top: float = 0.0
    """The highest smoothed loss since."""
    top_step: int = 0
    recent: list[float] = []
    """The last losses, which are smoothed."""

    def see(self, step: int, lr: float, loss: float, tokens_per_step: int) -> GuardEvent | None:
        """Takes a step's rate and loss; returns the gap when it is over."""
        self.rise.see(step, lr)
        self.recent = [*self.recent[1 - _SMOOTH :], loss]
        smooth = sum(self.recent) / len(self.recent)
        if step == self.rise.began and self.level is None:
            self.first, self.level, self.top, self.top_step = step, smooth, smooth, step
        if self.level is None:
            return None
        if smooth > self.top:
            self.top, self.top_step = smooth, step
        if step <= self.rise.ended or smooth > self.level:
            return None
        event = self.event(step, (step - self.first + 1) * tokens_per_step)
        self.level = None
        return event

    def event(self, step: int, tokens: int | None = None) -> GuardEvent | None:
        """Returns the gap that is being measured, `tokens` being what it took to recover."""
        if self.level is None or self.top <= self.level:
            return None
        height = {"height": self.top - self.level, "top_step": self.top_step, "from": self.first}
        return GuardEvent("stability-gap", step, height | {"tokens_to_recover": tokens})


class GuardState(BaseModel):
    """What a checkpoint keeps of the guard."""

    model_config = ConfigDict(extra="forbid")

    losses: Annotated[list[float], Field(max_length=_WINDOW)] = []
    """The last losses that were no spikes."""
    unfit: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Steps in a row, up to now, that were not finite."""
    skipped: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Steps that were not applied, in the whole run."""
    gap: StabilityGap | None = None
    loss_scale: LossScaleState | None = None
    """None where the precision needs none."""


def not_finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """Returns 1 where the loss or the gradient is not finite, else 0; shape (), on the device."""
    return (~(torch.isfinite(loss) & torch.isfinite(grad_norm))).float()


def _median(x_N: Tensor) -> Tensor:
    """Returns the lower median of the numbers that are not NaN; shape (), on the device.

    Of PyTorch's own, one waits for a GPU, and one finds the place too, which is not deterministic.
    """
    last = (~x_N.isnan()).sum() - 1
    return x_N.sort().values.take((last // 2).clamp(min=0))  # NaNs come last


class DivergenceGuard:
    """Judges each step, and remembers the losses of those before it."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        state: dict[str, Any],
        base_lr: float | None,
        loss_scale: LossScaleSettings | None = None,
    ) -> None:
        """Goes on from the `state` of a checkpoint, or begins; `base_lr` is the rate before."""
        self._settings = settings
        memory = GuardState.model_validate(state)
        self._scaler = (
            None if loss_scale is None else LossScaler(loss_scale, device, memory.loss_scale)
        )
        self.loss_scale: float | None = None
        """That of the last step that was read."""
        padding = [math.nan] * (_WINDOW - len(memory.losses))
        self._losses = torch.tensor(padding + memory.losses, device=device)
        self._unfit = torch.tensor(float(memory.unfit), device=device)
        self.skipped = memory.skipped
        """Steps that were not applied, in the whole run."""
        self.gap = memory.gap or StabilityGap(rise=RateRise(lr=base_lr or 0.0))
        """The gap as far as it was read."""
        self._rise = self.gap.rise.model_copy()  # runs ahead, to the step that is judged
        self._streak = memory.unfit
        self._rows: list[Tensor] = []
        self._steps: list[tuple[int, float, DataPosition]] = []
        self._expected = False

    def begin(self, step: int, lr: float, before: DataPosition) -> None:
        """Says which step is judged next, its rate, and where in the stream its batch begins."""
        self._expected = self._rise.see(step, lr)
        self._steps.append((step, lr, before))

    @property
    def scale(self) -> Tensor | None:
        """The loss scale of the step that is judged next; None where the precision needs none."""
        return self._scaler.scale if self._scaler else None

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Returns 1 where the step should not be applied, else 0; shape (), on the device."""
        broken = not_finite(loss, grad_norm).bool()
        overflow, scale = torch.zeros_like(broken), torch.ones_like(loss)
        if self._scaler:
            scale = self._scaler.scale
            overflow = self._scaler.see(grad_norm) & torch.isfinite(loss)
            broken &= ~overflow
        middle = _median(self._losses)
        # 0.6745: the median distance of a normal distribution is so many σ. The floor is for
        # losses of tiny or repeated texts, which lie so close that any change would stand out.
        spread = _median((self._losses - middle).abs()) / 0.6745 + 1e-3 * middle.abs()
        enough = torch.isfinite(self._losses).sum() >= _ENOUGH
        z = torch.where(enough, (loss - middle) / spread, 0.0)
        spike = (z > self._settings.spike) & ~broken
        if self._expected:
            spike = torch.zeros_like(spike)
        skip = broken | overflow
        if self._settings.on_spike == "skip":
            skip |= spike
        self._unfit = torch.where(broken, self._unfit + 1, 0.0)
        # A spike is not remembered: what follows it is compared with what was before it.
        moved = torch.cat([self._losses[1:], loss.reshape(1)])
        self._losses = torch.where(broken | spike, self._losses, moved)
        z = torch.where(spike, z, 0.0)
        row = [loss, grad_norm, z, skip, self._unfit, overflow, scale]
        self._rows.append(torch.stack([one.float() for one in row]))
        return skip.float()

    @property
    def in_trouble(self) -> bool:
        """Whether the last step that was read was not finite."""
        return self._streak > 0

    def read(self, tokens_per_step: int) -> tuple[list[GuardEvent], StopReason | None]:
        """Returns what happened since the last reading, and a reason to stop, if there is one.

        Waits for the device.
        """
        rows = torch.stack(self._rows).tolist() if self._rows else []
        steps, self._rows, self._steps = self._steps, [], []
        events: list[GuardEvent] = []
        stop: StopReason | None = None
        for (step, lr, before), row in zip(steps, rows, strict=True):
            loss, norm, z, skip, unfit, overflow, scale = row
            self.loss_scale = scale if self._scaler else None
            self.skipped, self._streak = self.skipped + int(skip), int(unfit)
            what = {"loss": loss, "grad_norm": norm, "applied": not skip}
            if overflow:
                events.append(GuardEvent("overflow", step, {**what, "loss_scale": scale}))
            if unfit:
                events.append(GuardEvent("not-finite", step, what))
                if unfit >= self._settings.patience and not stop:
                    first = step - int(unfit) + 1
                    said = (
                        f"steps {first:,} to {step:,} were" if unfit > 1 else f"step {step:,} was"
                    )
                    said += f" not finite: loss {loss:g}, gradient norm {norm:g}"
                    stop = StopReason(said, before, first)
            elif z:
                events.append(GuardEvent("spike", step, {**what, "z": round(z, 1)}))
                if self._settings.on_spike == "stop" and not stop:
                    said = f"the loss spiked at step {step:,}: {loss:.4f}, z-score {z:.1f}"
                    stop = StopReason(said, before, step)
            elif gap := self.gap.see(step, lr, loss, tokens_per_step):
                events.append(gap)
        return events, stop

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep, behind a reading. Waits for the device."""
        known = self._losses[torch.isfinite(self._losses)]
        return {
            "losses": known.tolist(),
            "unfit": int(self._unfit.item()),
            "skipped": self.skipped,
            "gap": self.gap.model_dump(),
            "loss_scale": self._scaler.state().model_dump() if self._scaler else None,
        }
