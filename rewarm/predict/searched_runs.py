"""All runs of a search, by their last losses: thousands of schedules as arrays.

The rates of a run are sampled in about 160 segments. That moves a loss by less than a thousandth of
a nat; what a search returns is predicted again from every step's rate.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewarm import schedules
from rewarm.errors import RecipeError
from rewarm.predict.arms import StudiedArms
from rewarm.predict.law import Array, RateCurve, run_ends
from rewarm.predict.prediction import LEVELS, FittedArms
from rewarm.predict.reach import limits_of
from rewarm.predict.search_space import Choice, SearchSpace, readable_shares, schedule_with
from rewarm.recipe.recipe import Recipe
from rewarm.schedules import Schedule

Indices = NDArray[np.intp]

_FIRST_STEPS = 40  # each a segment of its own, as a fresh Adam's first steps count for more
_SEGMENTS = 120
_LEVEL = LEVELS[0]


class RunsOfLength(NamedTuple):
    """Runs of one length by their schedules."""

    choices: list[Choice]
    """All with the same share of replay, which does not count."""
    curve: RateCurve
    """The points are the runs."""


class SearchedRuns(NamedTuple):
    """All runs of a search."""

    lengths: list[RunsOfLength]
    losses: dict[str, Array]
    """The last loss by validation set; shape (runs,)."""
    length: Indices
    """The index among `lengths`; shape (runs,), like those below."""
    row: Indices
    """The index among the schedules of that length."""
    replay: Array

    def choice(self, run: int) -> Choice:
        """Returns the settings of a run."""
        choice: Choice = self.lengths[self.length[run]].choices[self.row[run]]
        return choice._replace(replay=float(self.replay[run]))

    def has(self, name: str, value: object) -> NDArray[np.bool_]:
        """Returns which runs have a value of a setting of their schedules; shape (runs,)."""
        result = np.empty(len(self.row), dtype=np.bool_)
        for index, runs in enumerate(self.lengths):
            equal = np.array([getattr(choice, name) == value for choice in runs.choices])
            own = self.length == index
            result[own] = equal[self.row[own]]
        return result


def searched_runs(fitted: FittedArms, recipe: Recipe, space: SearchSpace) -> SearchedRuns:
    """Returns all runs of a search that are within the limits of the law.

    Raises:
        RecipeError: there are none.
    """
    arms, fit = fitted.arms, fitted.law
    lengths = [_runs_of_length(arms, recipe, space, tokens) for tokens in space.tokens]
    parts = []
    for index, runs in enumerate(lengths):
        shares = np.array(readable_shares(space, recipe, arms, space.tokens[index]))
        shape = (len(shares), len(runs.choices))
        losses = {
            name: arms.starts[name]
            + fit.model.change(fit.logarithms, name, runs.curve, shares[:, None]).ravel()
            for name in fit.model.sets
        }
        row = np.broadcast_to(np.arange(shape[1]), shape).ravel()
        replay = np.broadcast_to(shares[:, None], shape).ravel()
        parts.append(SearchedRuns([], losses, np.full_like(row, index), row, replay))
    if not any(len(part.row) for part in parts):
        raise RecipeError([_nothing_within(arms, recipe, lengths)])
    return SearchedRuns(
        lengths,
        {name: np.concatenate([part.losses[name] for part in parts]) for name in fit.model.sets},
        np.concatenate([part.length for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.replay for part in parts]),
    )


def nondominated_runs(losses: Array) -> Indices:
    """Returns the rows that no other row is below in one loss, and not above in any other.

    Args:
        losses: shape (runs, losses).
    """
    if losses.shape[1] == 2:
        order = np.lexsort(losses.T[::-1])
        second = losses[order, 1]
        lowest_before = np.minimum.accumulate(np.concatenate([[np.inf], second[:-1]]))
        return np.asarray(order[second < lowest_before])
    order = np.lexsort((*losses.T[::-1], losses.sum(axis=1)))
    front = []
    while len(order):
        best, order = order[0], order[1:]
        front.append(best)
        order = order[(losses[order] < losses[best]).any(axis=1)]
    return np.array(front, dtype=np.intp)


def _runs_of_length(
    arms: StudiedArms, recipe: Recipe, space: SearchSpace, tokens: int
) -> RunsOfLength:
    """Returns the runs of a length whose peaks are within the limits of the law."""
    steps = tokens // recipe.batch.tokens
    grid = np.linspace(0, steps, min(steps, _SEGMENTS) + 1).round().astype(np.intp)
    first = np.arange(min(steps, _FIRST_STEPS) + 1)
    ends = np.unique(np.concatenate([first, grid]))
    middles = [float((a + 1 + b) / 2 / steps) for a, b in pairwise(ends)]
    choices: list[Choice] = []
    rates: list[Array] = []
    for shape in space.by_shape(tokens):
        valid, own = _rates_by_peak(recipe, shape, middles)
        choices += valid
        rates += own
    matrix = np.array(rates).reshape(len(choices), len(middles)) / arms.unit
    limits = limits_of(arms)
    peaks = matrix.max(axis=1, initial=0.0)
    within = np.flatnonzero((peaks >= limits.lowest_peak) & (peaks <= limits.highest_peak))
    curve = run_ends(matrix[within], ends[1:], beta2=recipe.optimizer.betas[1])
    return RunsOfLength([choices[index] for index in within], curve)


def _rates_by_peak(
    recipe: Recipe, choices: list[Choice], progress: list[float]
) -> tuple[list[Choice], list[Array]]:
    """Returns the choices that are valid, which differ in their peak only, and the rates of each.

    Rates are mostly linear in the peak. If those of a peak in the middle are, so are all between
    the lowest and the highest.
    """
    peaks = np.array([one.peak for one in choices if one.peak])
    if len(peaks) == len(choices) > 3:
        middle = len(choices) // 2
        three = [schedule_with(recipe, choices[index]) for index in (0, middle, -1)]
        rates = [_rates(schedule, progress) for schedule in three if schedule is not None]
        if len(rates) == 3:
            shares = ((peaks - peaks[0]) / (peaks[-1] - peaks[0]))[:, None]
            between = (1 - shares) * rates[0] + shares * rates[2]
            if np.allclose(between[middle], rates[1], rtol=1e-6, atol=0):
                return choices, [*between]
    valid = [(one, own) for one in choices if (own := schedule_with(recipe, one)) is not None]
    return [one for one, _ in valid], [_rates(own, progress) for _, own in valid]


def _rates(schedule: Schedule, progress: list[float]) -> Array:
    return np.array([schedules.rate(schedule, one) for one in progress])


def _nothing_within(arms: StudiedArms, recipe: Recipe, lengths: list[RunsOfLength]) -> str:
    if any(runs.choices for runs in lengths):
        return (
            f"{recipe.run}: with no share of replay that could be searched, each corpus is read at "
            "least once, and at most as often as data.max_epochs; try other tokens or more text"
        )
    limits = limits_of(arms)
    low, high = limits.lowest_peak * arms.unit, limits.highest_peak * arms.unit
    return (
        f"{recipe.run}: no schedule that could be searched is valid and has a peak rate from "
        f"{low:.3g} to {high:.3g}, within which predictions are known to hold; train an arm that "
        "is nearer"
    )


def highest_losses(fitted: FittedArms, runs: SearchedRuns, index: Indices) -> dict[str, Array]:
    """Returns the upper bounds of the 80 % intervals of some runs, by validation set.

    As `FittedArms.predict` has them, but for the sampled rates.
    """
    arms = fitted.arms
    longest = max(probe.curve.run_steps for probe in arms.probes if probe.replay < 1)
    bounds = {name: np.empty(len(index)) for name in runs.losses}
    keys = list(zip(runs.length[index].tolist(), runs.replay[index].tolist(), strict=True))
    for length, replay in sorted(set(keys)):
        own = np.array([key == (length, replay) for key in keys])
        curve = _select(runs.lengths[length].curve, runs.row[index[own]])
        is_longer = curve.steps[0] > longest
        for name in runs.losses:
            bounds[name][own] = arms.starts[name] + np.max(
                [
                    change.interval(_LEVEL)[1]
                    for change in fitted.changes(name, curve, replay, is_longer=is_longer)
                ],
                axis=0,
            )
    return bounds


def _select(curve: RateCurve, index: Indices) -> RateCurve:
    return RateCurve(*(getattr(curve, field.name)[index] for field in fields(curve)))
