"""The steps that `rewarm train --profile FIRST:LAST` records."""

from __future__ import annotations

import re
from typing import NamedTuple

from rewarm.errors import RecipeError

_MOST_STEPS = 100


class StepRange(NamedTuple):
    """Steps of a run, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


def parse_profiled_steps(text: str) -> StepRange:
    """Returns the steps in a text such as `10:20`.

    Raises:
        ValueError: it is not such a text, or has too many steps for a trace.
    """
    numbers = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", text)
    if not numbers:
        raise ValueError("should be the first and the last step, such as 10:20")
    steps = StepRange(int(numbers[1]), int(numbers[2]))
    if steps.first < 1:
        raise ValueError("steps are counted from 1")
    if steps.last < steps.first:
        raise ValueError(f"the last step is before the first; try {steps.last}:{steps.first}")
    if (count := steps.last - steps.first + 1) > _MOST_STEPS:
        raise ValueError(
            f"{count:,} steps; a trace of more than {_MOST_STEPS} is too large to open; try "
            f"{steps.first}:{steps.first + 9}"
        )
    return steps


def check_profiled_steps(profile: StepRange | None, steps: int) -> None:
    """Makes sure that a run has the steps that are to be profiled.

    Raises:
        RecipeError: it ends before.
    """
    if profile and profile.last > steps:
        raise RecipeError(
            [f"--profile {profile}: the run has {steps:,} steps; name steps from 1 to {steps:,}"]
        )
