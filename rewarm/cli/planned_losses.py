"""The losses that `rewarm plan --predict` shows beside the cost of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.cli.prediction_inputs import read_arms
from rewarm.errors import CheckpointError, RecipeError
from rewarm.predict.accuracy import summarize
from rewarm.predict.arms import StudiedArms
from rewarm.predict.prediction import LEVELS, FittedArms, Prediction, fit_arms
from rewarm.predict.reach import reach_of, recipe_differences
from rewarm.recipe.recipe import Recipe
from rewarm.table_cells import EMPTY, Cell, plural

_LEVEL = LEVELS[0]


class PlannedLosses(NamedTuple):
    """The losses of planned runs, from a law fitted to finished ones."""

    sources: list[Path]
    """The runs that the law was fitted to."""
    fitted: FittedArms
    predictions: dict[str, Prediction]
    """By the name of the run in the estimate of its cost."""
    refusals: dict[str, list[str]]
    """Why runs are not predicted, by their names."""

    @property
    def runs(self) -> list[str]:
        """The names of the planned runs."""
        return [*self.predictions, *self.refusals]

    @property
    def columns(self) -> list[str]:
        """The columns of a table with the last losses."""
        return [f"{name} ({_LEVEL:.0%})" for name in self.fitted.law.model.sets]

    def cells(self, run: str) -> list[Cell]:
        """Returns the last losses of a run with their intervals, an asterisk if it is outside."""
        prediction = self.predictions.get(run)
        losses = {loss.name: loss for loss in prediction.losses} if prediction else {}
        mark = "*" if prediction and prediction.reach.notes else ""
        cells = []
        for name in self.fitted.law.model.sets:
            if loss := losses.get(name):
                last, (low, high) = float(loss.loss[-1]), loss.final_interval(_LEVEL)
                cells.append(Cell(f"{last:.3f}{mark} ({low:.3f}–{high:.3f})", last))
            else:
                cells.append(EMPTY)
        return cells

    def notes(self) -> list[tuple[str, str]]:
        """Returns what the law was fitted to, its errors, and what is outside of its arms."""
        errors = {
            name: summarize([arm.error for arm in arms])
            for name, arms in self.fitted.left_out("saturating").items()
        }
        off = " and ".join(
            f"{error.mean_relative:.1%} of the {name} change" for name, error in errors.items()
        )
        sources = ", ".join(map(str, self.sources))
        notes = [
            (
                "losses",
                f"the last ones in nats, with {_LEVEL:.0%} intervals, by a law fitted to "
                f"{plural(len(self.fitted.arms.probes), 'arm')} of {sources}; of these, each "
                f"predicted from all others is off by {off} on average; `rewarm predict` has "
                "curves and baselines",
            )
        ]
        outside = {run: one.reach.notes for run, one in self.predictions.items()}
        notes += [("*", line) for line in _by_reason(outside)]
        return notes + [("no losses", line) for line in _by_reason(self.refusals)]

    def as_json(self, run: str) -> dict[str, Any]:
        """Returns the last losses of a run, and what is outside of the arms."""
        prediction = self.predictions.get(run)
        return {
            "losses": {
                loss.name: {
                    "role": loss.role,
                    "loss": float(loss.loss[-1]),
                    "nearest arm": loss.nearest_final,
                    "intervals": {f"{level:.0%}": loss.final_interval(level) for level in LEVELS},
                }
                for loss in (prediction.losses if prediction else [])
            },
            "nearest arm": prediction.nearest if prediction else None,
            "outside": prediction.reach.notes if prediction else self.refusals.get(run, []),
        }


def predict_planned(sources: list[Path], recipes: Mapping[str, Recipe]) -> PlannedLosses:
    """Returns the losses of planned runs, of those that the law can describe.

    Args:
        sources: the finished runs, or studies, that the law is fitted to.
        recipes: the recipes of the planned runs by their names.

    Raises:
        CheckpointError: the law cannot be fitted to the runs.
        RecipeError: none of the planned runs can be predicted.
    """
    arms = read_arms(sources)
    refusals = {
        name: reasons for name, recipe in recipes.items() if (reasons := _refusals(arms, recipe))
    }
    if len(refusals) == len(recipes):
        raise RecipeError(_by_reason(refusals))
    fitted = fit_arms(arms)
    predictions = {
        name: fitted.predict(name, recipe, arms.replay_share(recipe))
        for name, recipe in recipes.items()
        if name not in refusals
    }
    return PlannedLosses(sources, fitted, predictions, refusals)


def _refusals(arms: StudiedArms, recipe: Recipe) -> list[str]:
    """Returns why the losses of a recipe's run cannot be predicted."""
    if differences := recipe_differences(arms, recipe):
        return differences
    try:
        replay = arms.replay_share(recipe)
    except CheckpointError as error:
        return [str(error)]
    return reach_of(arms, arms.curve(recipe, [recipe.steps]), replay).refusals


def _by_reason(reasons: Mapping[str, list[str]]) -> list[str]:
    """Returns a line for each reason: the runs that it is for, and the reason."""
    runs: dict[str, list[str]] = {}
    for run, own in reasons.items():
        for reason in own:
            runs.setdefault(reason, []).append(run)
    return [f"{', '.join(names)}: {reason}" for reason, names in runs.items()]
