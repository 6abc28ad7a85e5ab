"""Means over seeds with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import NamedTuple

# Two-sided 95 % of Student's t by degrees of freedom; beyond the list it is the normal's.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179),
    *(2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064),
    *(2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    error: float | None
    """Its standard error; None of a single seed."""
    seeds: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean, by Student's t; None of a single seed."""
        if self.error is None:
            return None
        reach = self.error * (_T[self.seeds - 2] if self.seeds - 2 < len(_T) else 1.96)
        return self.mean - reach, self.mean + reach


def estimate_mean(values: Iterable[float]) -> Estimate | None:
    """Returns mean and standard error; None of no values."""
    there = list(values)
    if not there:
        return None
    error = stdev(there) / math.sqrt(len(there)) if len(there) > 1 else None
    return Estimate(fmean(there), error, len(there))
