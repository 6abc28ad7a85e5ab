"""How far predictions are off: on arms that were left out, and as intervals around new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import correlation
from typing import NamedTuple

import numpy as np

from rewarm.predict.fit import Fit, Probe
from rewarm.predict.law import Array, RateCurve
from rewarm.predict.loss_models import LawModel, LossModel

_PRIOR_ARMS = 2
"""The weight of the relative errors below, in arms."""
_PRIOR_ERRORS = {"old": 0.03, "new": 0.01}
"""Errors of arms left out on cpu-mini, relative to the change of their loss: docs/predict.md."""
_FITTED_ACROSS_ARMS = 3
"""The parameters of a loss that arms determine, not the shape of their curves: K, a and L."""
_SMALLEST_CHANGE = 0.05
"""The share of the largest change below which an error is not relative to the change itself."""

Predictor = Callable[[str, RateCurve, float], Array]
"""Returns the change of a validation loss at the points of a curve, for a share of replay."""


def nearest_change(
    model: LossModel, probes: Sequence[Probe], name: str, curve: RateCurve, replay: float
) -> Array:
    """Returns the losses of the nearest arm at the same share of the run, in nats."""
    probe = nearest_probe([one for one in probes if name in one.sets(model)], curve, replay)
    progress = [0.0, *(probe.curve.steps / probe.curve.run_steps)]
    changes = [0.0, *probe.changes[name]]
    return np.asarray(np.interp(curve.steps / curve.run_steps, progress, changes))


def nearest_probe(probes: Sequence[Probe], curve: RateCurve, replay: float) -> Probe:
    """Returns the arm whose summed rate and replay share are nearest, both by their logarithms."""

    def distance(probe: Probe) -> float:
        by_rate = abs(np.log(probe.curve.total / curve.total))
        return float(by_rate + abs(np.log((probe.replay + 1e-3) / (replay + 1e-3))))

    return min(probes, key=distance)


class FinalError(NamedTuple):
    """How far the prediction of an arm's last loss is off."""

    arm: str
    predicted: float
    """The predicted change, in nats."""
    measured: float
    """The measured change, in nats."""

    @property
    def nats(self) -> float:
        """Predicted less measured."""
        return self.predicted - self.measured

    @property
    def relative(self) -> float:
        """The size of the error as a share of the change; infinite if the loss did not change."""
        return abs(self.nats / self.measured) if self.measured else float("inf")


def final_errors(predict: Predictor, probes: Sequence[Probe], name: str) -> list[FinalError]:
    """Returns the errors of the last losses of arms with a shift on a validation set."""
    return [
        FinalError(
            probe.arm,
            float(predict(name, probe.curve, probe.replay)[-1]),
            float(probe.changes[name][-1]),
        )
        for probe in probes
        if probe.replay < 1 and name in probe.changes
    ]


def left_out_errors(
    fit: Callable[[Sequence[Probe]], Predictor], probes: Sequence[Probe], names: Sequence[str]
) -> dict[str, list[FinalError]]:
    """Returns, by validation set, the error for each arm of the predictions from all others."""
    errors: dict[str, list[FinalError]] = {name: [] for name in names}
    for index, probe in enumerate(probes):
        if probe.replay < 1:
            predict = fit([*probes[:index], *probes[index + 1 :]])
            for name in names:
                errors[name] += final_errors(predict, [probe], name)
    return errors


class ErrorSummary(NamedTuple):
    """The mean and the largest of errors, and how well they rank."""

    mean_nats: float
    worst_nats: float
    mean_relative: float
    worst_relative: float
    rank_correlation: float
    """Spearman's, of predicted and measured changes; NaN for fewer than two arms."""


def summarize(errors: Sequence[FinalError]) -> ErrorSummary:
    """Returns the summary of some errors."""
    nats = [abs(error.nats) for error in errors]
    relative = [error.relative for error in errors]
    predicted, measured = (
        [float(rank) for rank in np.argsort(np.argsort([getattr(error, side) for error in errors]))]
        for side in ("predicted", "measured")
    )
    ranking = correlation(predicted, measured) if len(errors) > 1 else float("nan")
    return ErrorSummary(
        float(np.mean(nats)), max(nats), float(np.mean(relative)), max(relative), ranking
    )


class PredictedChange(NamedTuple):
    """A predicted change of a loss, with its uncertainty."""

    change: Array
    """In nats, at the points of the curve."""
    scale: Array
    """The scale of Student's t around it, in nats."""
    freedom: float
    """The degrees of freedom of Student's t."""

    def interval(self, level: float) -> tuple[Array, Array]:
        """Returns the bounds between which the change of an arm is with this probability."""
        from scipy.special import stdtrit

        half_width = self.scale * float(stdtrit(self.freedom, (1 + level) / 2))
        return self.change - half_width, self.change + half_width


def predict_change(
    fit: Fit[LawModel], probes: Sequence[Probe], name: str, curve: RateCurve, replay: float
) -> PredictedChange:
    """Returns the change of a loss on a validation set, with its uncertainty.

    That is the covariance of the parameters, and an error that all losses of an arm have in common:
    relative to the change, of the size seen in the arms, which a fit's residuals alone would
    underestimate. It has Student's t distribution, as arms are few.
    """
    change = fit.change(name, curve, replay)
    usable = [probe for probe in probes if name in probe.sets(fit.model)]
    smallest = _SMALLEST_CHANGE * max(abs(float(probe.changes[name][-1])) for probe in usable)
    squares = [
        (error.nats / max(abs(error.measured), smallest)) ** 2
        for error in final_errors(fit.change, usable, name)
    ]
    # Residuals are smaller than the errors of other arms by what was fitted to these.
    independent = max(1, len(squares) - _FITTED_ACROSS_ARMS)
    prior = _PRIOR_ERRORS["old" if name in fit.model.old else "new"]
    freedom = _PRIOR_ARMS + independent
    relative = np.sqrt((_PRIOR_ARMS * prior**2 + sum(squares)) / freedom)
    arm_error = relative * np.maximum(np.abs(change), smallest)
    return PredictedChange(
        change, np.hypot(fit.standard_error(name, curve, replay), arm_error), freedom
    )
