"""Reads learning rates and marks from a schedule, and checks every value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rewarm.errors import ScheduleError
from rewarm.quantities import RateOfBase
from rewarm.schedules.base import Schedule


def rate(schedule: Schedule, progress: float) -> float:
    """Returns `schedule(progress)` if it is a valid learning rate: a number, finite, not negative.

    Training, `check` and `plot-schedule` all read the curve through this function.

    Raises:
        ScheduleError: the schedule raised an exception, or returned anything else.
    """
    label = f"schedule {schedule.name!r} at progress {progress:.6g}"
    try:
        value = schedule(progress)
    except Exception as error:  # third-party code may raise anything
        raise ScheduleError(f"{label} raised {type(error).__name__}: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"{label} gave {value!r}; a rate is a number")
    if not math.isfinite(value) or value < 0:
        raise ScheduleError(f"{label} gave {value!r}; a rate is finite and not negative")
    return float(value)


def check_rates(schedule: Schedule, first_progress: float) -> None:
    """Checks that a schedule returns valid rates, and the same ones when called again.

    It is called at 200 points of the run and at each mark.

    Args:
        schedule: the schedule to check.
        first_progress: the progress of the first step.

    Raises:
        ScheduleError: a rate is invalid, or differs between two calls.
    """
    points = [sample / 200 for sample in range(1, 201)]
    points += [min(1.0, max(mark, first_progress)) for mark in marks(schedule).values()]
    rates = {progress: rate(schedule, progress) for progress in points}
    for progress in reversed(points):
        if (repeated := rate(schedule, progress)) != rates[progress]:
            raise ScheduleError(
                f"schedule {schedule.name!r} at progress {progress:.6g} gave {rates[progress]!r}, "
                f"and {repeated!r} when called again; a schedule keeps no state between calls"
            )


def sample_curve(schedule: Schedule) -> list[float]:
    """Returns the rate at every hundredth of the run, which checkpoints store to compare curves."""
    return [rate(schedule, sample / 100) for sample in range(1, 101)]


def marks(schedule: Schedule) -> dict[str, float]:
    """Returns `schedule.marks()` if each mark is a finite number.

    Raises:
        ScheduleError: the schedule raised an exception, or returned anything else.
    """
    try:
        points = schedule.marks()
        if all(math.isfinite(progress) for progress in points.values()):
            return points
    except Exception as error:  # third-party code may raise anything
        raise ScheduleError(
            f"the marks of schedule {schedule.name!r} raised {type(error).__name__}: {error}"
        ) from error
    raise ScheduleError(f"schedule {schedule.name!r} marks {points!r}; a mark is a finite number")


def of_base(schedule: BaseModel) -> Iterator[str]:
    """Yields how each rate follows from the base model's last learning rate, one line per rate.

    Rates that were written as plain numbers are left out.
    """

    def lines(path: str, value: Any) -> Iterator[str]:
        if isinstance(value, RateOfBase):
            yield f"{path} = {value.factor:g} × {value.base_lr:g} (the base's last) = {value:g}"
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from lines(f"{path}.{name}" if path else name, getattr(value, name))
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from lines(f"{path}.{index}", item)

    yield from lines("", schedule)
