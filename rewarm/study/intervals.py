"""Means over seeds with their 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import NamedTuple


def interval_factor(seeds: int) -> float:
    """Returns half the width of a 95% interval, in standard errors of a mean over 2 or more seeds.

    It is the 97.5% quantile of Student's t with seeds - 1 degrees of freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 0.975))


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
        half_width = self.standard_error * interval_factor(self.seeds)
        return self.mean - half_width, self.mean + half_width


def estimate_mean(values: Iterable[float]) -> Estimate | None:
    """Returns the mean of values with its standard error; None without values."""
    sample = list(values)
    if not sample:
        return None
    standard_error = stdev(sample) / math.sqrt(len(sample)) if len(sample) > 1 else None
    return Estimate(fmean(sample), standard_error, len(sample))
