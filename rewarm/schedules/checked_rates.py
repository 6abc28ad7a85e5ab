"""Reads learning rates and marks from a schedule, and checks every value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from rewarm.errors import ScheduleError
from rewarm.quantities import RateOfBase
from rewarm.schedules.base import Schedule
from rewarm.schedules.third_party_code import describe_error, describe_value, within_time_limit

_Returned = TypeVar("_Returned")
_MAX_SECONDS = 10.0
"""Time for all calls that read a curve, about 400; a training step has to be much faster."""


def rate(schedule: Schedule, progress: float) -> float:
    """Returns `schedule(progress)` if it is a valid learning rate: a number, finite, not negative.

    Training, `check` and `plot-schedule` all read the curve through this function.

    Raises:
        ScheduleError: the schedule raised an exception, or returned anything else.
    """
    label = f"schedule {schedule.name!r} at progress {progress:.6g}"
    try:
        value = schedule(progress)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # third-party code may raise anything, also SystemExit
        raise ScheduleError(f"{label} raised {describe_error(error)}") from error
    if not is_number:
        raise ScheduleError(f"{label} gave {describe_value(value)}; a rate is a number")
    if not math.isfinite(number) or number < 0:
        raise ScheduleError(
            f"{label} gave {describe_value(value)}; a rate is finite and not negative"
        )
    return number


def check_rates(schedule: Schedule, first_progress: float) -> None:
    """Checks that a schedule returns valid rates, and the same ones when called again.

    It is called at 200 points of the run and at each mark.

    Args:
        schedule: the schedule to check.
        first_progress: the progress of the first step.

    Raises:
        ScheduleError: a rate is invalid, or differs between two calls; or all calls together take
            longer than 10 s.
    """
    _within_time_limit(schedule, lambda: _check_rates(schedule, first_progress))


def _check_rates(schedule: Schedule, first_progress: float) -> None:
    points = [sample / 200 for sample in range(1, 201)]
    points += [min(1.0, max(mark, first_progress)) for mark in _marks(schedule).values()]
    rates = {progress: rate(schedule, progress) for progress in points}
    for progress in reversed(points):
        if (repeated := rate(schedule, progress)) != rates[progress]:
            raise ScheduleError(
                f"schedule {schedule.name!r} at progress {progress:.6g} gave {rates[progress]!r}, "
                f"and {repeated!r} when called again; a schedule keeps no state between calls"
            )


def sample_curve(schedule: Schedule) -> list[float]:
    """Returns the rate at every hundredth of the run, which checkpoints store to compare curves.

    Raises:
        ScheduleError: a rate is invalid, or all calls together take longer than 10 s.
    """
    return _within_time_limit(
        schedule, lambda: [rate(schedule, sample / 100) for sample in range(1, 101)]
    )


def marks(schedule: Schedule) -> dict[str, float]:
    """Returns `schedule.marks()` if each mark is a finite number.

    Raises:
        ScheduleError: the schedule raised an exception, returned anything else, or took longer than
            10 s.
    """
    return _within_time_limit(schedule, lambda: _marks(schedule))


def marked_steps(schedule: Schedule, steps: int) -> dict[str, int]:
    """Returns the first step at or after each mark inside a run: the first one at the floor, ...

    Raises:
        ScheduleError: as `marks`.
    """
    return {
        # 1e-6: rounding in a mark should not delay it by a step.
        label: min(steps, max(1, math.ceil(mark * steps - 1e-6)))
        for label, mark in marks(schedule).items()
        if 0 < mark < 1
    }


def _marks(schedule: Schedule) -> dict[str, float]:
    try:
        points = schedule.marks()
        if all(isinstance(label, str) and math.isfinite(at) for label, at in points.items()):
            return points
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # third-party code may raise anything, also SystemExit
        raise ScheduleError(
            f"the marks of schedule {schedule.name!r} raised {describe_error(error)}"
        ) from error
    raise ScheduleError(
        f"schedule {schedule.name!r} marks {describe_value(points)}; a mark is a label and a "
        "finite number"
    )


def _within_time_limit(schedule: Schedule, function: Callable[[], _Returned]) -> _Returned:
    return within_time_limit(
        function,
        _MAX_SECONDS,
        lambda: (
            f"schedule {schedule.name!r} did not return its rates and marks within "
            f"{_MAX_SECONDS:g} s; a call may take 200 µs: fix the plug-in, or choose another "
            "schedule"
        ),
    )


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
