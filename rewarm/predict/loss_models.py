"""Models of losses as vectors of logarithms with priors: the law, and two that it is compared with.

Each gives the change of a validation loss at the points of a rate curve, for a share of replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from rewarm.predict.law import (
    Array,
    Form,
    NewTerms,
    NoiseTerms,
    OldTerms,
    RateCurve,
    ReplayShares,
    adaptation,
    annealing_area,
    forgetting,
    noise_change,
    replay_factor,
)


class Prior(NamedTuple):
    """A normal distribution of a parameter's logarithm."""

    median: float
    spread: float


# Those of a, φ, m and s are knowledge of docs/predict.md; the others only keep a fit finite.
# s was 0.29 to 0.48 in four fits to shares of up to 25 %; what 5 % costs is less than seeds do.
_NOISE_PRIORS = {"c": Prior(0.25, 2.0), "kappa": Prior(0.2, 1.5)}
_OLD_PRIORS = {
    "K": Prior(0.3, 3.0),
    "a": Prior(0.36, 0.25),
    "phi": Prior(2.0, 0.5),
    "L": Prior(1e-3, 2.0),
}
_NEW_PRIORS: dict[Form, dict[str, Prior]] = {
    "saturating": {
        "B": Prior(1.5, 3.0),
        "E": Prior(1.0, 3.0),
        "b": Prior(0.2, 1.0),
        "s": Prior(0.35, 0.3),
    },
    "logarithmic": {
        "B": Prior(0.3, 3.0),
        "E": Prior(1.0, 3.0),
        "m": Prior(0.85, 0.15),
        "s": Prior(0.35, 0.3),
    },
}


class LossModel(Protocol):
    """A model whose parameters are positive."""

    @property
    def old(self) -> tuple[str, ...]:
        """The validation sets of old data."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The validation sets whose losses it models, those of old data first."""

    @property
    def priors(self) -> Mapping[str, Prior]:
        """The prior of each parameter by its name, in the order of the vector."""

    def change(
        self, logarithms: Array, validation_set: str, curve: RateCurve, replay: float
    ) -> Array:
        """Returns the change of a loss since before step 1, in nats; shape (points,).

        Args:
            logarithms: of the parameters, natural; shape (parameters,).
            validation_set: one of `sets`.
            curve: the learning rates.
            replay: the share of old data among the training tokens.
        """


# Most of a fit's time: of the steps that a derivative takes, only one or two change them, and all
# validation sets have the noise in common.
_noise_change = lru_cache(maxsize=256)(noise_change)
_annealing_area = lru_cache(maxsize=256)(annealing_area)


@dataclass(frozen=True)
class LawModel:
    """The law of `rewarm.predict.law`. Its validation sets have the noise terms in common."""

    old: tuple[str, ...]
    """The validation sets of old data."""
    new: tuple[str, ...]
    """The validation sets of new data."""
    start: float
    """n_0, the base's last rate in units of its peak."""
    form: Form = "saturating"

    @property
    def sets(self) -> tuple[str, ...]:
        """The validation sets, those of old data first."""
        return self.old + self.new

    @cached_property
    def priors(self) -> Mapping[str, Prior]:
        """The priors: of c and κ, then of four parameters for each validation set."""
        return _NOISE_PRIORS | {
            f"{name} {key}": prior
            for name in self.sets
            for key, prior in (_OLD_PRIORS if name in self.old else _NEW_PRIORS[self.form]).items()
        }

    def change(
        self, logarithms: Array, validation_set: str, curve: RateCurve, replay: ReplayShares
    ) -> Array:
        """Returns the change of a loss, in nats; for several shares of replay a row for each."""
        values = [float(value) for value in np.exp(logarithms)]
        first = len(_NOISE_PRIORS) + 4 * self.sets.index(validation_set)
        four = values[first : first + 4]
        noise = _noise_change(curve, self.start, NoiseTerms(*values[:2]))
        if validation_set in self.old:
            return noise + forgetting(curve, replay, OldTerms(*four))
        return noise - adaptation(curve, replay, NewTerms(*four), self.form)


