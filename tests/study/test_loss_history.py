"""The metrics of a loss history, against hand-computed values."""

import pytest
from loss_histories import history

from rewarm.study.loss_history import (
    METRICS,
    LossPoint,
    fit_line,
    metrics_as_json,
    overtaking_share,
)


def test_metrics_of_a_loss_that_rises_and_recovers():
    losses = history(3.0, 3.4, 3.2, 2.9, 2.8)
    assert (losses.start, losses.final) == (3.0, 2.8)
    assert losses.forgetting == pytest.approx(-0.2)
    assert losses.adaptation == pytest.approx(0.2)
    assert losses.peak_rise == pytest.approx(0.4)
    assert losses.peak == LossPoint(1, 100, 3.4)
    assert losses.recovered_at == 300
    # Trapezoids: (3.0/2 + 3.4 + 3.2 + 2.9 + 2.8/2) / 4.
    assert losses.mean_loss == pytest.approx(12.4 / 4)
    json_metrics = metrics_as_json(losses)
    assert {
        name: metric(losses) for name, metric in METRICS.items()
    }.items() <= json_metrics.items()


def test_losses_that_never_rise_or_never_recover():
    assert history(3.0, 2.9).recovered_at == 0
    assert history(3.0, 3.4, 3.1).recovered_at is None
    assert history(3.0, 2.5, 3.4, 3.1).recovered_at is None
    assert history(3.0).mean_loss == 3.0


def test_overtaking_is_the_last_crossing():
    early, late = history(3.0, 2.5, 2.4, 2.4, 2.4), history(3.0, 2.8, 2.6, 2.3, 2.1)
    # 0.2 above at half, 0.1 below at three quarters: two thirds of the way between them.
    assert overtaking_share(late, early) == pytest.approx(0.5 + 0.25 * 2 / 3)
    assert overtaking_share(early, late) is None
    assert overtaking_share(history(2.0, 2.0), history(3.0, 3.0)) == 0
    assert overtaking_share(history(3.0, 3.0), history(3.0, 3.0)) is None


def test_fit_line():
    x = history(1.0, 2.0, 3.0)
    assert fit_line(x, history(5.0, 3.0, 1.0)) == pytest.approx((-2.0, 7.0, 1.0))
    assert fit_line(x, history(1.0, 1.0, 1.0)) is None
    assert fit_line(history(1.0, 2.0), history(1.0, 2.0)) is None
