"""Warm-up, stable, decay: the WSD learning-rate schedule, as a plug-in of rewarm."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rewarm import Rate, Schedule, Span, cosine, linear


class Wsd(Schedule):
    """Rises to the peak, stays there, and decays at the end (arXiv:2404.06395, 2405.18392)."""

    contract: ClassVar[int] = 1
    name: Literal["wsd"] = "wsd"
    start_lr: Rate = 0.0
    """The rate at progress 0, from which the line to the peak starts."""
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate of the stable part."""
    min_lr: Annotated[Rate, Field(examples=[3e-5])]
    """The rate at the end of the run, which holds after it."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """How long the rise takes: a share of the run, or tokens, or steps."""
    decay: Annotated[Span, Field(gt=0, le=1)] = Span("20%")
    """How long the fall takes, up to the end of the run: a share of it, or tokens, or steps."""
    shape: Literal["1-sqrt", "linear", "cosine", "exponential"] = "1-sqrt"
    """The way down. `exponential` falls by the same factor every step, so min_lr is above 0."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup + self.decay > 1:
            rise, fall = 100 * self.warmup, 100 * self.decay
            raise ValueError(
                f"warmup takes {rise:.10g} % of the run and decay {fall:.10g} %; "
                f"together they should take at most 100 %, not {rise + fall:.10g} %"
            )
        if self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr {self.min_lr:g} should not be above peak_lr {self.peak_lr:g}")
        if self.shape == "exponential" and self.min_lr == 0:
            raise ValueError("an exponential decay never reaches 0; min_lr should be above 0")
        return self

    def __call__(self, progress: float) -> float:
        """Returns the rate on the way up, at the peak, or on the way down."""
        if progress < self.warmup:
            return linear(progress / self.warmup, self.start_lr, self.peak_lr)
        left = (1 - min(progress, 1)) / self.decay  # of the decay: 1 at its start, 0 at its end
        # Not `left >= 1`: the root is steepest at 1, and would make rounding there visible.
        if left > 1 - 1e-12:
            return self.peak_lr
        match self.shape:
            case "1-sqrt":
                return linear(1 - math.sqrt(1 - left), self.min_lr, self.peak_lr)
            case "linear":
                return linear(left, self.min_lr, self.peak_lr)
            case "cosine":
                return cosine(1 - left, self.peak_lr, self.min_lr)
            case "exponential":
                return self.min_lr * math.pow(self.peak_lr / self.min_lr, left)

    def marks(self) -> dict[str, float]:
        """Returns where the warm-up ends and where the decay starts."""
        return {"end of warm-up": float(self.warmup), "start of decay": 1 - self.decay}
