"""Reads rates from a schedule, with every value checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rewarm.errors import ScheduleError
from rewarm.quantities import RateOfBase
from rewarm.schedules.base import Schedule


def rate(schedule: Schedule, progress: float) -> float:
    """Returns `schedule(progress)`, having made sure that it is a rate.

    Training, `check` and `plot-schedule` all read the curve through this one function.

    Raises:
        ScheduleError: the schedule raised, or gave something negative, not finite or not a number.
    """
    where = f"schedule {schedule.name!r} at progress {progress:.6g}"
    try:
        value = schedule(progress)
    except Exception as error:  # a stranger's curve may raise anything
        raise ScheduleError(f"{where} raised {type(error).__name__}: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"{where} gave {value!r}; a rate is a number")
    if not math.isfinite(value) or value < 0:
        raise ScheduleError(f"{where} gave {value!r}; a rate is finite and not negative")
    return float(value)


def check_rates(schedule: Schedule, least: float) -> None:
    """Makes sure, at 200 places and at each mark, that a schedule gives a rate, the same each time.

    Args:
        schedule: whose curve it is.
        least: the progress of the first step.

    Raises:
        ScheduleError: it does not.
    """
    places = [sample / 200 for sample in range(1, 201)]
    places += [min(1.0, max(place, least)) for place in marks(schedule).values()]
    first = {place: rate(schedule, place) for place in places}
    for place in reversed(places):
        if (again := rate(schedule, place)) != first[place]:
            raise ScheduleError(
                f"schedule {schedule.name!r} at progress {place:.6g} gave {first[place]!r}, and "
                f"{again!r} when asked again; a schedule keeps nothing between calls"
            )


def sample_curve(schedule: Schedule) -> list[float]:
    """Returns the rate at every hundredth of the run, by which a curve is known again."""
    return [rate(schedule, place / 100) for place in range(1, 101)]


def marks(schedule: Schedule) -> dict[str, float]:
    """Returns `schedule.marks()`, having made sure that they are places.

    Raises:
        ScheduleError: the schedule raised, or gave something that is not a number for each label.
    """
    try:
        places = schedule.marks()
        if all(math.isfinite(place) for place in places.values()):
            return places
    except Exception as error:  # a stranger's marks may raise anything
        raise ScheduleError(
            f"the marks of schedule {schedule.name!r} raised {type(error).__name__}: {error}"
        ) from error
    raise ScheduleError(f"schedule {schedule.name!r} marks {places!r}; a mark is a finite number")


def of_base(schedule: BaseModel) -> Iterator[str]:
    """Yields the arithmetic of every rate that was written as one of the base's."""

    def inside(label: str, value: Any) -> Iterator[str]:
        if isinstance(value, RateOfBase):
            yield f"{label} = {value.factor:g} × {value.base_lr:g} (the base's last) = {value:g}"
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from inside(f"{label}.{name}" if label else name, getattr(value, name))
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                yield from inside(f"{label}.{index}", one)

    yield from inside("", schedule)
