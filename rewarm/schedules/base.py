"""The interface of a schedule: progress in (0, 1] in, learning rate out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

CONTRACT = 1
"""What `Schedule` asks of its subclasses, as a version: each says which one it was built for."""


class Schedule(BaseModel, ABC):
    """A learning-rate curve. `schedule(progress)` is the rate of the step that reaches `progress`.

    Step k of n has progress k / n, so the first update is never at progress 0 and the last is at
    exactly 1. Subclasses set `contract: ClassVar[int] = 1`, the contract that they were built for,
    and `name: Literal["my-name"] = "my-name"`, equal to their entry point.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    contract: ClassVar[int]
    name: str

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the absolute learning rate at a progress in (0, 1]; beyond 1 the end holds."""

    def marks(self) -> dict[str, float]:
        """Returns the places on the curve worth naming, as progress in [0, 1] by label."""
        return {}


def linear(x: float, start: float, end: float) -> float:
    """Returns the straight line from `start` at x = 0 to `end` at x = 1."""
    return start * (1 - x) + end * x  # exact at both ends


def cosine(x: float, start: float, end: float) -> float:
    """Returns half a cosine wave from `start` at x = 0 to `end` at x = 1."""
    return linear((1 - math.cos(math.pi * x)) / 2, start, end)
