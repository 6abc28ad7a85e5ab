"""The learning rates that a report draws: the schedule as a line, the applied rates as points."""

from __future__ import annotations

from typing import NamedTuple

from rewarm.plots.schedule_preview import curve_steps
from rewarm.report.collect_runs import RunRecord

_SCHEDULE_POINTS = 1000  # of the line; a chart is about as many pixels wide
_APPLIED_POINTS = 60  # more would cover the line


class RatePoint(NamedTuple):
    """The learning rate of a step."""

    step: int
    tokens: int
    """Up to the end of the step."""
    lr: float


def applied_rates(record: RunRecord) -> list[RatePoint]:
    """Returns learning rates that a run has applied: logged ones, and those measured on weights.

    A measured rate replaces the logged one of its step. Many logged ones are thinned.
    """
    lines = [line for line in record.lines_of("train") if line.get("lr") is not None]
    thinned = lines[:: len(lines) // _APPLIED_POINTS + 1] + lines[-1:]
    points = {line["step"]: RatePoint(line["step"], line["tokens"], line["lr"]) for line in thinned}
    for event in record.events if record.recipe else []:
        step, lr = event.get("step"), event.get("measured")
        if event["kind"] != "rate" or not isinstance(step, int) or not isinstance(lr, int | float):
            continue
        if 0 < step <= record.step:  # a killed run may have steps in its log that were lost
            tokens = points[step].tokens if step in points else _tokens(record, step)
            points[step] = RatePoint(step, tokens, lr)
    return [points[step] for step in sorted(points)]


def scheduled_rates(record: RunRecord) -> list[RatePoint]:
    """Returns the learning rate that a run's schedule gives, over all of its steps.

    Of the logged steps only, if its recipe cannot be read: a plug-in may be missing.
    """
    if record.recipe is None:
        return applied_rates(record)
    recipe, applied = record.recipe, [point.step for point in applied_rates(record)]
    steps = sorted({*curve_steps(recipe, _SCHEDULE_POINTS), *applied})
    return [
        RatePoint(step, _tokens(record, step), recipe.lr(step))
        for step in steps
        if step <= recipe.steps
    ]


def _tokens(record: RunRecord, step: int) -> int:
    assert record.recipe
    return step * record.recipe.batch.tokens
