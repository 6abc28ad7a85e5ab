from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from synthetic_probes import ARMS, LAW, LOGARITHMS, Arm, synthetic_probe, synthetic_probes

from rewarm.predict.accuracy import (
    FinalError,
    LeftOut,
    error_scales,
    leave_one_out,
    left_out_errors,
    nearest_change,
    nearest_probe,
    predict_change,
    ranked_pairs,
    summarize,
)
from rewarm.predict.fit import fit_model


@pytest.mark.parametrize(
    ("arm", "nearest"),
    [(Arm(0.45), "half"), (Arm(1.8), "double"), (Arm(replay=0.04), "replay"), (Arm(3.0), "double")],
)
def test_nearest_probe(arm, nearest):
    target = synthetic_probe("target", arm)
    assert nearest_probe(synthetic_probes(), target.curve, target.replay).arm == nearest


def test_nearest_arm_is_scaled_to_the_length():
    target = synthetic_probe("target", Arm(0.25, steps=800))
    change = nearest_change(LAW, synthetic_probes(), "new", target.curve, 0.0)
    half = next(probe for probe in synthetic_probes() if probe.arm == "half")
    assert change[-1] == pytest.approx(half.changes["new"][-1])
    assert len(change) == len(target.curve.steps)


def test_nearest_arm_on_new_data_trains_on_it():
    probes = [probe for probe in synthetic_probes() if probe.arm in ("no-shift", "half")]
    target = synthetic_probe("target", Arm(replay=0.9))
    change = nearest_change(LAW, probes, "new", target.curve, target.replay)
    assert change[-1] == probes[0].changes["new"][-1]


def test_errors_by_hand():
    errors = [FinalError("a", 1.1, 1.0), FinalError("b", 1.9, 2.0), FinalError("c", -0.4, -0.5)]
    summary = summarize(errors)
    assert summary.mean_nats == pytest.approx(0.1)
    assert summary.worst_relative == pytest.approx(0.2)
    assert summary.mean_relative == pytest.approx((0.1 + 0.05 + 0.2) / 3)
    assert summary.rank_correlation == pytest.approx(1)
    opposite = [errors[0]._replace(predicted=3.0), errors[1]]
    assert summarize(opposite).rank_correlation == pytest.approx(-1)


def test_arms_left_out_are_not_fitted():
    seen = []

    def fit(probes):
        seen.append([probe.arm for probe in probes])
        return lambda name, curve, replay: np.zeros(len(curve.steps))

    probes = synthetic_probes()
    errors = left_out_errors(fit, probes, ["old"])
    shifted = [name for name, arm in ARMS.items() if arm.replay < 1]
    assert [error.arm for error in errors["old"]] == shifted
    assert seen == [[other for other in ARMS if other != name] for name in shifted]
    assert errors["old"][0].nats == -probes[0].changes["old"][-1]


def test_intervals_cover_new_arms():
    """Studies of seven arms whose losses are off by 3 % of their change, as those of new arms."""
    covered: dict[float, list[float]] = {0.8: [], 0.95: []}
    new_arms = NormalDist(0, 0.03)
    for seed in range(4):
        probes = synthetic_probes(error=0.03, seed=seed)
        fit = fit_model(LAW, probes, start=LOGARITHMS)
        scales = error_scales(LAW, leave_one_out(fit, probes))
        for name, arm in product(LAW.sets, (Arm(0.7, replay=0.02), Arm(1.4))):
            target = synthetic_probe("target", arm)
            measured = float(target.changes[name][-1])
            change = predict_change(fit, scales[name], name, target.curve, target.replay)
            for level, shares in covered.items():
                low, high = (bound[-1] / measured - 1 for bound in change.interval(level))
                shares.append(abs(new_arms.cdf(high) - new_arms.cdf(low)))
    assert 0.75 <= np.mean(covered[0.8]) <= 0.88
    assert 0.92 <= np.mean(covered[0.95]) <= 0.98


def test_intervals_widen_where_no_arm_was():
    probes = [probe for probe in synthetic_probes(0.02) if probe.replay < 0.2]
    fit = fit_model(LAW, probes, start=LOGARITHMS)
    scale = error_scales(LAW, leave_one_out(fit, probes))["new"]
    near, far = (synthetic_probe("target", Arm(replay=replay)) for replay in (0.05, 0.6))
    widths = []
    for target in (near, far):
        change = predict_change(fit, scale, "new", target.curve, target.replay)
        low, high = change.interval(0.95)
        widths.append(high[-1] - low[-1])
    assert widths[1] > 1.5 * widths[0]


def test_error_scale_by_hand():
    """Prior errors of 3 % of changes of 1 and 2: 0.03 and 0.06, as large as those of parameters."""
    arms = [
        LeftOut(FinalError("a", 1.09, 1.0), standard_error=0.03),
        LeftOut(FinalError("b", 2.0, 2.0), standard_error=0.06),
    ]
    scale = error_scales(LAW, {"old": arms})["old"]
    assert scale.freedom == pytest.approx(2 + 0.5 + 0.5)
    assert scale.factor**2 == pytest.approx((2 + 0.5 * 0.09**2 / (2 * 0.03**2)) / 3)
    assert scale.arm_error(np.array([0.01, -2.0])) == pytest.approx([0.03 * 0.1, 0.06])


def test_an_arm_that_others_hardly_determine_says_little():
    arms = [LeftOut(FinalError("replay", 3.0, 1.0), standard_error=2.0)]
    scale = error_scales(LAW, {"old": arms})["old"]
    assert scale.factor == pytest.approx(1, abs=1e-3)


def test_ranked_pairs_by_hand():
    errors = [FinalError("a", 1.0, 1.0), FinalError("b", 0.9, 1.1), FinalError("c", 2.0, 2.0)]
    assert ranked_pairs(errors, {"a": 0.01, "b": 0.01, "c": 0.1}) == (2, 3)
    assert ranked_pairs(errors, {"a": 0.05, "b": 0.05, "c": 0.1}) == (2, 2)