@dataclass(frozen=True)
class PublishedModel:
    """The form of arXiv:2505.07796, counted from the base's end, each validation set by itself.

    ```
    Δ old =  B g(r) (1 − (1 + E·S)^−β) − C · S2
    Δ new = −B e^{−q r} (1 − (1 + E·S)^−β) − C · S2
    ```
    S2 is the annealing area with the decay λ. Without the term of the pre-training's own trend,
    which is not known from the arms, and with the law's g(r) unless e^{−q r} is asked for.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    start: float
    forgetting_rate: float | None = None
    """1 − λ; None to fit it."""
    exponential_replay: bool = False
    """Whether replay divides forgetting by e^{q r}, as it does the fall on new data."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The validation sets, those of old data first."""
        return self.old + self.new

    @cached_property
    def priors(self) -> Mapping[str, Prior]:
        """The priors, which only keep the fit finite."""
        keys = {
            "B": Prior(2.0, 3.0),
            "E": Prior(0.1, 3.0),
            "beta": Prior(0.3, 1.5),
            "C": Prior(0.01, 3.0),
        }
        if self.forgetting_rate is None:
            keys["1 - lambda"] = Prior(0.01, 2.0)
        if self.exponential_replay:
            return _with_replay(keys, (), self.sets)
        return _with_replay(keys, self.old, self.new)

    def change(
        self, logarithms: Array, validation_set: str, curve: RateCurve, replay: float
    ) -> Array:
        """Returns the change of a loss, in nats."""
        count = len(logarithms) // len(self.sets)
        first = count * self.sets.index(validation_set)
        values = [float(value) for value in np.exp(logarithms[first : first + count])]
        B, E, beta, C = values[:4]
        rate = values[4] if self.forgetting_rate is None else self.forgetting_rate
        is_old = validation_set in self.old
        if is_old and self.exponential_replay:
            factor = float(np.exp(-values[-1] * replay))
        else:
            factor = _signed_factor(replay, values[-1], is_old=is_old)
        shift = factor * B * -np.expm1(-beta * np.log1p(E * curve.summed))
        return np.asarray(shift - C * _annealing_area(curve, self.start, 1 - min(rate, 1.0)))


@dataclass(frozen=True)
class TokensModel:
    """A power law in the step k, whatever the rates: K g(r) k^a on old data, −K e^{−q r} k^a."""

    old: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def sets(self) -> tuple[str, ...]:
        """The validation sets, those of old data first."""
        return self.old + self.new

    @cached_property
    def priors(self) -> Mapping[str, Prior]:
        """The priors, which only keep the fit finite."""
        return _with_replay({"K": Prior(0.3, 3.0), "a": Prior(0.3, 1.0)}, self.old, self.new)

    def change(
        self, logarithms: Array, validation_set: str, curve: RateCurve, replay: float
    ) -> Array:
        """Returns the change of a loss, in nats."""
        first = 3 * self.sets.index(validation_set)
        K, a, scale = (float(value) for value in np.exp(logarithms[first : first + 3]))
        factor = _signed_factor(replay, scale, is_old=validation_set in self.old)
        return np.asarray(factor * K * curve.steps**a)


def _with_replay(
    keys: Mapping[str, Prior], old: tuple[str, ...], new: tuple[str, ...]
) -> dict[str, Prior]:
    """Returns the priors of each validation set: those given, and then that of replay."""
    by_old = {**keys, "L": _OLD_PRIORS["L"]}
    by_new = {**keys, "q": Prior(1.0, 2.0)}
    return {
        f"{name} {key}": prior
        for name in old + new
        for key, prior in (by_old if name in old else by_new).items()
    }


def _signed_factor(replay: float, scale: float, *, is_old: bool) -> float:
    """Returns g(r) with L = `scale` on old data, and −e^{−q r} with q = `scale` on new data."""
    return float(replay_factor(replay, scale)) if is_old else -float(np.exp(-scale * replay))
