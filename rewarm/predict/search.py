"""Searches for the recipe with the best losses among schedules, shares of replay and lengths.

```
 SearchSpace ──> all runs, by the law ──> Pareto front ──> intervals ──> constraints ──> recommended
```
Only the front is given intervals: whatever limits losses from above holds for a run on it, if it
holds for a run that is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewarm import schedules
from rewarm.errors import RecipeError
from rewarm.predict.accuracy import predict_change
from rewarm.predict.arms import StudiedArms
from rewarm.predict.constraints import Constraint, mean_loss
from rewarm.predict.further_probe import FurtherProbe, find_further_probe
from rewarm.predict.law import Array, RateCurve, run_ends
from rewarm.predict.prediction import LEVELS, FittedArms, Prediction
from rewarm.predict.reach import limits_of
from rewarm.predict.search_space import (
    SETTINGS,
    Choice,
    SearchSpace,
    least_replay,
    recipe_of,
    schedule_with,
)
from rewarm.recipe.fields import Role
from rewarm.recipe.recipe import Recipe
from rewarm.schedules import Schedule

_SHOWN = 12
"""Runs of the front that are predicted in full."""
_FIRST_STEPS = 40  # each a segment of its own, as a fresh Adam's first steps count for more
_SEGMENTS = 120
_LEVEL = LEVELS[0]


class Candidate(NamedTuple):
    """A run on the Pareto front of forgetting against adaptation."""

    choice: Choice
    recipe: Recipe
    prediction: Prediction
    holds: bool
    """Whether all constraints hold at the bounds of the 80 % intervals."""


class SearchResult(NamedTuple):
    """What a search found."""

    front: list[Candidate]
    """Runs of the Pareto front, by rising loss on old data: at most twelve, and the recommended."""
    recommended: Candidate | None
    """None if no run keeps the constraints."""
    closest: Candidate
    """The run that is recommended, or else the one that violates the constraints least."""
    rule: str
    """How the recommended run was chosen, as a sentence."""
    further_probe: FurtherProbe | None
    """The further arm that would narrow the intervals of `closest` most; None if none does."""
    searched: int
    """How many runs were compared."""
    notes: list[str]
    """What was not searched, and whether the recommended run is at an edge."""


class _Runs(NamedTuple):
    """Runs of one length that were predicted by the law, without replay shares."""

    choices: list[Choice]
    curve: RateCurve
    """The points are the runs."""


class _Points(NamedTuple):
    """All runs of a search by their predicted losses."""

    losses: dict[str, Array]
    """The last loss by validation set; shape (points,)."""
    batch: NDArray[np.intp]
    """The index of the `_Runs`."""
    row: NDArray[np.intp]
    """The index within it."""
    replay: Array

    def select(self, index: NDArray[np.intp]) -> _Points:
        losses = {name: values[index] for name, values in self.losses.items()}
        return _Points(losses, self.batch[index], self.row[index], self.replay[index])


def search(
    fitted: FittedArms, recipe: Recipe, space: SearchSpace, constraints: Sequence[Constraint] = ()
) -> SearchResult:
    """Returns the Pareto front of forgetting against adaptation, and what to train.

    Args:
        fitted: the arms with the law.
        recipe: the recipe to start from: what is not in the space stays as it is.
        space: the values to try.
        constraints: upper limits of losses, which have to hold at the bounds of 80 % intervals.

    Raises:
        RecipeError: no run of the space is one that the law is known to describe.
    """
    arms = fitted.arms
    batches = [_runs(arms, recipe, space, tokens) for tokens in space.tokens]
    points = _predict(fitted, recipe, space, batches)
    objectives = [arms.sets("upstream"), arms.sets("downstream")]
    objectives += [one.sets for one in constraints if one.sets not in objectives]
    columns = np.stack([mean_loss(points.losses, sets) for sets in objectives], axis=1)
    front = points.select(pareto_front(columns))
    highest = _upper_bounds(fitted, batches, front)
    old, new = (mean_loss(front.losses, sets) for sets in objectives[:2])
    excess = np.max([np.zeros(len(old)), *(one.excess(highest) for one in constraints)], axis=0)
    limited = {one.role for one in constraints}
    chosen = _choose(old, new, mean_loss(highest, objectives[1]), excess, limited)
    shown = sorted({*_spread(old, new), chosen}, key=lambda index: old[index])

    def candidate(index: int) -> Candidate:
        choice = batches[front.batch[index]].choices[front.row[index]]
        choice = choice._replace(replay=float(front.replay[index]))
        own = recipe_of(arms, recipe, choice)
        name = str(shown.index(index) + 1)
        prediction = fitted.predict(name, own, arms.replay_share(own))
        return Candidate(choice, own, prediction, bool(excess[index] <= 0))

    candidates = [candidate(index) for index in shown]
    closest = candidates[shown.index(chosen)]
    return SearchResult(
        candidates,
        closest if closest.holds else None,
        closest,
        _rule(limited),
        find_further_probe(fitted, closest.recipe),
        len(points.replay),
        [*space.notes, *_edge_notes(space, closest.choice)],
    )


def pareto_front(losses: Array) -> NDArray[np.intp]:
    """Returns the rows that no other row is below in one loss, and not above in any other.

    Args:
        losses: shape (runs, losses).
    """
    order = np.lexsort((*losses.T[::-1], losses.sum(axis=1)))
    front = []
    while len(order):
        best, order = order[0], order[1:]
        front.append(best)
        order = order[(losses[order] < losses[best]).any(axis=1)]
    return np.array(front, dtype=np.intp)


def _runs(arms: StudiedArms, recipe: Recipe, space: SearchSpace, tokens: int) -> _Runs:
    """Returns the runs of a length whose peaks are within the limits of the law."""
    steps = tokens // recipe.batch.tokens
    grid = np.linspace(0, steps, min(steps, _SEGMENTS) + 1).round().astype(np.intp)
    first = np.arange(min(steps, _FIRST_STEPS) + 1)
    ends = np.unique(np.concatenate([first, grid]))
    middles = [float((a + 1 + b) / 2 / steps) for a, b in pairwise(ends)]
    choices: list[Choice] = []
    rates: list[Array] = []
    for shape in space.shapes_of(tokens):
        valid, own = _rates_by_peak(recipe, shape, middles)
        choices += valid
        rates += own
    matrix = np.array(rates).reshape(len(choices), len(middles)) / arms.unit
    limits = limits_of(arms)
    peaks = matrix.max(axis=1, initial=0.0)
    within = np.flatnonzero((peaks >= limits.lowest_peak) & (peaks <= limits.highest_peak))
    curve = run_ends(matrix[within], ends[1:], beta2=recipe.optimizer.betas[1])
    return _Runs([choices[index] for index in within], curve)


def _rates_by_peak(
    recipe: Recipe, choices: list[Choice], progress: list[float]
) -> tuple[list[Choice], list[Array]]:
    """Returns the choices that are valid, which differ in their peak only, and the rates of each.

    If the lowest and the highest peak are valid, and their rates differ by a factor only, so do
    those of the peaks between them.
    """
    low, high = (schedule_with(recipe, choices[index]) for index in (0, -1))
    peaks = [one.peak for one in choices if one.peak]
    if len(peaks) == len(choices) > 2 and low is not None and high is not None:
        factors = np.array(peaks) / peaks[0]
        rates = _rates(low, progress)
        if np.allclose(_rates(high, progress), factors[-1] * rates, rtol=1e-6, atol=0):
            return choices, [factor * rates for factor in factors]
    valid = [(one, own) for one in choices if (own := schedule_with(recipe, one)) is not None]
    return [one for one, _ in valid], [_rates(own, progress) for _, own in valid]


def _rates(schedule: Schedule, progress: list[float]) -> Array:
    return np.array([schedules.rate(schedule, one) for one in progress])


def _predict(
    fitted: FittedArms, recipe: Recipe, space: SearchSpace, batches: list[_Runs]
) -> _Points:
    """Returns all runs by their predicted losses."""
    starts, fit = fitted.arms.starts, fitted.law
    parts = []
    for index, runs in enumerate(batches):
        least = least_replay(recipe, fitted.arms, space.tokens[index])
        shares = np.array([one for one in space.replay if one == 0 or one >= least])
        shape = (len(shares), len(runs.choices))
        losses = {
            name: starts[name]
            + fit.model.change(fit.logarithms, name, runs.curve, shares[:, None]).ravel()
            for name in fit.model.sets
        }
        row = np.broadcast_to(np.arange(shape[1]), shape).ravel()
        replay = np.broadcast_to(shares[:, None], shape).ravel()
        parts.append(_Points(losses, np.full_like(row, index), row, replay))
    points = _Points(
        {name: np.concatenate([part.losses[name] for part in parts]) for name in fit.model.sets},
        np.concatenate([part.batch for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.replay for part in parts]),
    )
    if not len(points.row):
        raise RecipeError([_nothing_within(fitted.arms, recipe)])
    return points


def _nothing_within(arms: StudiedArms, recipe: Recipe) -> str:
    limits = limits_of(arms)
    low, high = limits.lowest_peak * arms.unit, limits.highest_peak * arms.unit
    return (
        f"{recipe.run}: no run that could be searched has a peak rate from {low:.3g} to "
        f"{high:.3g}, within which predictions are known to hold; train an arm that is nearer"
    )


def _upper_bounds(fitted: FittedArms, batches: list[_Runs], points: _Points) -> dict[str, Array]:
    """Returns the upper bounds of the 80 % intervals, as `FittedArms.predict` has them."""
    arms = fitted.arms
    longest = max(probe.curve.run_steps for probe in arms.probes if probe.replay < 1)
    bounds = {name: np.empty(len(points.replay)) for name in points.losses}
    groups = sorted(set(zip(points.batch.tolist(), points.replay.tolist(), strict=True)))
    for batch, replay in groups:
        index = np.flatnonzero((points.batch == batch) & (points.replay == replay))
        curve = _rows(batches[batch].curve, points.row[index])
        is_longer = curve.steps[0] > longest
        for name in points.losses:
            bounds[name][index] = arms.starts[name] + np.max(
                [
                    predict_change(fit, arms.probes, name, curve, replay).interval(_LEVEL)[1]
                    for fit in ([fitted.law, fitted.logarithmic] if is_longer else [fitted.law])
                ],
                axis=0,
            )
    return bounds


def _rows(curve: RateCurve, index: NDArray[np.intp]) -> RateCurve:
    return RateCurve._make(values[index] for values in curve)


def _choose(old: Array, new: Array, highest_new: Array, excess: Array, limited: set[Role]) -> int:
    """Returns the index of the run to recommend by `_rule`, or of the one that is nearest to it."""
    if (excess > 0).all():
        return int(np.lexsort((old + new, excess))[0])
    allowed = excess <= 0
    if "upstream" in limited:
        return int(np.flatnonzero(allowed)[np.argmin(new[allowed])])
    if not limited:
        best = int(np.argmin(new))
        allowed = new <= highest_new[best]
    return int(np.flatnonzero(allowed)[np.argmin(old[allowed])])


def _rule(limited: set[Role]) -> str:
    if not limited:
        return (
            "the least forgetting among runs whose predicted loss on new data is within the 80% "
            "interval of the best"
        )
    best = "best adaptation" if "upstream" in limited else "least forgetting"
    return f"the {best} among runs that keep the constraints at the bounds of their 80% intervals"


def _spread(old: Array, new: Array) -> list[int]:
    """Returns runs of the front at about equal distances along it, with both of its ends."""
    order = np.argsort(old)
    if len(order) <= _SHOWN:
        return [int(index) for index in order]
    points = np.stack([old[order] / np.ptp(old), new[order] / np.ptp(new)], axis=1)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    wanted = np.linspace(0, along[-1], _SHOWN)
    return [int(order[np.abs(along - distance).argmin()]) for distance in wanted]


def _edge_notes(space: SearchSpace, choice: Choice) -> list[str]:
    """Returns which settings of the recommended run are the lowest or highest that were tried."""
    notes = []
    for name in SETTINGS:
        values = getattr(space, name)
        value = getattr(choice, name)
        if len(values) > 1 and not isinstance(value, str | None):
            edge = {min(values): "lowest", max(values): "highest"}.get(value)
            if edge and not (value == 0 or name == "tokens"):
                notes.append(
                    f"its {name} is the {edge} that was tried: a better one may lie beyond"
                )
    return notes
