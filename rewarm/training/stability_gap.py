"""The stability gap: the rise of the training loss that raising the learning rate causes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from rewarm.quantities import format_count

_SMOOTHED_LOSSES = 8
"""Losses whose mean is the smoothed loss."""


class GuardEvent(NamedTuple):
    """Something about the loss that belongs in the metrics."""

    kind: Literal["not-finite", "overflow", "spike", "stability-gap"]
    step: int
    values: dict[str, Any]

    def message(self) -> str:
        """Returns the event as a line."""
        prefix, values = f"step {self.step:,}  ", self.values
        if self.kind == "stability-gap":
            tokens = values["tokens_to_recover"]
            end = f"recovered after {format_count(tokens)} tokens" if tokens else "not recovered"
            return (
                f"{prefix}stability gap: the training loss rose by {values['height']:.4f} until "
                f"step {values['top_step']:,}; {end}"
            )
        if self.kind == "overflow":
            scale = f"{values['loss_scale']:,.0f}"
            return f"{prefix}the gradient overflowed fp16 at a loss scale of {scale}; not applied"
        applied = "applied" if values["applied"] else "not applied"
        if self.kind == "spike":
            z_score = values["z"]
            return f"{prefix}warning: loss {values['loss']:.4f} is a spike (z {z_score}); {applied}"
        norm = values["grad_norm"]
        return f"{prefix}warning: loss {values['loss']:g}, gradient norm {norm:g}; {applied}"


class RateRise(BaseModel):
    """The last stretch of steps in which the rate rose."""

    lr: float = 0.0
    """The rate of the last step."""
    began: int = 0
    """First step of the rise; 0 where there was none."""
    ended: int = 0
    """Its last step so far."""

    def update(self, step: int, lr: float) -> bool:
        """Adds the rate of the next step; returns whether the loss is expected to rise there.

        It is expected to while the rate rises, and for as many steps afterwards.
        """
        if lr > self.lr:
            self.began = self.began if self.began and self.ended == step - 1 else step
            self.ended = step
        self.lr = lr
        return bool(self.began) and step <= 2 * self.ended - self.began + 1


class StabilityGap(BaseModel):
    """The gap that is being measured.

    Its height is counted from the smoothed loss where the rate started to rise to the highest
    smoothed loss since; it is over when the smoothed loss has fallen to that level again.
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

    def update(self, step: int, lr: float, loss: float, tokens_per_step: int) -> GuardEvent | None:
        """Adds a step's rate and loss; returns the gap when it is over."""
        self.rise.update(step, lr)
        self.recent = [*self.recent[1 - _SMOOTHED_LOSSES :], loss]
        smoothed = sum(self.recent) / len(self.recent)
        if step == self.rise.began and self.level is None:
            self.first, self.level, self.top, self.top_step = step, smoothed, smoothed, step
        if self.level is None:
            return None
        if smoothed > self.top:
            self.top, self.top_step = smoothed, step
        if step <= self.rise.ended or smoothed > self.level:
            return None
        event = self.event(step, (step - self.first + 1) * tokens_per_step)
        self.level = None
        return event

    def event(self, step: int, tokens: int | None = None) -> GuardEvent | None:
        """Returns the gap that is being measured; `tokens` is what it took to recover."""
        if self.level is None or self.top <= self.level:
            return None
        height = {"height": self.top - self.level, "top_step": self.top_step, "from": self.first}
        return GuardEvent("stability-gap", step, height | {"tokens_to_recover": tokens})
