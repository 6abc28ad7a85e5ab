"""Means over seeds with their 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import NamedTuple

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom.
_STUDENT_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179),
    *(2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064),
    *(2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.96  # for more degrees of freedom


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    standard_error: float | None
    """The standard error of the mean; None with a single seed."""
    seeds: int
    """The number of seeds."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval by Student's t; None with a single seed."""
        if self.standard_error is None:
            return None
        index = self.seeds - 2
        half_width = self.standard_error * (
            _STUDENT_T[index] if index < len(_STUDENT_T) else _NORMAL
        )
        return self.mean - half_width, self.mean + half_width


def estimate_mean(values: Iterable[float]) -> Estimate | None:
    """Returns the mean of values with its standard error; None without values."""
    sample = list(values)
    if not sample:
        return None
    standard_error = stdev(sample) / math.sqrt(len(sample)) if len(sample) > 1 else None
    return Estimate(fmean(sample), standard_error, len(sample))
