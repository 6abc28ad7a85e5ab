"""The one further arm that would narrow a prediction most, found by fitting with it.

Its losses are not known yet, so those that are predicted stand for them: the covariance of the
parameters depends on where an arm is, and hardly on what is measured there.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from rewarm.predict.accuracy import ErrorScale, predict_change
from rewarm.predict.fit import Fit, Probe, fit_model
from rewarm.predict.law import RateCurve, rate_curve
from rewarm.predict.loss_models import LawModel
from rewarm.predict.prediction import LEVELS, FittedArms
from rewarm.predict.reach import limits_of, reach_of
from rewarm.predict.search_space import Choice, choice_of, is_readable, recipe_of, schedule_with
from rewarm.recipe.recipe import Recipe
from rewarm.schedules import rate

_LENGTHS = (0.25, 0.5, 1.0)  # of the longest arm
_PEAKS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the run that is predicted
_SHARES = (0.5, 1.0, 2.0)
_EVALUATIONS = 20
_NEARLY = 0.9
_LEVEL = LEVELS[0]


class FurtherProbe(NamedTuple):
    """An arm that was not trained yet."""

    recipe: Recipe
    choice: Choice
    """Its peak, share of replay and tokens; the other settings are those of the predicted run."""
    widths: dict[str, tuple[float, float]]
    """By validation set, how wide the 80 % interval of the last loss is now, and would be."""

    @property
    def narrowing(self) -> float:
        """By how much the intervals become narrower, as a mean share of their widths."""
        return _narrowing(self.widths)


_Widths = dict[str, tuple[float, float]]


def find_further_probe(fitted: FittedArms, recipe: Recipe) -> FurtherProbe | None:
    """Returns the arm that narrows the intervals of a run's last losses most; None if none does.

    The arms that are compared have the run's schedule, at most the length of the longest arm, and
    peaks and shares of replay near the run's. Among those that narrow the intervals by nine tenths
    of what the best does, it is the shortest. Both widths are of the saturating form.

    Args:
        fitted: the arms with the law.
        recipe: the recipe of the run.
    """
    arms = fitted.arms
    target = arms.curve(recipe, [recipe.steps])
    replay = arms.replay_share(recipe)
    scales = {name: fitted.error_scale("saturating", name) for name in fitted.law.model.sets}
    now = {name: _width(fitted.law, scale, name, target, replay) for name, scale in scales.items()}
    widths = {}
    for choice in _choices(fitted, recipe):
        probe = _predicted_probe(fitted, recipe, choice)
        if probe is not None:
            fit = fit_model(fitted.law.model, [*arms.probes, probe], start=fitted.law.logarithms)
            widths[choice] = {
                # How far off arms are in units of what is expected stays; one more arm shows it.
                name: (
                    now[name],
                    _width(fit, scale._replace(freedom=scale.freedom + 1), name, target, replay),
                )
                for name, scale in scales.items()
            }
    best = max(map(_narrowing, widths.values()), default=0.0)
    if best <= 0:
        return None
    good = [choice for choice, one in widths.items() if _narrowing(one) >= _NEARLY * best]
    chosen = min(good, key=lambda choice: (choice.tokens, -_narrowing(widths[choice])))
    return FurtherProbe(recipe_of(arms, recipe, chosen), chosen, widths[chosen])


def _narrowing(widths: _Widths) -> float:
    return float(np.mean([1 - after / before for before, after in widths.values()]))


def _choices(fitted: FittedArms, recipe: Recipe) -> Iterator[Choice]:
    """Yields the arms to compare."""
    arms = fitted.arms
    own, batch = choice_of(arms, recipe), recipe.batch.tokens
    longest = max(probe.curve.run_steps for probe in arms.probes if probe.replay < 1)
    lengths = [int(share * longest) * batch for share in _LENGTHS]
    peaks = [None] if own.peak is None else [float(f"{own.peak * x:.3g}") for x in _PEAKS]
    has_old = any(arms.is_old(name, recipe) for name in recipe.data.train)
    shares = {own.replay, 0.0} if has_old else {own.replay}
    if limits_of(arms).replay and has_old:
        shares |= {float(f"{(own.replay or 0.05) * x:.3g}") for x in _SHARES}
    for peak, share, tokens in product(peaks, sorted(s for s in shares if s < 1), lengths):
        choice = own._replace(peak=peak, replay=share, tokens=tokens)
        if is_readable(recipe, arms, choice):
            yield choice


def _predicted_probe(fitted: FittedArms, recipe: Recipe, choice: Choice) -> Probe | None:
    """Returns an arm with the losses that are predicted; None if it is beyond the limits."""
    arms, steps = fitted.arms, choice.tokens // recipe.batch.tokens
    schedule = schedule_with(recipe, choice)
    if schedule is None:
        return None
    rates = np.array([rate(schedule, step / steps) for step in range(1, steps + 1)]) / arms.unit
    evaluated = np.unique(np.linspace(0, steps, _EVALUATIONS + 1).round().astype(int))[1:]
    curve = rate_curve(rates, evaluated.tolist(), beta2=recipe.optimizer.betas[1])
    is_higher = curve.peak * arms.unit > arms.highest_peak * (1 + 1e-6)  # it might diverge
    if is_higher or reach_of(arms, curve, choice.replay).refusals:
        return None
    changes = {
        name: fitted.law.change(name, curve, choice.replay) for name in fitted.law.model.sets
    }
    return Probe("further", curve, choice.replay, changes)


def _width(
    fit: Fit[LawModel], scale: ErrorScale, name: str, curve: RateCurve, replay: float
) -> float:
    """Returns how wide the interval of a last loss is, in nats."""
    low, high = predict_change(fit, scale, name, curve, replay).interval(_LEVEL)
    return float(high[-1] - low[-1])
