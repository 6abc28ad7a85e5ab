"""Which arms a probe trains, for how long, and when it evaluates them, so that all fit in a time.

```
 steps of the target, time of a step, an evaluation, an arm ──> length of the short arms
   short arms: the recipe's peak, a quarter of it              a third of a long arm
   long arms:  the recipe's peak, without replay and with it   half or all of the target
```
All of them are complete schedules: one that is cut off before its decay misleads (docs/predict.md).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from rewarm.errors import RecipeError
from rewarm.quantities import format_seconds
from rewarm.recipe.periodic_work import EverySettings
from rewarm.recipe.recipe import Recipe

REPLAY = 0.05
"""The replay share of the arm that determines what replay does, if the recipe has none."""
LOWER_PEAK = 0.25
"""The peak of an arm, in units of the recipe's."""
# What docs/predict.md, "Limits" and "Evidence", has measured.
_SHORTEST = 60  # steps of the shortest runs on which the law was tested
_LONG = 3  # times the steps of a short arm
_MOST_LENGTHS = 2  # by which the target may be longer than the longest arm
_EARLY, _LATE = 0.1, 0.9  # between these shares of a run, losses are evaluated less often
# Evaluations in a whole run at the rate of its ends, and at that of its middle; dense ones first.
_GRIDS = ((50, 10), (20, 5), (20, 2))
_MOST_EVALUATING = 1 / 3  # of the time, where that leaves too little for the longest arms
SAVES = 4
"""Checkpoints of an arm; a killed one resumes from the last."""


class ProbeCosts(NamedTuple):
    """What an arm takes on this machine, in seconds."""

    step: float
    evaluation: float
    arm: float
    """What every arm takes once: imports, loading, saves."""


class ProbeArm(NamedTuple):
    """An arm of a probe."""

    name: str
    peak: float
    """In units of the recipe's."""
    replay: float
    steps: int
    every: EverySettings
    """When it logs, evaluates and saves."""
    seconds: float
    """What it takes on this machine."""


class ProbePlan(NamedTuple):
    """The arms of a probe."""

    arms: list[ProbeArm]
    evaluating: float
    """The share of the time that evaluations take."""

    @property
    def seconds(self) -> float:
        """What all arms take, one after the other."""
        return sum(arm.seconds for arm in self.arms)


def check_length(recipe: Recipe) -> None:
    """Checks that a recipe is long enough for its arms.

    Raises:
        RecipeError: it is shorter than the runs on which the law was tested.
    """
    if recipe.steps < _SHORTEST:
        raise RecipeError(
            [
                f"tokens: {recipe.tokens:,} are {recipe.steps:,} steps of batch.tokens "
                f"{recipe.batch.tokens:,}, and predictions were tested on runs of at least "
                f"{_SHORTEST} steps: a probe needs tokens of at least "
                f"{_SHORTEST * recipe.batch.tokens:,}, or a smaller batch.tokens"
            ]
        )


def plan_probes(target: int, costs: ProbeCosts, hours: float, replay: float) -> ProbePlan:
    """Returns the longest arms that fit, with the densest evaluations that leave time to train.

    Args:
        target: the steps of the recipe to predict; see `check_length`.
        costs: what steps, evaluations and arms take.
        hours: the time for everything.
        replay: the replay share of one of the arms; 0 if there is no old data to replay.

    Raises:
        RecipeError: arms from which the target can be predicted take longer.
    """
    lengths = short_lengths(target)
    fitting = None
    for grid in _GRIDS:
        plans = [_plan(target, lengths[0], grid, costs, replay)]
        count = bisect_right(
            lengths,
            3600 * hours,
            key=lambda short: _plan(target, short, grid, costs, replay).seconds,
        )
        if count:
            fitting = _plan(target, lengths[count - 1], grid, costs, replay)
            if count == len(lengths) or fitting.evaluating <= _MOST_EVALUATING:
                return fitting
    if fitting is None:
        raise RecipeError([_too_small(target, costs, hours, plans[-1])])
    return fitting


def short_lengths(target: int) -> range:
    """Returns the steps that the short arms of a probe may have.

    The fewest make the long arm half as long as the target; the most make it as long.
    """
    least = max(_SHORTEST, -(-target // (_MOST_LENGTHS * _LONG)))
    return range(least, max(least, -(-target // _LONG)) + 1)


def shortest_arm(target: int) -> ProbeArm:
    """Returns the shortest arm that a probe may have; what it takes is not known."""
    steps = short_lengths(target)[0]
    return ProbeArm("peak", 1.0, 0.0, steps, probe_every(steps), math.nan)


def probe_every(steps: int, grid: tuple[int, int] = _GRIDS[0]) -> EverySettings:
    """Returns when an arm evaluates: densely at first, where losses change most, and at its end."""
    ends, middle = (max(1, steps // count) for count in grid)
    pieces = [
        {"until": _EARLY, "every": ends},
        {"until": _LATE, "every": middle},
        {"every": ends},
    ]
    return EverySettings.model_validate(
        {"log": max(1, steps // 20), "evaluate": pieces, "save": -(-steps // SAVES)}
    )


def _plan(
    target: int, short: int, grid: tuple[int, int], costs: ProbeCosts, replay: float
) -> ProbePlan:
    arms, evaluating = [], 0.0
    for name, peak, share, steps in _arms(target, short, replay):
        every = probe_every(steps, grid)
        evaluations = 2 + len(set[int]().union(*every.evaluations(steps)))
        seconds = costs.arm + steps * costs.step + evaluations * costs.evaluation
        evaluating += evaluations * costs.evaluation
        arms.append(ProbeArm(name, peak, share, steps, every, seconds))
    return ProbePlan(arms, evaluating / sum(arm.seconds for arm in arms))


def _arms(target: int, short: int, replay: float) -> Iterator[tuple[str, float, float, int]]:
    """Yields name, peak, replay share and steps of each arm."""
    longest = min(target, _LONG * short)
    yield "peak", 1.0, 0.0, short
    yield "quarter", LOWER_PEAK, 0.0, short
    if longest > short:
        yield "long", 1.0, 0.0, longest
    elif not replay:  # the law needs a third arm
        yield "half", 2 * LOWER_PEAK, 0.0, short
    if replay:  # as long as the longest: old data is regained slowly, as docs/predict.md shows
        yield f"replay-{100 * replay:.3g}", 1.0, replay, longest


def _too_small(target: int, costs: ProbeCosts, hours: float, least: ProbePlan) -> str:
    lengths = ", ".join(f"{arm.name} {arm.steps:,}" for arm in least.arms)
    return (
        f"--hours {hours:g}: too short for arms from which {target:,} steps can be predicted "
        f"({lengths} steps), which take {math.ceil(least.seconds / 36) / 100:g} hours here: "
        f"{format_seconds(costs.step)} a step, {format_seconds(costs.evaluation)} an evaluation, "
        f"{format_seconds(costs.arm)} to start and save an arm; give more hours, or predict a "
        "shorter run (--set tokens=COUNT), or evaluate on fewer tokens "
        "(data.validation.NAME.tokens)"
    )
