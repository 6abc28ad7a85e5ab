"""The interface of a schedule: a function from progress in (0, 1] to the absolute learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

CONTRACT = 1
"""The version of the contract that subclasses of `Schedule` fulfill; each declares its version."""


class Schedule(BaseModel, ABC):
    """A learning-rate curve: `schedule(progress)` is the rate of the step that ends at `progress`.

    Step k of n has progress k / n, so the first update is never at progress 0 and the last is at
    exactly 1. Subclasses set `contract: ClassVar[int] = 1`, the contract that they implement, and
    `name: Literal["my-name"] = "my-name"`, equal to their entry point.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    contract: ClassVar[int]
    name: str

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the absolute learning rate at a progress in (0, 1]; it is constant beyond 1."""

    def marks(self) -> dict[str, float]:
        """Returns notable points of the curve as {label: progress in [0, 1]}."""
        return {}


def linear(x: float, start: float, end: float) -> float:
    """Returns start · (1 - x) + end · x: a line from `start` at x = 0 to `end` at x = 1.

    >>> [linear(x, 1.0, 3.0) for x in (0, 0.5, 1)]
    [1.0, 2.0, 3.0]
    """
    return start * (1 - x) + end * x  # exact at both ends


def cosine(x: float, start: float, end: float) -> float:
    """Returns end + (start - end) · (1 + cos πx) / 2: half a cosine wave from `start` to `end`.

    >>> [cosine(x, 3.0, 1.0) for x in (0, 0.5, 1)]
    [3.0, 2.0, 1.0]
    """
    return linear((1 - math.cos(math.pi * x)) / 2, start, end)
