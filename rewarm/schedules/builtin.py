"""The built-in schedules: rewarm (arXiv:2308.04014), no-warmup and constant."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rewarm.quantities import Rate, Span
from rewarm.schedules.base import Schedule, cosine, linear

Decay = Literal["cosine", "clipped-cosine", "linear", "1-sqrt", "inverse-sqrt", "none"]


class NoWarmup(Schedule):
    """Starts at the peak and decays to the minimum: `rewarm` without the warm-up.

    With P = peak_lr, m = min_lr, h = preheat, and x = (progress - h) / (1 - h) clamped to 1:

    ```
    lr = 0                                          up to preheat; after it, by decay:
    lr = m + (P - m) · (1 + cos πx) / 2             cosine
    lr = max(m, P · (1 + cos(π(progress - h))) / 2)   clipped-cosine
    lr = P - (P - m) · x                            linear
    lr = P - (P - m) · √x                           1-sqrt
    lr = P                                          none
    ```

    >>> [NoWarmup(peak_lr=1.0, min_lr=0.0, decay="linear")(p) for p in (0.25, 0.5, 1.0)]
    [0.75, 0.5, 0.0]
    """

    contract: ClassVar[int] = 1
    name: Literal["no-warmup"] = "no-warmup"
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The learning rate at which the decay starts."""
    min_lr: Annotated[Rate | None, Field(examples=[3e-5])] = None
    """The learning rate at which the decay ends, kept afterwards; required unless `decay: none`."""
    preheat: Annotated[Span, Field(ge=0, lt=1)] = Span(0)
    """How long the learning rate is 0 at the start: a share of the run, tokens or steps. Adam's
    moments build up while the weights do not change."""
    decay: Decay = "cosine"
    """`cosine`, `linear` and `1-sqrt` reach min_lr at the end of the run. `clipped-cosine` is the
    curve of arXiv:2308.04014: a cosine to zero over the length of the whole run, clipped at min_lr.
    `inverse-sqrt` falls with the inverse square root of the steps since the warm-up began
    (arXiv:1706.03762), down to min_lr. `none` keeps the peak."""

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        if self.decay == "none":
            if self.min_lr is not None:
                raise ValueError("decay: none stays at peak_lr and has no min_lr; remove min_lr")
        elif self.min_lr is None:
            raise ValueError(f"min_lr is required with decay: {self.decay}")
        elif self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr {self.min_lr:g} should not be above peak_lr {self.peak_lr:g}")
        if self._decay_start >= 1:
            raise ValueError("preheat and warmup together should be less than the whole run")
        if self.decay == "inverse-sqrt" and self._decay_start == self.preheat:
            raise ValueError(
                "inverse-sqrt falls with the inverse square root of the steps since the warm-up "
                "began; it needs a warmup, so use the schedule rewarm with a warmup above 0, or "
                "another decay"
            )
        return self

    @property
    def _decay_start(self) -> float:
        """The progress at which the decay begins."""
        return float(self.preheat)

    def __call__(self, progress: float) -> float:
        """Returns 0 up to `preheat`, then the learning rate of the decay."""
        if self.preheat and progress <= self.preheat:
            return 0.0
        if self.min_lr is None:
            return self.peak_lr
        decay_start = self._decay_start
        elapsed, length = min(progress, 1) - decay_start, 1 - decay_start
        match self.decay:
            case "clipped-cosine":
                # The cosine is as long as the whole run, not as the decay: see floor_progress.
                return max(cosine(elapsed, self.peak_lr, 0.0), self.min_lr)
            case "inverse-sqrt":
                warmup = decay_start - self.preheat
                return max(self.peak_lr * math.sqrt(warmup / (warmup + elapsed)), self.min_lr)
            case "1-sqrt":
                return linear(math.sqrt(elapsed / length), self.peak_lr, self.min_lr)
            case "linear":
                return linear(elapsed / length, self.peak_lr, self.min_lr)
        return cosine(elapsed / length, self.peak_lr, self.min_lr)

    def floor_progress(self) -> float:
        """Returns the progress at which `min_lr` is reached.

        For `clipped-cosine` that is preheat + warmup + arccos(2·min_lr/peak_lr - 1)/π: 80.5% of
        the run for a 1% warm-up and min_lr = peak_lr/10 (240 B of 296.86 B tokens, as
        arXiv:2308.04014 says). For `inverse-sqrt` it is preheat + warmup·(peak_lr/min_lr)², if
        that is within the run.
        """
        if self.min_lr is None or self.peak_lr == 0:
            return 1.0
        if self.decay == "inverse-sqrt":
            ratio = self.peak_lr / self.min_lr if self.min_lr else math.inf
            return min(1.0, self.preheat + (self._decay_start - self.preheat) * ratio**2)
        if self.decay != "clipped-cosine":
            return 1.0
        return min(1.0, self._decay_start + math.acos(2 * self.min_lr / self.peak_lr - 1) / math.pi)

    def marks(self) -> dict[str, float]:
        """Returns the progress at the end of pre-heating and at the floor."""
        preheat = {"end of pre-heating": float(self.preheat)} if self.preheat else {}
        return preheat | ({} if self.min_lr is None else {"floor": self.floor_progress()})


class Rewarm(NoWarmup):
    """Rises linearly to the peak, then decays to the minimum (arXiv:2308.04014).

    With s = start_lr, P = peak_lr, h = preheat and w = warmup:

    ```
    lr = 0                                   up to h
    lr = s + (P - s) · (progress - h) / w    up to h + w
    ```

    and after that the decay of `no-warmup`, with h + w in place of h. The decay `inverse-sqrt`,
    which only this schedule has, is lr = max(m, P · √(w / (progress - h))).

    >>> [Rewarm(peak_lr=1.0, min_lr=0.0, warmup="50%")(p) for p in (0.25, 0.5, 0.75, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """

    contract: ClassVar[int] = 1
    name: Literal["rewarm"] = "rewarm"  # type: ignore[assignment]
    start_lr: Rate = 0.0
    """The learning rate at which the warm-up starts."""
    warmup: Annotated[Span, Field(ge=0, lt=1)] = Span("1%")
    """Length of the warm-up, which follows `preheat`: a share of the run, tokens or steps."""

    @property
    def _decay_start(self) -> float:
        return self.preheat + self.warmup

    def __call__(self, progress: float) -> float:
        """Returns 0 up to `preheat`, then the learning rate of the warm-up, then of the decay."""
        if self.preheat < progress < self._decay_start:
            return linear((progress - self.preheat) / self.warmup, self.start_lr, self.peak_lr)
        return super().__call__(progress)

    def marks(self) -> dict[str, float]:
        """Returns the progress at the end of pre-heating and of the warm-up, and at the floor."""
        return {**super().marks(), "end of warm-up": self._decay_start}


class Constant(Schedule):
    """Keeps the learning rate constant.

    ```
    lr(progress) = lr
    ```

    >>> [Constant(lr=3e-05)(p) for p in (0.5, 1.0)]
    [3e-05, 3e-05]
    """

    contract: ClassVar[int] = 1
    name: Literal["constant"] = "constant"
    lr: Annotated[Rate, Field(examples=[3e-5])]
    """The learning rate of every step."""

    def __call__(self, progress: float) -> float:
        """Returns `lr`."""
        return self.lr
