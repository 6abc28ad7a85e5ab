"""Fits a model of losses to the losses of arms, with the uncertainty of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from rewarm.predict.law import Array, RateCurve
from rewarm.predict.loss_models import LossModel

_STARTS = 4
"""Fits from different starts, of which the best is taken."""
_RESOLUTION = 0.01
"""The residual from which on a point counts less, as a share of the largest change of its loss."""
_POINTS_PER_ARM = 8.0
"""How many independent points an arm counts as: neighbouring losses have the same error."""

_Model = TypeVar("_Model", bound=LossModel)


class Probe(NamedTuple):
    """The losses of an arm that was run, averaged over its seeds."""

    arm: str
    curve: RateCurve
    replay: float
    """The share of old data among its training tokens: 0 to 1."""
    changes: Mapping[str, Array]
    """The change of each validation loss since before step 1, in nats, at the curve's steps."""

    def sets(self, model: LossModel) -> list[str]:
        """Returns the validation sets for which it counts: with nothing but replay, the old."""
        names = model.sets if self.replay < 1 else model.old
        return [name for name in names if name in self.changes]


class Fit(NamedTuple, Generic[_Model]):
    """A model that was fitted to probes."""

    model: _Model
    logarithms: Array
    """The logarithms of the parameters; shape (parameters,)."""
    covariance: Array
    """Of the logarithms, by Laplace's approximation; shape (parameters, parameters)."""
    cost: float
    """Half the sum of the weighted squared residuals (soft-L1) and of those of the priors."""

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Each parameter by name, and the factor of one standard error up or down."""
        errors = np.exp(np.sqrt(np.diag(self.covariance)))
        values = zip(np.exp(self.logarithms), errors, strict=True)
        pairs = [(float(value), float(error)) for value, error in values]
        return dict(zip(self.model.priors, pairs, strict=True))

    def change(self, validation_set: str, curve: RateCurve, replay: float) -> Array:
        """Returns the change of a validation loss at the points of a curve, in nats."""
        return self.model.change(self.logarithms, validation_set, curve, replay)

    def standard_error(self, validation_set: str, curve: RateCurve, replay: float) -> Array:
        """Returns that of a change which follows from the covariance, in nats."""
        step = 1e-4
        columns = [
            (
                self.model.change(self.logarithms + direction, validation_set, curve, replay)
                - self.model.change(self.logarithms - direction, validation_set, curve, replay)
            )
            / (2 * step)
            for direction in np.eye(len(self.logarithms)) * step
        ]
        jacobian = np.stack(columns, axis=1)
        return np.asarray(np.sqrt(np.einsum("pi,ij,pj->p", jacobian, self.covariance, jacobian)))


def fit_model(model: _Model, probes: Sequence[Probe], *, start: Array | None = None) -> Fit[_Model]:
    """Returns a model fitted to probes: robustly (soft-L1), each arm with the same weight.

    Within an arm, a loss counts by the share of the run that is done: most runs are evaluated
    densely at their start, where losses jump, and what is to be predicted is their end.

    Args:
        model: the model.
        probes: the arms; those that train on nothing but old data count for the losses on it.
        start: the logarithms to start from, those of a fit to almost the same arms; by default
            the best of four starts is taken.
    """
    from scipy.optimize import least_squares

    medians = np.log([prior.median for prior in model.priors.values()])
    spreads = np.array([prior.spread for prior in model.priors.values()])
    scales = _loss_scales(model, probes)
    weights = [
        np.sqrt(_POINTS_PER_ARM * probe.curve.steps / probe.curve.steps.sum()) for probe in probes
    ]

    def residuals(logarithms: Array) -> Array:
        parts = [(logarithms - medians) / spreads]
        for probe, weight in zip(probes, weights, strict=True):
            for name in probe.sets(model):
                change = model.change(logarithms, name, probe.curve, probe.replay)
                error = (change - probe.changes[name]) / scales[name]
                parts.append(error * weight)
        return np.concatenate(parts)

    random = np.random.default_rng(0)
    step = np.minimum(spreads, 1.0)
    starts = [start] if start is not None else [medians]
    if start is None:
        starts += [*(medians + step * random.standard_normal((_STARTS - 1, len(medians))))]
    bounds = (medians - 6 * spreads, medians + 6 * spreads)
    fits = [
        least_squares(residuals, first, loss="soft_l1", x_scale=step, bounds=bounds, max_nfev=200)
        for first in starts
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    covariance = np.linalg.inv(best.jac.T @ best.jac)
    return Fit(model, best.x, covariance, float(best.cost))


def _loss_scales(model: LossModel, probes: Sequence[Probe]) -> dict[str, float]:
    """Returns the residual of each validation loss from which on a point counts less, in nats."""
    return {
        name: _RESOLUTION
        * max(float(np.abs(probe.changes[name]).max()) for probe in probes if name in probe.changes)
        for name in model.sets
    }
