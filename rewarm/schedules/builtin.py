"""The built-in schedules: rewarm (arXiv:2308.04014), no-warmup and constant."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rewarm.quantities import Rate, Span
from rewarm.schedules.base import Schedule, cosine, linear

Decay = Literal["cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt", "none"]


class NoWarmup(Schedule):
    """Starts at the peak and decays to the minimum: `rewarm` without the rise."""

    contract: ClassVar[int] = 1
    name: Literal["no-warmup"] = "no-warmup"
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate that the decay starts from."""
    min_lr: Annotated[Rate | None, Field(examples=[3e-5])] = None
    """The rate that the decay ends at, and the floor that holds after it; required, but for
    `decay: none`."""
    preheat: Annotated[Span, Field(ge=0, lt=1)] = Span(0)
    """How long the rate is 0 at first, before everything else: Adam's moments fill, and the weights
    stay as they are."""
    decay: Decay = "cosine"
    """`cosine`, `linear` and `1-sqrt` reach min_lr at the end of the run. `clipped-cosine` is the
    curve that arXiv:2308.04014 ran: a cosine to zero whose period is the whole run, cut off at
    min_lr. `inverse-sqrt` falls with the root of the steps since warm-up began (arXiv:1706.03762),
    down to min_lr. `none` keeps the peak."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.decay == "none":
            if self.min_lr is not None:
                raise ValueError("decay: none stays at peak_lr and has no min_lr; take it away")
        elif self.min_lr is None:
            raise ValueError(f"min_lr is required with decay: {self.decay}")
        elif self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr {self.min_lr:g} should not be above peak_lr {self.peak_lr:g}")
        if self._rise >= 1:
            raise ValueError("preheat and warmup together should be less than the whole run")
        if self.decay == "inverse-sqrt" and self._rise == self.preheat:
            raise ValueError(
                "inverse-sqrt falls with the root of the steps since warm-up began; it needs a "
                "warmup, so use the schedule rewarm with a warmup above 0, or another decay"
            )
        return self

    @property
    def _rise(self) -> float:
        """Where the decay begins."""
        return float(self.preheat)

    def __call__(self, progress: float) -> float:
        """Returns 0 up to `preheat`, then the rate on the way down to `min_lr`."""
        if self.preheat and progress <= self.preheat:
            return 0.0
        if self.min_lr is None:
            return self.peak_lr
        rise = self._rise
        fallen, left = min(progress, 1) - rise, 1 - rise
        match self.decay:
            case "clipped-cosine":
                # The period is the whole run, not what is left of it after warm-up: see floor_at.
                return max(cosine(fallen, self.peak_lr, 0.0), self.min_lr)
            case "inverse-sqrt":
                warmup = rise - self.preheat
                return max(self.peak_lr * math.sqrt(warmup / (warmup + fallen)), self.min_lr)
            case "1-sqrt":
                return linear(math.sqrt(fallen / left), self.peak_lr, self.min_lr)
            case "linear":
                return linear(fallen / left, self.peak_lr, self.min_lr)
        return cosine(fallen / left, self.peak_lr, self.min_lr)

    def floor_at(self) -> float:
        """Returns the progress at which `min_lr` is reached.

        For `clipped-cosine` that is w + arccos(2·min/peak − 1)/π: 80.5 % of the run for a 1 %
        warm-up and a tenth of the peak (240 B of 296.86 B tokens, as arXiv:2308.04014 says).
        For `inverse-sqrt` it is w·(peak/min)², if that is within the run.
        """
        if self.min_lr is None or self.peak_lr == 0:
            return 1.0
        if self.decay == "inverse-sqrt":
            fallen = self.peak_lr / self.min_lr if self.min_lr else math.inf
            return min(1.0, self.preheat + (self._rise - self.preheat) * fallen**2)
        if self.decay != "clipped-cosine":
            return 1.0
        return min(1.0, self._rise + math.acos(2 * self.min_lr / self.peak_lr - 1) / math.pi)

    def marks(self) -> dict[str, float]:
        """Returns where pre-heating ends and where the floor is reached."""
        heated = {"end of pre-heating": float(self.preheat)} if self.preheat else {}
        return heated | ({} if self.min_lr is None else {"floor": self.floor_at()})


class Rewarm(NoWarmup):
    """Rises linearly to the peak, then decays to the minimum (arXiv:2308.04014)."""

    contract: ClassVar[int] = 1
    name: Literal["rewarm"] = "rewarm"  # type: ignore[assignment]
    start_lr: Rate = 0.0
    """The rate at progress 0, from which the line to the peak starts."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """How long the rise takes, behind `preheat`: a share of the run, or tokens, or steps."""

    @property
    def _rise(self) -> float:
        return self.preheat + self.warmup

    def __call__(self, progress: float) -> float:
        """Returns 0 up to `preheat`, then the rate on the way up, then on the way down."""
        if self.preheat < progress < self._rise:
            return linear((progress - self.preheat) / self.warmup, self.start_lr, self.peak_lr)
        return super().__call__(progress)

    def marks(self) -> dict[str, float]:
        """Returns where pre-heating and warm-up end and where the floor is reached."""
        return {**super().marks(), "end of warm-up": self._rise}


class Constant(Schedule):
    """Keeps one rate throughout."""

    contract: ClassVar[int] = 1
    name: Literal["constant"] = "constant"
    lr: Annotated[Rate, Field(examples=[3e-5])]
    """The rate of every step."""

    def __call__(self, progress: float) -> float:
        """Returns `lr`."""
        return self.lr
