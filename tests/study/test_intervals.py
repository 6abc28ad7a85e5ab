"""Means over seeds, against hand-computed values."""

import math

import pytest

from rewarm.study.intervals import estimate_mean


def test_estimate_mean():
    assert estimate_mean([]) is None
    assert estimate_mean([2.0]) == (2.0, None, 1)
    estimate = estimate_mean([0.0, 1.0] * 50)
    low, high = estimate.interval
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 * 100 / 99) / 10)
