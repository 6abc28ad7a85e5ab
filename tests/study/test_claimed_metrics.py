"""The metrics of claims, against hand-computed values."""

import math

import pytest
from loss_histories import history

from rewarm.study.claimed_metrics import WHOLE_RUN, MetricRequest, RunPart, claimed_value
from rewarm.study.loss_history import mean_history


def value(metric, *losses, part=WHOLE_RUN):
    """The metric of arms a, b, ... on one set, measured after every step."""
    arms = tuple("abc"[: len(losses)])
    histories = {arm: history(*values) for arm, values in zip(arms, losses, strict=True)}
    request = MetricRequest(metric, ("x",), arms, part)
    return claimed_value(request, lambda arm, _: histories.get(arm))


def test_slope_is_the_rise_of_the_least_squares_line_over_the_part():
    assert value("slope", [5.0, 4.0, 3.0, 2.0]) == pytest.approx(-3.0)
    # Through (2, 1), (3, 4), (4, 1.5): its slope is (1.5 - 1) / 2 a step.
    last = value("slope", [9.0, 5.0, 1.0, 4.0, 1.5], part=RunPart(0.5, 1.0))
    assert last == pytest.approx(0.5)
    assert value("slope", [9.0, 5.0, 1.0, 4.0, 1.5], part=RunPart(0.8, 1.0)) is None


def test_a_rising_curve_that_ends_below_its_mean_has_a_positive_slope():
    """`final < area` took it for one that gets better to the end."""
    losses = [9.0, 2.0, 2.1, 2.2, 2.3]
    assert value("final", losses) < value("area", losses)
    assert value("slope", losses, part=RunPart(0.25, 1.0)) == pytest.approx(0.3)


def test_metrics_of_a_part_count_from_the_start_of_the_run():
    losses = [2.0, 2.7, 2.1, 2.4, 2.2]
    assert value("bump", losses) == pytest.approx(0.7)
    assert value("bump", losses, part=RunPart(0.5, 1.0)) == pytest.approx(0.4)
    assert value("final", losses, part=RunPart(0.0, 0.5)) == 2.1
    assert value("forgetting", losses, part=RunPart(0.0, 0.5)) == pytest.approx(0.1)


def test_bits_per_byte_are_those_of_the_last_loss_in_the_part():
    bits = [3.0, 2.5, 2.0]
    losses = history(2.0, 1.7, 1.4)
    points = [point._replace(bits_per_byte=b) for point, b in zip(losses.points, bits, strict=True)]
    losses = losses._replace(points=points)
    for part, expected in ((RunPart(0.0, 0.5), 2.5), (WHOLE_RUN, 2.0)):
        assert (
            claimed_value(MetricRequest("bpb", ("x",), ("a",), part), lambda *_: losses) == expected
        )
    assert mean_history([losses, losses]).bits_per_byte == 2.0
    assert mean_history([losses, history(2.0, 1.7, 1.4)]).bits_per_byte is None


def test_gap_is_the_largest_difference_at_a_common_step():
    a, b = [2.0, 3.0, 2.5, 2.4], [2.0, 2.2, 2.6, 2.35]
    assert value("gap", a, b) == pytest.approx(0.8)
    assert value("gap", a, b, part=RunPart(0.5, 1.0)) == pytest.approx(0.1)
    assert value("gap", a, b) == value("gap", b, a)


def test_linearity_is_of_perplexities():
    old = [math.log(p) for p in (10.0, 20.0, 15.0, 12.0)]
    new = [math.log(3 * p + 5) for p in (10.0, 20.0, 15.0, 12.0)]
    sets = {"old": history(*old), "new": history(*new)}
    request = MetricRequest("linearity", ("old", "new"), ("a",))
    assert claimed_value(request, lambda _, name: sets[name]) == pytest.approx(1.0)
    sets["new"] = history(*[math.log(p) for p in (3.0, 3.0, 9.0, 3.0)])
    # By hand: x = 10, 20, 15, 12; y = 3, 3, 9, 3; R² = (Σ dx·dy)² / (Σ dx² · Σ dy²).
    assert claimed_value(request, lambda _, name: sets[name]) == pytest.approx(
        (0.75 * 6) ** 2 / (56.75 * 27), rel=1e-6
    )


def test_a_run_that_was_not_measured_has_no_value():
    request = MetricRequest("gap", ("x",), ("a", "b"))
    assert claimed_value(request, lambda arm, _: history(1.0, 2.0) if arm == "a" else None) is None
