"""Warm-up, stable, decay: the WSD and WSD-S learning-rate schedules, as plug-ins of rewarm."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rewarm import Rate, Schedule, Span, cosine, linear
from rewarm.quantities import Share

_ROUNDING = 1e-12  # nearer than this, two places of a run are one


class _Fall(NamedTuple):
    end: float
    length: float


class _Plateau(Schedule):
    """Rises to the peak and stays there, but for one decay or several."""

    start_lr: Rate = 0.0
    """The rate at progress 0, from which the line to the peak starts."""
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate of the stable part."""
    min_lr: Annotated[Rate, Field(examples=[3e-5])] = 0.0
    """The rate at the end of a decay; that of the run's end holds after it."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """How long the rise takes: a share of the run, or tokens, or steps."""
    shape: Literal["1-sqrt", "linear", "cosine", "exponential", "inverse"] = "1-sqrt"
    """The way down. `exponential` falls by the same factor every step, and with `inverse` 1 / rate
    rises in a line (arXiv:2410.05192); both need a min_lr above 0."""

    @abstractmethod
    def _falls(self) -> list[_Fall]:
        """Returns the decays, in order; the last ends with the run."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        first = self._falls()[0]
        if self.warmup + first.length > first.end + _ROUNDING:
            rise, fall = 100 * self.warmup, 100 * first.length
            raise ValueError(
                f"warmup takes {rise:.10g} % of the run and decay {fall:.10g} %; together they "
                f"should take at most {100 * first.end:.10g} %, not {rise + fall:.10g} %"
            )
        if self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr {self.min_lr:g} should not be above peak_lr {self.peak_lr:g}")
        if self.shape in ("exponential", "inverse") and self.min_lr == 0:
            raise ValueError(f"an {self.shape} decay never reaches 0; min_lr should be above 0")
        return self

    def __call__(self, progress: float) -> float:
        """Returns the rate on the way up, at the peak, or on the way down."""
        if progress < self.warmup:
            return linear(progress / self.warmup, self.start_lr, self.peak_lr)
        falls = self._falls()
        fall = next((one for one in falls if progress <= one.end + _ROUNDING), falls[-1])
        # Of the decay: 1 at its start, 0 at its end.
        left = max(0.0, fall.end - progress) / fall.length
        # Not `left >= 1`: the root is steepest at 1, and would make rounding there visible.
        if left > 1 - _ROUNDING:
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
            case "inverse":
                return self.min_lr / linear(left, 1.0, self.min_lr / self.peak_lr)


class Wsd(_Plateau):
    """Rises to the peak, stays there, and decays at the end (arXiv:2404.06395, 2405.18392)."""

    contract: ClassVar[int] = 1
    name: Literal["wsd"] = "wsd"
    decay: Annotated[Span, Field(gt=0, le=1)] = Span("20%")
    """How long the fall takes, up to the end of the run: a share of it, or tokens, or steps."""

    def _falls(self) -> list[_Fall]:
        return [_Fall(1.0, self.decay)]

    def marks(self) -> dict[str, float]:
        """Returns where the warm-up ends and where the decay starts."""
        return {"end of warm-up": float(self.warmup), "start of decay": 1 - self.decay}


class WsdS(_Plateau):
    """Decays several times in one run, and is back at the peak after each (arXiv:2410.05192)."""

    contract: ClassVar[int] = 1
    name: Literal["wsd-s"] = "wsd-s"
    returns: Annotated[
        tuple[Annotated[Span, Field(gt=0, lt=1)], ...],
        Field(min_length=1, examples=[["25%", "50%"]]),
    ]
    """Where a decay ends and the next step is at the peak again: shares of the run, or tokens, or
    steps. One more decay ends with the run."""
    decay: Annotated[Share, Field(gt=0, le=1)] = 0.1
    """How long each decay takes, as a share of its stretch: from the return before it, or the start
    of the run, to its end."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.returns)):
            places = ", ".join(f"{100 * place:.10g} %" for place in self.returns)
            raise ValueError(f"each of returns should be behind the one before it, not {places}")
        return self

    def _falls(self) -> list[_Fall]:
        ends = [0.0, *self.returns, 1.0]
        return [_Fall(end, self.decay * (end - start)) for start, end in pairwise(ends)]

    def marks(self) -> dict[str, float]:
        """Returns where the warm-up ends and where each decay starts and ends."""
        places = {"end of warm-up": float(self.warmup)}
        for number, fall in enumerate(self._falls(), start=1):
            places[f"start of decay {number}"] = fall.end - fall.length
            places[f"end of decay {number}"] = float(fall.end)
        return places
