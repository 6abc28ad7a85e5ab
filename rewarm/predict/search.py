"""Searches for the recipe with the best losses among schedules, shares of replay and lengths.

```
 SearchSpace ──> all runs, by the law ──> Pareto front ──> intervals ──> constraints ──> recommended
```
Only the front is given intervals: constraints limit losses from above, and for any run that keeps
them there is one of the front whose losses are no higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from rewarm.predict.constraints import Constraint, mean_loss
from rewarm.predict.further_probe import FurtherProbe, find_further_probe
from rewarm.predict.law import Array
from rewarm.predict.prediction import LEVELS, FittedArms, Prediction
from rewarm.predict.search_space import SETTINGS, Choice, SearchSpace, choice_of, recipe_of
from rewarm.predict.searched_runs import (
    Indices,
    SearchedRuns,
    highest_losses,
    nondominated_runs,
    searched_runs,
)
from rewarm.recipe.fields import Role
from rewarm.recipe.recipe import Recipe

_SHOWN = 12
"""Runs of the front that are predicted in full."""
_NEGLIGIBLE = 0.1
"""The part of half an interval that is not worth another shape of the schedule."""
_SHAPE = ("minimum", "warmup", "decay", "length")
_LEVEL = LEVELS[0]

Goal = Literal["least forgetting", "best adaptation", "both"]


class Candidate(NamedTuple):
    """A run on the Pareto front of forgetting against adaptation."""

    choice: Choice
    recipe: Recipe
    prediction: Prediction
    holds: bool
    """Whether all constraints hold at the bounds of the 80 % intervals."""

    def named(self, name: str) -> Candidate:
        """Returns it with a name for its prediction."""
        return self._replace(prediction=self.prediction._replace(name=name))


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    fitted: FittedArms
    front: list[Candidate]
    """At most twelve runs of the Pareto front and the recommended one, by the loss on old data."""
    recommended: Candidate | None
    """None if no run keeps the constraints."""
    closest: Candidate
    """The run that is recommended, or else the one that violates the constraints least."""
    rule: str
    """How the recommended run was chosen, as a sentence."""
    searched: int
    """How many runs were compared."""
    edges: list[str]
    """Which settings of `closest` are the lowest or highest that were tried."""

    @cached_property
    def further_probe(self) -> FurtherProbe | None:
        """The further arm that would narrow the intervals of `closest` most; None if none does.

        It is found when it is asked for, which takes a second.
        """
        return find_further_probe(self.fitted, self.closest.recipe)


class _Task(NamedTuple):
    """What a search is for, and the predicted losses of its runs."""

    fitted: FittedArms
    recipe: Recipe
    constraints: Sequence[Constraint]
    runs: SearchedRuns
    losses: Array
    """On old data, on new data, and on sets that are constrained alone; shape (runs, losses)."""

    @property
    def goal(self) -> Goal:
        """What the recommended run is the best in."""
        limited = {one.role for one in self.constraints}
        if not limited:
            return "both"
        return "best adaptation" if "upstream" in limited else "least forgetting"

    def front(self, among: Indices) -> Indices:
        """Returns the Pareto front among some runs."""
        return among[nondominated_runs(self.losses[among])]

    def excess(self, index: Indices) -> Array:
        """Returns how far some runs violate the constraints, by their intervals; 0 if they hold."""
        if not self.constraints:
            return np.zeros(len(index))
        highest = highest_losses(self.fitted, self.runs, index)
        worst = np.max([one.excess(highest) for one in self.constraints], axis=0)
        return np.asarray(np.maximum(worst, 0.0))

    def candidate(self, run: int) -> Candidate:
        """Returns a run with its losses predicted from every step's rate."""
        choice, arms = self.runs.choice(run), self.fitted.arms
        own = recipe_of(arms, self.recipe, choice)
        prediction = self.fitted.predict("", own, arms.replay_share(own))
        is_allowed = keeps(prediction, self.constraints) and not prediction.reach.refusals
        return Candidate(choice, own, prediction, is_allowed)


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
    runs = searched_runs(fitted, recipe, space)
    sets = [fitted.arms.sets("upstream"), fitted.arms.sets("downstream")]
    sets += dict.fromkeys(one.sets for one in constraints if one.sets not in sets)
    losses = np.stack([mean_loss(runs.losses, names) for names in sets], axis=1)
    task = _Task(fitted, recipe, constraints, runs, losses)
    front = task.front(np.arange(len(losses)))
    chosen, best = _recommend(task, front)
    shown = {run: task.candidate(run) for run in _spread(losses, front) if run != chosen}
    shown = {run: one for run, one in shown.items() if not one.prediction.reach.refusals}
    shown[chosen] = best
    order = sorted(shown, key=lambda run: (losses[run, 0], losses[run, 1]))
    named = {run: shown[run].named(str(number)) for number, run in enumerate(order, start=1)}
    closest = named[chosen]
    return SearchResult(
        fitted,
        list(named.values()),
        closest if closest.holds else None,
        closest,
        _rule(task.goal),
        len(losses),
        _edge_notes(space, closest.choice),
    )


