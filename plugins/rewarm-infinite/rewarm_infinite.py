"""The infinite learning-rate schedule, as a plug-in of rewarm."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rewarm import Rate, Schedule, Span, cosine, linear


class Infinite(Schedule):
    """Rises, cools down to a constant rate, stays there, and anneals (arXiv:2403.08763)."""

    contract: ClassVar[int] = 1
    name: Literal["infinite"] = "infinite"
    start_lr: Rate = 0.0
    """The rate at progress 0, from which the line to the peak starts."""
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate at the end of the rise."""
    constant_lr: Annotated[Rate, Field(examples=[1.65e-4])]
    """The rate that the cool-down ends at: runs on other data go on from it."""
    min_lr: Annotated[Rate, Field(gt=0, examples=[3e-5])]
    """The rate at the end of the run, which holds after it; above 0, as no exponential is 0."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """How long the rise takes: a share of the run, or tokens, or steps."""
    cooldown: Literal["cosine", "inverse-sqrt"] = "cosine"
    """The way from peak_lr to constant_lr."""
    cooling: Annotated[Span, Field(ge=0, lt=1)] = Span("60%")
    """How long the cool-down takes, behind the rise: a share of the run, or tokens, or steps."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """How steep `inverse-sqrt` begins; `cosine` has no use for it."""
    annealing: Annotated[Span, Field(gt=0, le=1)] = Span("15%")
    """How long the exponential fall to min_lr takes, up to the end of the run; what is left between
    the cool-down and it is constant."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        three = [100 * span for span in (self.warmup, self.cooling, self.annealing)]
        if math.fsum(three) > 100 + 1e-9:
            rise, cool, anneal = (f"{share:.10g} %" for share in three)
            raise ValueError(
                f"warmup takes {rise} of the run, cooling {cool} and annealing {anneal}; "
                f"together they should take at most 100 %, not {math.fsum(three):.10g} %"
            )
        if not self.min_lr <= self.constant_lr <= self.peak_lr:
            raise ValueError(
                f"constant_lr {self.constant_lr:g} should be between min_lr {self.min_lr:g} "
                f"and peak_lr {self.peak_lr:g}"
            )
        return self

    def __call__(self, progress: float) -> float:
        """Returns the rate on the way up, cooling down, staying, or on the way to the end."""
        if progress < self.warmup:
            return linear(progress / self.warmup, self.start_lr, self.peak_lr)
        left = (1 - min(progress, 1)) / self.annealing  # of the annealing; above 1 before it
        if left < 1:
            return self.min_lr * math.pow(self.constant_lr / self.min_lr, left)
        into = progress - self.warmup
        if into >= self.cooling:
            return self.constant_lr
        if self.cooldown == "cosine":
            return cosine(into / self.cooling, self.peak_lr, self.constant_lr)
        return linear(self._cooled(into / self.cooling), self.peak_lr, self.constant_lr)

    def _cooled(self, x: float) -> float:
        """Returns how much of the way down is done when x of the time is: 0 at 0, 1 at 1."""
        return (1 / math.sqrt(1 + self.alpha * x) - 1) / (1 / math.sqrt(1 + self.alpha) - 1)

    def marks(self) -> dict[str, float]:
        """Returns where warm-up and cool-down end and where the annealing starts."""
        return {
            "end of warm-up": float(self.warmup),
            "end of cool-down": min(1.0, self.warmup + self.cooling),
            "start of annealing": 1 - self.annealing,
        }
