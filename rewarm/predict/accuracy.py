"""How far predictions are off: on arms that were left out, and as intervals around new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import correlation
from typing import NamedTuple

import numpy as np

from rewarm.predict.fit import Fit, Probe, fit_model
from rewarm.predict.law import Array, RateCurve
from rewarm.predict.loss_models import LawModel, LossModel

_PRIOR_ARMS = 2
"""The weight of the relative errors below, in arms."""
_PRIOR_ERRORS = {"old": 0.03, "new": 0.01}
"""Errors of arms left out on cpu-mini, relative to the change of their loss: docs/predict.md."""
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


class LeftOut(NamedTuple):
    """An arm that was predicted from all others."""

    error: FinalError
    standard_error: float
    """Of the predicted change, from the covariance of the parameters, in nats."""


class ErrorScale(NamedTuple):
    """The error of new arms on a validation set, as far as parameters do not explain it."""

    prior: float
    """That expected of any study, as a share of the change."""
    smallest: float
    """The change below which the error does not get smaller, in nats."""
    factor: float
    """How much larger the errors of arms left out are than parameters and prior explain."""
    freedom: float
    """The degrees of freedom of Student's t: the arms that the factor is estimated from."""

    def arm_error(self, change: Array) -> Array:
        """Returns the error expected of any study at a change, in nats."""
        return np.asarray(self.prior * np.maximum(np.abs(change), self.smallest))


def leave_one_out(fit: Fit[LawModel], probes: Sequence[Probe]) -> dict[str, list[LeftOut]]:
    """Returns, by validation set, the prediction of each arm with a shift from all other arms."""
    left_out: dict[str, list[LeftOut]] = {name: [] for name in fit.model.sets}
    for index, probe in enumerate(probes):
        if probe.replay < 1:
            rest = [*probes[:index], *probes[index + 1 :]]
            refit = fit_model(fit.model, rest, start=fit.logarithms)
            for name in fit.model.sets:
                left_out[name] += predict_apart(refit, probe, name)
    return left_out


def predict_apart(fit: Fit[LawModel], probe: Probe, name: str) -> list[LeftOut]:
    """Returns the prediction of an arm that a fit has not seen; none if it lacks the losses."""
    errors = final_errors(fit.change, [probe], name)
    return [
        LeftOut(error, float(fit.standard_error(name, probe.curve, probe.replay)[-1]))
        for error in errors
    ]


def error_scales(model: LawModel, left_out: dict[str, list[LeftOut]]) -> dict[str, ErrorScale]:
    """Returns, by validation set, how far off the predictions of new arms are.

    The square of the factor is the mean of the squared errors of arms left out, each in units of
    what is expected from its own parameters' covariance and from the prior. An arm counts by the
    prior's share in that: what can hardly be determined without it, such as L without an arm with
    replay, says little. The prior counts as two arms.
    """
    scales = {}
    for name, arms in left_out.items():
        prior = _PRIOR_ERRORS["old" if name in model.old else "new"]
        smallest = _SMALLEST_CHANGE * max(abs(arm.error.measured) for arm in arms)
        scale = ErrorScale(prior, smallest, 1.0, _PRIOR_ARMS)
        expected = np.array([scale.arm_error(np.array(arm.error.measured)) for arm in arms]) ** 2
        variances = expected + np.array([arm.standard_error for arm in arms]) ** 2
        weights = expected / variances
        squares = np.array([arm.error.nats for arm in arms]) ** 2 / variances
        freedom = float(_PRIOR_ARMS + weights.sum())
        factor = float(np.sqrt((_PRIOR_ARMS + weights @ squares) / freedom))
        scales[name] = scale._replace(factor=factor, freedom=freedom)
    return scales


def predict_change(
    fit: Fit[LawModel], scale: ErrorScale, name: str, curve: RateCurve, replay: float
) -> PredictedChange:
    """Returns the change of a loss on a validation set, with its uncertainty.

    That is the covariance of the parameters, and an error that all losses of an arm have in common,
    both as much larger as the errors of arms left out show. It has Student's t distribution, as
    arms are few.
    """
    change = fit.change(name, curve, replay)
    by_parameters = fit.standard_error(name, curve, replay)
    size = scale.factor * np.hypot(by_parameters, scale.arm_error(change))
    return PredictedChange(change, size, scale.freedom)


def ranked_pairs(
    errors: Sequence[FinalError], standard_errors: Mapping[str, float]
) -> tuple[int, int]:
    """Returns how many pairs of arms are ranked right, and how many differ measurably.

    Args:
        errors: the predicted and measured changes of arms.
        standard_errors: of the measured change of each arm, in nats, from its seeds; a pair differs
            measurably if it does by more than two standard errors of the difference.
    """
    right = [
        (one.predicted - other.predicted) * (one.measured - other.measured) > 0
        for one, other in combinations(errors, 2)
        if abs(one.measured - other.measured)
        > 2 * np.hypot(standard_errors[one.arm], standard_errors[other.arm])
    ]
    return sum(right), len(right)
