"""A law for the losses on old and new data under any schedule, as pure functions.

```
n_k   = n_{k-1} + (1 − e^{−κ η_k}) (η_k − n_{k-1}),  n_0 = the base's last rate
S     = Σ η_k                     S_b = Σ η_k (1 + φ e^{−k (1 − β2)})
g(r)  = 1 − ln(1 + r/L) / ln(1 + 1/L)
Δ old = K · g(r) · S_b^a + c (n − n_0)
Δ new = −2B (1 − (1 + E·S)^−b) + s · ln(1/(1 − r)) · S/(1 + S) + c (n − n_0)      saturating
        −B ln(1 + E Σ η^m)       + the same two terms                              logarithmic
```
Δ is the change of a loss since before step 1, in nats per token; η_k the learning rate of step k in
units of the base's peak; r the share of old data among the training tokens. All but the first line
were found on the study cpu-mini, see docs/predict.md, which also says where they fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ReplayShares = float | Array
"""A share of replay, or several: shape (shares, 1), which adds a dimension before the points."""

Form = Literal["saturating", "logarithmic"]
"""How the loss on new data falls over the summed rate."""

_MOST_SEGMENTS = 2_000  # of a schedule; as many as a chart is pixels wide


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a key of a cache
class RateCurve:
    """The learning rates of a run, and their sums at the steps whose losses are of interest.

    A run of more than 2,000 steps is divided into segments of steps, each with its mean rate. The
    sums are exact for any run. The points may also be the ends of several runs, see `run_ends`:
    segments then have the shape (points, segments).
    """

    steps: Array
    """The steps at which losses are given, in order; shape (points,)."""
    summed: Array
    """S at these steps, in units of the base's peak times a step."""
    first_steps: Array
    """Σ η_k e^{−k (1 − β2)} at these steps, in the same unit."""
    segment_lengths: Array
    """The steps in each segment; shape (segments,)."""
    segment_rates: Array
    """The mean rate of each segment, in units of the base's peak."""
    segment_of_point: NDArray[np.intp]
    """The index of the segment that ends at each of `steps`; -1 for step 0."""

    @property
    def run_steps(self) -> float:
        """The steps of the run."""
        return float(self.segment_lengths.sum())

    @property
    def total(self) -> float:
        """S at the end of the run."""
        return float(self.segment_lengths @ self.segment_rates)

    @property
    def peak(self) -> float:
        """The highest rate, in units of the base's peak."""
        return float(self.segment_rates.max())


def rate_curve(rates: Array, steps: list[int], *, beta2: float = 0.95) -> RateCurve:
    """Returns the sums of a schedule's rates.

    Args:
        rates: the rate of each step, in units of the base's peak; shape (steps of the run,).
        steps: the steps at which losses are given, each from 0 to the steps of the run.
        beta2: Adam's β2.
    """
    count = len(rates)
    k = np.arange(1, count + 1)
    grid = np.linspace(0, count, min(count, _MOST_SEGMENTS) + 1).round().astype(np.intp)
    ends = np.unique(np.concatenate([grid, np.asarray(steps, dtype=np.intp)]))
    summed = np.concatenate([[0.0], np.cumsum(rates)])
    first_steps = np.concatenate([[0.0], np.cumsum(rates * np.exp(-k * (1 - beta2)))])
    lengths = np.diff(ends).astype(np.float64)
    return RateCurve(
        np.asarray(steps, dtype=np.float64),
        summed[steps],
        first_steps[steps],
        lengths,
        np.diff(summed[ends]) / lengths,
        np.searchsorted(ends, steps) - 1,
    )


def run_ends(rates: Array, ends: NDArray[np.intp], *, beta2: float = 0.95) -> RateCurve:
    """Returns the ends of several runs of one length as the points of one curve.

    Args:
        rates: the rate of each segment of each run, in units of the base's peak; shape (runs,
            segments).
        ends: the last step of each segment; shape (segments,).
        beta2: Adam's β2.
    """
    runs = len(rates)
    lengths = np.diff(ends, prepend=0).astype(np.float64)
    first = np.cumsum(np.exp(-np.arange(1, ends[-1] + 1) * (1 - beta2)))
    return RateCurve(
        np.full(runs, float(ends[-1])),
        rates @ lengths,
        rates @ np.diff(first[ends - 1], prepend=0.0),
        np.broadcast_to(lengths, rates.shape),
        rates,
        np.full(runs, len(ends) - 1),
    )


def _at_points(curve: RateCurve, values: Array) -> Array:
    """Returns at the points what is given before the first segment and at the end of each."""
    index = curve.segment_of_point + 1
    return values[index] if values.ndim == 1 else values[np.arange(len(index)), index]


