"""The losses of each arm of a study, predicted from all other arms, beside those measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from rewarm.predict.accuracy import FinalError, LeftOut, predict_apart
from rewarm.predict.arms import StudiedArms
from rewarm.predict.fit import Fit, Probe, fit_model
from rewarm.predict.law import Array, Form
from rewarm.predict.loss_models import LawModel
from rewarm.predict.prediction import FittedArms, PredictedLoss
from rewarm.predict.reach import Reach, reach_of


class LeftOutLoss(NamedTuple):
    """The losses of an arm on a validation set, at the steps of its evaluations."""

    start: float
    """The loss before step 1, in nats per token."""
    predicted: PredictedLoss
    measured: Array
    """In nats per token; the mean over seeds."""

    def final_error(self, arm: str) -> FinalError:
        """Returns the error of the last loss."""
        predicted, measured = float(self.predicted.loss[-1]), float(self.measured[-1])
        return FinalError(arm, predicted - self.start, measured - self.start)

    def is_inside(self, level: float) -> bool:
        """Returns whether the measured last loss is within the interval of this probability."""
        low, high = self.predicted.final_interval(level)
        return low <= float(self.measured[-1]) <= high


class LeftOutArm(NamedTuple):
    """An arm and its losses, predicted from all other arms."""

    probe: Probe
    losses: dict[str, LeftOutLoss]
    """By validation set."""
    reach: Reach
    """How far it is outside of the other arms."""


def predict_left_out(
    arms: StudiedArms, fit_of: Callable[[Form], Fit[LawModel]]
) -> list[LeftOutArm]:
    """Returns the arms that train on new data, each predicted by a fit to all other arms.

    Args:
        arms: the arms of a study.
        fit_of: returns the fit of a form to all of them, from which the other fits start. Of the
            logarithmic form, it is only called if one arm is longer than all others.
    """
    shifted = [index for index, probe in enumerate(arms.probes) if probe.replay < 1]

    @cache
    def refit(form: Form, index: int) -> Fit[LawModel]:
        fit = fit_of(form)
        rest = [*arms.probes[:index], *arms.probes[index + 1 :]]
        return fit_model(fit.model, rest, start=fit.logarithms)

    @cache
    def errors(form: Form, index: int, name: str) -> list[LeftOut]:
        return predict_apart(refit(form, index), arms.probes[index], name)

    def errors_of_others(index: int, form: Form) -> dict[str, list[LeftOut]]:
        """How far off all other arms are: their fits have seen this one, its own error has not."""
        others = [other for other in shifted if other != index]
        return {name: [one for i in others for one in errors(form, i, name)] for name in arms.roles}

    return [
        _predict_one(arms, index, partial(refit, index=index), partial(errors_of_others, index))
        for index in shifted
    ]


def _predict_one(
    arms: StudiedArms,
    index: int,
    refit: Callable[[Form], Fit[LawModel]],
    errors_of_others: Callable[[Form], dict[str, list[LeftOut]]],
) -> LeftOutArm:
    probe, rest = arms.probes[index], [*arms.probes[:index], *arms.probes[index + 1 :]]
    others = arms._replace(probes=rest)
    reach = reach_of(others, probe.curve, probe.replay)
    law = refit("saturating")
    # The logarithmic form counts for a longer run only.
    logarithmic = refit("logarithmic") if reach.is_longer else law
    fitted = FittedArms(others, law, logarithmic, errors_of_others)
    losses = {}
    for name, start in arms.starts.items():
        predicted = fitted.predict_loss(name, probe.curve, probe.replay, is_longer=reach.is_longer)
        losses[name] = LeftOutLoss(start, predicted, start + probe.changes[name])
    return LeftOutArm(probe, losses, reach)
