"""Means over seeds, against hand-computed values."""

import math

import pytest

from rewarm.study.intervals import estimate_mean, interval_factor


def test_estimate_mean():
    assert estimate_mean([]) is None
    assert estimate_mean([2.0]) == (2.0, None, 1)
    estimate = estimate_mean([0.0, 1.0] * 50)
    low, high = estimate.interval
    assert (low + high) / 2 == pytest.approx(0.5)
    # The 97.5% quantile of Student's t with 99 degrees of freedom.
    assert (high - low) / 2 == pytest.approx(1.984217 * math.sqrt(0.25 * 100 / 99) / 10, rel=1e-6)


# Published tables of Student's t, two-sided, 95%.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (10, 2.2281), (30, 2.0423), (31, 2.0395), (60, 2.0003)],
)
def test_intervals_use_students_t_for_any_number_of_seeds(degrees, quantile):
    assert interval_factor(degrees + 1) == pytest.approx(quantile, abs=5e-5)