def noise_level(curve: RateCurve, kappa: float, start: float) -> Array:
    """Returns n at the points of a curve: a noise level that follows the rate.

    It is the recursion n_k = n_{k-1} + (1 − e^{−κ η_k}) (η_k − n_{k-1}), by its closed form
    n_k = e^{−κ S_k} (n_0 + Σ_j (e^{κ S_j} − e^{κ S_{j-1}}) η_j), summed in logarithms, as e^{κ S}
    overflows.

    Args:
        curve: the learning rates.
        kappa: κ, how fast it follows, per summed rate.
        start: n_0, the base's last rate in units of its peak.
    """
    growth = kappa * curve.segment_lengths * curve.segment_rates
    exponent = np.cumsum(growth, axis=-1)
    with np.errstate(divide="ignore"):  # a rate of 0 adds nothing: its logarithm is -inf
        terms = np.log(-np.expm1(-growth)) + np.log(curve.segment_rates) + exponent
        first = np.full((*terms.shape[:-1], 1), np.log(start))
        levels = np.logaddexp.accumulate(np.concatenate([first, terms], axis=-1), axis=-1)
    levels[..., 1:] -= exponent
    return np.exp(_at_points(curve, levels))


def replay_factor(replay: ReplayShares, scale: float) -> Array:
    """Returns g(r): the share of forgetting that a share of replay leaves; 1 at 0, and 0 at 1.

    Logarithmic in r/L. An exponential of r, as in arXiv:2505.07796, fits neither cpu-mini nor the
    405M table of arXiv:2403.08763.
    """
    return np.asarray(1 - np.log1p(replay / scale) / np.log1p(1 / scale))


class OldTerms(NamedTuple):
    """The parameters of the loss on old data, without the noise level's."""

    K: float
    """Forgetting at a summed rate of 1, in nats."""
    a: float
    """The power of the summed rate."""
    phi: float
    """φ: how much more the first step of a fresh Adam moves the weights; 0: as much as others."""
    L: float
    """The share of replay from which on it matters."""


class NewTerms(NamedTuple):
    """The parameters of the loss on new data, without the noise level's."""

    B: float
    """Half of the fall after endless training (saturating), or the fall per unit of the logarithm,
    in nats."""
    E: float
    """How fast it begins, per summed rate."""
    b: float
    """The power by which it saturates, or the power m of each rate in the logarithmic form."""
    s: float
    """The cost of replay per unit of ln(1/(1 − r)), in nats."""


class NoiseTerms(NamedTuple):
    """The parameters of the noise level, which the losses on old and new data share."""

    c: float
    """The loss that a noise level of 1, the base's peak, adds, in nats."""
    kappa: float
    """κ, see `noise_level`."""


def noise_change(curve: RateCurve, start: float, noise: NoiseTerms) -> Array:
    """Returns c (n − n_0) at the points of a curve, in nats."""
    return noise.c * (noise_level(curve, noise.kappa, start) - start)


def forgetting(curve: RateCurve, replay: ReplayShares, terms: OldTerms) -> Array:
    """Returns K · g(r) · S_b^a at the points of a curve, in nats; without the noise."""
    summed = curve.summed + terms.phi * curve.first_steps
    return np.asarray(terms.K * replay_factor(replay, terms.L) * summed**terms.a)


def adaptation(curve: RateCurve, replay: ReplayShares, terms: NewTerms, form: Form) -> Array:
    """Returns how far the loss on new data falls at the points of a curve, in nats.

    Without the noise, and less the cost of replay. The replay share has to be below 1.
    """
    if form == "saturating":  # the form of arXiv:2505.07796, with 2B in place of B
        fall = 2 * terms.B * -np.expm1(-terms.b * np.log1p(terms.E * curve.summed))
    else:
        powers = np.cumsum(curve.segment_lengths * curve.segment_rates**terms.b, axis=-1)
        before = np.zeros((*powers.shape[:-1], 1))
        summed = _at_points(curve, np.concatenate([before, powers], axis=-1))
        fall = terms.B * np.log1p(terms.E * summed)
    cost = terms.s * -np.log1p(-replay) * curve.summed / (1 + curve.summed)
    return np.asarray(fall - cost)


def annealing_area(curve: RateCurve, start: float, decay: float) -> Array:
    """Returns S2 of arXiv:2505.07796 at the points of a curve: Σ_k Σ_{j≤k} (η_{j-1} − η_j) λ^{k−j}.

    Only for comparison with the law. Exact for runs of up to 2,000 steps; longer ones count as
    segments of equal length.

    Args:
        curve: the learning rates.
        start: the base's last rate in units of its peak.
        decay: λ.
    """
    length = float(curve.segment_lengths.mean())
    falls = -np.diff(curve.segment_rates, prepend=start)
    momentum, span = falls.copy(), 1  # of the last `span` falls, which doubles
    while span < len(momentum):
        momentum[span:] += decay ** (length * span) * momentum[:-span]
        span *= 2
    area = np.concatenate([[0.0], np.cumsum(momentum * curve.segment_lengths)])
    return np.asarray(area[curve.segment_of_point + 1])
