"""Predicts the losses of runs that were never made, from the arms of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from rewarm.predict.accuracy import (
    ErrorScale,
    FinalError,
    LeftOut,
    PredictedChange,
    Predictor,
    error_scales,
    leave_one_out,
    left_out_errors,
    nearest_change,
    nearest_probe,
    predict_change,
)
from rewarm.predict.arms import StudiedArms
from rewarm.predict.fit import Fit, Probe, fit_model
from rewarm.predict.law import Array, Form, RateCurve
from rewarm.predict.loss_models import LawModel, LossModel, PublishedModel, TokensModel
from rewarm.predict.reach import Reach, reach_of
from rewarm.recipe.recipe import Recipe

_CURVE_POINTS = 100
LEVELS = (0.8, 0.95)
"""The probabilities of the intervals."""


class PredictedLoss(NamedTuple):
    """The loss of a run on a validation set, at the points of its curve."""

    name: str
    role: str
    loss: Array
    """In nats per token."""
    intervals: dict[float, tuple[Array, Array]]
    """The bounds of the loss, by their probability; of both forms where the run is longer."""
    nearest_final: float
    """The last loss of the nearest arm."""

    def final_interval(self, level: float) -> tuple[float, float]:
        """Returns the bounds of the last loss with this probability."""
        low, high = self.intervals[level]
        return float(low[-1]), float(high[-1])


class Prediction(NamedTuple):
    """A run that was never made."""

    name: str
    recipe: Recipe
    curve: RateCurve
    replay: float
    losses: list[PredictedLoss]
    nearest: str
    """The nearest arm."""
    reach: Reach


@dataclass(frozen=True)
class FittedArms:
    """The arms of a study with both forms of the law fitted to them."""

    arms: StudiedArms
    law: Fit[LawModel]
    logarithmic: Fit[LawModel]
    left_out: Callable[[Form], dict[str, list[LeftOut]]]
    """Returns the prediction of each arm from others, by a form of the law, by validation set."""

    def error_scale(self, form: Form, name: str) -> ErrorScale:
        """Returns how far off the predictions of new arms are on a validation set."""
        return error_scales(self.law.model, self.left_out(form))[name]

    def predict(self, name: str, recipe: Recipe, replay: float) -> Prediction:
        """Returns the losses of a run.

        Args:
            name: the name of the run.
            recipe: its recipe, of which the schedule and the length count.
            replay: the share of old data among its training tokens.
        """
        arms = self.arms
        steps = np.unique(np.linspace(0, recipe.steps, _CURVE_POINTS + 1).round().astype(int))
        curve = arms.curve(recipe, [int(step) for step in steps])
        reach = reach_of(arms, curve, replay)
        nearest = nearest_probe(arms.probes, curve, replay)
        names = self.law.model.sets if replay < 1 else self.law.model.old
        losses = [self.predict_loss(one, curve, replay, is_longer=reach.is_longer) for one in names]
        return Prediction(name, recipe, curve, replay, losses, nearest.arm, reach)

    def changes(
        self, name: str, curve: RateCurve, replay: float, *, is_longer: bool
    ) -> list[PredictedChange]:
        """Returns the change of a loss; by both forms of the law if a run is longer than arms."""
        fits = [self.law, self.logarithmic] if is_longer else [self.law]
        return [
            predict_change(fit, self.error_scale(fit.model.form, name), name, curve, replay)
            for fit in fits
        ]

    def predict_loss(
        self, name: str, curve: RateCurve, replay: float, *, is_longer: bool
    ) -> PredictedLoss:
        """Returns the loss on a validation set; if the run is longer than all arms, see `Reach`."""
        start, probes = self.arms.starts[name], self.arms.probes
        changes = self.changes(name, curve, replay, is_longer=is_longer)
        nearest = nearest_change(self.law.model, probes, name, curve, replay)
        return PredictedLoss(
            name,
            self.arms.roles[name],
            start + changes[0].change,
            {level: _covering(changes, start, level) for level in LEVELS},
            start + float(nearest[-1]),
        )

    def left_out_errors(self) -> dict[str, dict[str, list[FinalError]]]:
        """Returns, for the law and each baseline, the error of each arm left out, by set."""
        model = self.law.model
        others: dict[str, LossModel] = {
            "published form": PublishedModel(model.old, model.new, model.start),
            "power law in tokens": TokensModel(model.old, model.new),
        }
        probes = self.arms.probes
        fitters: dict[str, Callable[[Sequence[Probe]], Predictor]] = {
            **{name: _refitter(fit_model(other, probes)) for name, other in others.items()},
            "nearest arm": lambda rest: partial(nearest_change, model, rest),
        }
        law = {
            name: [arm.error for arm in arms] for name, arms in self.left_out("saturating").items()
        }
        return {"law": law} | {
            name: left_out_errors(refit, probes, list(model.sets))
            for name, refit in fitters.items()
        }


def fit_arms(arms: StudiedArms) -> FittedArms:
    """Returns arms with both forms of the law fitted to them."""
    fits: dict[Form, Fit[LawModel]] = {
        "saturating": fit_form(arms, "saturating"),
        "logarithmic": fit_form(arms, "logarithmic"),
    }
    left_out = cache(lambda form: leave_one_out(fits[form], arms.probes))
    return FittedArms(arms, fits["saturating"], fits["logarithmic"], left_out)


def fit_form(arms: StudiedArms, form: Form) -> Fit[LawModel]:
    """Returns a form of the law, fitted to arms."""
    model = LawModel(arms.sets("upstream"), arms.sets("downstream"), arms.start, form)
    return fit_model(model, arms.probes)


def _refitter(fit: Fit[LossModel] | Fit[LawModel]) -> Callable[[Sequence[Probe]], Predictor]:
    return lambda probes: fit_model(fit.model, probes, start=fit.logarithms).change


def _covering(changes: list[PredictedChange], start: float, level: float) -> tuple[Array, Array]:
    """Returns the bounds of a loss that cover the intervals of several changes."""
    intervals = [change.interval(level) for change in changes]
    low = np.min([bounds[0] for bounds in intervals], axis=0)
    high = np.max([bounds[1] for bounds in intervals], axis=0)
    return start + low, start + high
