"""Each term of the law against values computed by hand or by its recursion."""

import math

import numpy as np
import pytest

from rewarm.predict.law import (
    NewTerms,
    NoiseTerms,
    OldTerms,
    adaptation,
    annealing_area,
    forgetting,
    noise_change,
    noise_level,
    rate_curve,
    replay_factor,
)

RATES = np.array([0.5, 1.0, 0.5])


def test_sums_of_rates():
    curve = rate_curve(RATES, [0, 1, 3], beta2=0.95)
    assert curve.summed.tolist() == [0.0, 0.5, 2.0]
    weights = [math.exp(-0.05 * k) for k in (1, 2, 3)]
    by_hand = [0.0, 0.5 * weights[0], 0.5 * weights[0] + weights[1] + 0.5 * weights[2]]
    assert curve.first_steps.tolist() == pytest.approx(by_hand)
    assert (curve.run_steps, curve.total, curve.peak) == (3, 2.0, 1.0)


def test_noise_level_is_its_recursion():
    level, by_hand = 0.1, []
    for rate in RATES:
        level += (1 - math.exp(-0.3 * rate)) * (rate - level)
        by_hand.append(level)
    levels = noise_level(rate_curve(RATES, [0, 1, 2, 3]), 0.3, 0.1)
    assert levels.tolist() == pytest.approx([0.1, *by_hand])


@pytest.mark.parametrize(("rates", "start"), [([0.0, 1.0, 0.0], 0.1), ([1.0, 1.0], 0.0)])
def test_noise_level_at_rates_of_zero(rates, start):
    level = start
    for rate in rates:
        level += (1 - math.exp(-2 * rate)) * (rate - level)
    assert noise_level(rate_curve(np.array(rates), [len(rates)]), 2, start) == pytest.approx(level)


def test_noise_level_of_a_long_run_does_not_overflow():
    rates = np.full(100_000, 0.8)
    curve = rate_curve(rates, [0, 10, 100_000])
    assert len(curve.segment_rates) <= 2_001
    expected = [0.1, 0.8 - 0.7 * math.exp(-0.3 * 8), 0.8]
    assert noise_level(curve, 0.3, 0.1).tolist() == pytest.approx(expected)


def test_segments_of_a_long_run_have_its_sums():
    rates = np.sin(np.linspace(0.01, 3, 9_999))
    curve = rate_curve(rates, [1, 777, 9_999])
    assert curve.summed.tolist() == pytest.approx([rates[0], rates[:777].sum(), rates.sum()])
    assert curve.total == pytest.approx(rates.sum())


@pytest.mark.parametrize(("replay", "factor"), [(0, 1), (1, 0), (0.01, 1 - 1 / math.log2(101))])
def test_replay_factor(replay, factor):
    assert replay_factor(replay, 0.01) == pytest.approx(factor)


def test_forgetting_by_hand():
    curve = rate_curve(RATES, [3])
    first = 0.5 * math.exp(-0.05) + math.exp(-0.1) + 0.5 * math.exp(-0.15)
    by_hand = 0.3 * (2 + 1.5 * first) ** 0.4
    assert forgetting(curve, 0, OldTerms(0.3, 0.4, 1.5, 1e-3)) == pytest.approx(by_hand)
    assert forgetting(curve, 1, OldTerms(0.3, 0.4, 1.5, 1e-3)) == pytest.approx(0)


def test_adaptation_by_hand():
    curve = rate_curve(RATES, [3])
    cost = 0.3 * math.log(2) * 2 / 3
    saturating = 2 * 1.2 * (1 - (1 + 0.8 * 2) ** -0.25) - cost
    terms = NewTerms(1.2, 0.8, 0.25, 0.3)
    assert adaptation(curve, 0.5, terms, "saturating") == pytest.approx(saturating)
    logarithmic = 1.2 * math.log(1 + 0.8 * (1 + 2 * 0.5**0.25)) - cost
    assert adaptation(curve, 0.5, terms, "logarithmic") == pytest.approx(logarithmic)


def test_noise_change_is_zero_at_the_base_rate():
    curve = rate_curve(np.full(5, 0.1), [0, 2, 5])
    assert noise_change(curve, 0.1, NoiseTerms(0.25, 0.3)) == pytest.approx(np.zeros(3))


def test_annealing_area_by_hand():
    """S2 = Σ_k Σ_{j≤k} (η_{j-1} − η_j) λ^{k−j}, the double sum of arXiv:2505.07796."""
    rates = [0.1, *RATES]
    total = sum(
        (rates[j - 1] - rates[j]) * 0.9 ** (k - j) for k in (1, 2, 3) for j in range(1, k + 1)
    )
    assert annealing_area(rate_curve(RATES, [3]), 0.1, 0.9) == pytest.approx(total)