def keeps(prediction: Prediction, constraints: Sequence[Constraint]) -> bool:
    """Returns whether constraints hold at the bounds of the 80 % intervals of the last losses."""
    highest = {loss.name: float(loss.intervals[_LEVEL][1][-1]) for loss in prediction.losses}
    return all(one.excess(highest) <= 0 for one in constraints)


def _recommend(task: _Task, front: Indices) -> tuple[int, Candidate]:
    """Returns the run to recommend by `_rule`; if no run is allowed, the closest one."""
    excess = task.excess(front)
    if (excess > 0).all():
        run = int(front[np.lexsort((task.losses[front].sum(axis=1), excess))[0]])
        return run, task.candidate(run)
    allowed = front[excess <= 0]
    objective, most = task.losses[:, 1 if task.goal == "best adaptation" else 0], np.inf
    if task.goal == "both":
        adapted = allowed[[np.argmin(task.losses[allowed, 1])]]
        bounds = highest_losses(task.fitted, task.runs, adapted)
        most = mean_loss(bounds, task.fitted.arms.sets("downstream"))[0]
        allowed = allowed[task.losses[allowed, 1] <= most]
    for run in allowed[np.argsort(objective[allowed], kind="stable")]:
        best = task.candidate(int(run))
        if best.holds:  # also by its exact rates
            return _with_own_shape(task, int(run), best, objective, most)
    return int(run), best


def _with_own_shape(
    task: _Task, run: int, best: Candidate, objective: Array, most: float
) -> tuple[int, Candidate]:
    """Returns the best run that has as much as possible of the recipe's own shape of schedule.

    It is worse than the best of all runs by at most `_NEGLIGIBLE`.
    """
    highest = highest_losses(task.fitted, task.runs, np.array([run]))
    role: Role = "downstream" if task.goal == "best adaptation" else "upstream"
    half = mean_loss(highest, task.fitted.arms.sets(role))[0] - objective[run]
    good = (objective <= objective[run] + _NEGLIGIBLE * half) & (task.losses[:, 1] <= most)
    for constraint in task.constraints:
        good &= constraint.excess(task.runs.losses) <= 0
    own = choice_of(task.fitted.arms, task.recipe)
    same = [task.runs.has(name, getattr(own, name)) for name in _SHAPE]
    for kept in sorted(product((True, False), repeat=len(_SHAPE)), key=lambda one: -sum(one)):
        among = good.copy()
        for is_kept, is_same in zip(kept, same, strict=True):
            if is_kept:
                among &= is_same
        front = task.front(np.flatnonzero(among))
        front = front[task.excess(front) <= 0]
        for other in front[np.argsort(objective[front], kind="stable")]:
            candidate = task.candidate(int(other))
            if candidate.holds:
                return int(other), candidate
    return run, best


def _rule(goal: Goal) -> str:
    if goal == "both":
        rule = (
            "the least forgetting among runs whose predicted loss on new data is within the 80% "
            "interval of the best"
        )
    else:
        rule = f"the {goal} among runs that keep the constraints at the bounds of 80% intervals"
    return (
        f"{rule}; minimum, warm-up and decay differ from the recipe only where that gains more "
        "than a tenth of half the interval"
    )


def _spread(losses: Array, front: Indices) -> list[int]:
    """Returns runs of the front at about equal distances along it, with both of its ends."""
    order = front[np.lexsort((losses[front, 1], losses[front, 0]))]
    if len(order) <= _SHOWN:
        return [int(run) for run in order]
    points = losses[order, :2] / np.ptp(losses[order, :2], axis=0)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    spacing = along[-1] / (_SHOWN - 1)
    spread = [0]
    for index, distance in enumerate(along):
        if distance >= along[spread[-1]] + spacing * (1 - 1e-9):
            spread.append(index)
    if spread[-1] != len(order) - 1:
        spread[len(spread) - (along[-1] - along[spread[-1]] < spacing / 2) :] = [len(order) - 1]
    return [int(order[index]) for index in spread]


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
