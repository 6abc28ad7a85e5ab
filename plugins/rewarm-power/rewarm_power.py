"""The Power learning-rate schedule, as a plug-in of rewarm."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rewarm import Rate, Schedule, Span, linear
from rewarm.quantities import as_written


class Power(Schedule):
    """Falls with a power of the tokens seen, between warm-up and decay (arXiv:2408.13359)."""

    contract: ClassVar[int] = 1
    name: Literal["power"] = "power"
    peak_lr: Annotated[Rate, Field(gt=0, examples=[0.02])]
    """The rate that the power is cut off at from above; 0.02 in the paper, with µP."""
    min_lr: Annotated[Rate, Field(examples=[1e-5])]
    """The rate at the end of the run, which holds after it."""
    batch: Annotated[float, Field(gt=0, allow_inf_nan=False, examples=[1024])]
    """The batch size that `a` was found for: in the paper, sequences of 4096 tokens."""
    a: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    """The amplitude: batch · a is the rate after one token, were it not cut off."""
    b: Annotated[float, Field(lt=0, allow_inf_nan=False)] = -0.51
    """The exponent of the tokens seen."""
    seen: Annotated[Span, Field(ge=0)] = Span(0)
    """What was trained on before this run, to be counted too: `300B tokens` goes on where the power
    of a base of so many tokens stands."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """How long the rise from 0 takes: a share of the run, or tokens (1B in the paper), or steps."""
    decay: Annotated[Span, Field(gt=0, le=1)] = Span("10%")
    """How long the fall to min_lr takes, up to the end of the run: a share of it, or tokens, or
    steps."""
    shape: Literal["exponential", "linear"] = "exponential"
    """The way down. `exponential` falls by the same factor every step, so min_lr is above 0."""
    token: Annotated[Span, Field(gt=0)] = as_written("1 token")
    """What `a` and `b` count in. It says how much of the run one token is; leave it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup + self.decay > 1:
            rise, fall = 100 * self.warmup, 100 * self.decay
            raise ValueError(
                f"warmup takes {rise:.10g} % of the run and decay {fall:.10g} %; "
                f"together they should take at most 100 %, not {rise + fall:.10g} %"
            )
        if not (self.warmup or self.seen) and self.decay >= 1:
            raise ValueError("the power of no tokens is no rate; give a warmup, or a shorter decay")
        if self.shape == "exponential" and self.min_lr == 0:
            raise ValueError("an exponential decay never reaches 0; min_lr should be above 0")
        if self.min_lr > (top := self._power(1 - self.decay)):
            raise ValueError(
                f"min_lr {self.min_lr:g} should not be above {top:g}, the rate where the decay "
                f"starts: the lower of peak_lr {self.peak_lr:g} and {self.batch:g} × {self.a:g} × "
                f"{self._tokens(1 - self.decay):.6g} tokens ^ {self.b:g}"
            )
        return self

    def _tokens(self, progress: float) -> float:
        return (self.seen + progress) / self.token

    def _power(self, progress: float) -> float:
        return min(self.peak_lr, self.batch * self.a * math.pow(self._tokens(progress), self.b))

    def __call__(self, progress: float) -> float:
        """Returns the rate on the way up, by the power, or on the way down."""
        if progress < self.warmup:
            return self._power(self.warmup) * (progress / self.warmup)
        left = (1 - min(progress, 1)) / self.decay  # of the decay; above 1 before it
        if left >= 1:
            return self._power(progress)
        top = self._power(1 - self.decay)
        if self.shape == "linear":
            return linear(left, self.min_lr, top)
        return self.min_lr * math.pow(top / self.min_lr, left)

    def below_peak_at(self) -> float:
        """Returns the progress at which the power falls below `peak_lr`, be it within the run."""
        tokens = math.pow(self.peak_lr / (self.batch * self.a), 1 / self.b)
        return tokens * self.token - self.seen

    def marks(self) -> dict[str, float]:
        """Returns where the warm-up ends, where the peak is left, and where the decay starts."""
        rises, leaves, falls = float(self.warmup), self.below_peak_at(), 1 - self.decay
        peak = {"end of the peak": leaves} if rises < leaves < falls else {}
        return {"end of warm-up": rises, **peak, "start of decay": falls}
