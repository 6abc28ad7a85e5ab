import numpy as np
import pytest
from synthetic_probes import ARMS, LAW, LOGARITHMS, Arm, synthetic_probe, synthetic_probes

from rewarm.predict.accuracy import (
    FinalError,
    left_out_errors,
    nearest_change,
    nearest_probe,
    predict_change,
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
    """Arms whose losses are off by 2 % of their change, in two studies of seven arms."""
    inside: dict[float, list[bool]] = {0.8: [], 0.95: []}
    for seed in range(2):
        probes = synthetic_probes(error=0.02, seed=seed)
        fit = fit_model(LAW, probes, start=LOGARITHMS)
        target = synthetic_probe("target", Arm(0.7, replay=0.02))
        measured = target.changes["old"][-1]
        change = predict_change(fit, probes, "old", target.curve, target.replay)
        for level, hits in inside.items():
            low, high = change.interval(level)
            for error in 0.02 * np.random.default_rng(seed).standard_normal(50):
                hits.append(bool(low[-1] <= (1 + error) * measured <= high[-1]))
    for level, hits in inside.items():
        assert level - 0.1 <= np.mean(hits), level


def test_intervals_widen_where_no_arm_was():
    probes = [probe for probe in synthetic_probes(0.02) if probe.replay < 0.2]
    fit = fit_model(LAW, probes, start=LOGARITHMS)
    near, far = (synthetic_probe("target", Arm(replay=replay)) for replay in (0.05, 0.6))
    widths = []
    for target in (near, far):
        change = predict_change(fit, probes, "new", target.curve, target.replay)
        low, high = change.interval(0.95)
        widths.append(high[-1] - low[-1])
    assert widths[1] > 1.5 * widths[0]
