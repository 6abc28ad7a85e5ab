"""Decay to zero: a learning-rate schedule in ten lines, as a plug-in of rewarm."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rewarm import Rate, Schedule, Span


class D2z(Schedule):
    """Rises to the peak, then falls in a line to zero (arXiv:2502.15938)."""

    contract: ClassVar[int] = 1
    name: Literal["d2z"] = "d2z"
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate at the end of the rise."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("10%")
    """How long the rise from 0 takes: a share of the run, or tokens, or steps."""

    def __call__(self, progress: float) -> float:
        """Returns the rate on the way up, or on the way down."""
        if progress < self.warmup:
            return self.peak_lr * (progress / self.warmup)
        return self.peak_lr * ((1 - min(progress, 1)) / (1 - self.warmup))

    def marks(self) -> dict[str, float]:
        """Returns where the warm-up ends."""
        return {"end of warm-up": float(self.warmup)}
