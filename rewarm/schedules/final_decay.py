"""Finds where the final decay of a schedule begins, in a run of any number of steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from rewarm.schedules.base import Schedule
from rewarm.schedules.checked_rates import marks, rate

_SAMPLES = 10_000
"""Steps whose rates are computed; between them, those of a longer run are searched by bisection."""


def step_before_decay(schedule: Schedule, steps: int) -> int:
    """Returns the last step before the final decay.

    After it the learning rate only falls, or stays at its final value. It is the last step if the
    schedule does not end with a decay.

    Raises:
        ScheduleError: a rate is invalid.
    """

    def lr(step: int) -> float:
        return rate(schedule, step / steps)

    samples, last_rate = sampled_steps(schedule, steps), lr(steps)
    i = len(samples) - 1
    while i and lr(samples[i - 1]) == last_rate:
        i -= 1
    if i == 0:
        return steps
    decay_end = _first_step(samples[i - 1] + 1, samples[i], lambda n: lr(n) == last_rate)
    if lr(decay_end - 1) < last_rate:
        return steps
    i -= 1
    while i and lr(samples[i - 1]) > lr(samples[i]):
        i -= 1
    earliest, latest = samples[max(0, i - 1)], min(samples[i + 1], decay_end)
    return _first_step(earliest, latest, lambda n: lr(n) > lr(n + 1))


def is_constant_before(schedule: Schedule, steps: int, step: int) -> bool:
    """Returns whether the rate is constant for a while before a step, and not only at the end."""
    before = step - max(1, steps // _SAMPLES)
    if before <= 0 or step >= steps:
        return False
    return rate(schedule, before / steps) == rate(schedule, step / steps)


def sampled_steps(schedule: Schedule, steps: int) -> list[int]:
    """Returns all steps; of a long run, 10,000 of them and those at the schedule's marks."""
    count = min(steps, _SAMPLES)
    samples = {-(-steps * sample // count) for sample in range(1, count + 1)}
    marked = (round(mark * steps) for mark in marks(schedule).values())
    return sorted({1, *samples, *(step for step in marked if 0 < step < steps)})


def _first_step(first: int, end: int, holds: Callable[[int], bool]) -> int:
    """Returns the step from `first` on at which a condition begins to hold; `end` if none."""
    return first + bisect_left(range(first, end), True, key=holds)
