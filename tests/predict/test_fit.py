import numpy as np
import pytest
from synthetic_probes import LAW, LOGARITHMS, PARAMETERS, Arm, synthetic_probe, synthetic_probes

from rewarm.predict.fit import fit_model
from rewarm.predict.loss_models import LawModel, PublishedModel, TokensModel


@pytest.fixture(scope="module")
def fit():
    """The law fitted to losses that follow it exactly."""
    return fit_model(LAW, synthetic_probes())


def test_parameters_of_synthetic_losses_are_recovered(fit):
    for name, value in PARAMETERS.items():
        found, factor = fit.parameters[name]
        assert found == pytest.approx(value, rel=0.1), name
        assert 1 < factor < 3, name


def test_standard_errors_cover_the_parameters():
    """Of ten parameters, most are within two standard errors in spite of arms' errors of 1 %."""
    fit = fit_model(LAW, synthetic_probes(error=0.01), start=LOGARITHMS)
    inside = [
        abs(np.log(fit.parameters[name][0] / value)) < 2 * np.log(fit.parameters[name][1])
        for name, value in PARAMETERS.items()
    ]
    assert sum(inside) >= 8


def test_one_arm_far_off_hardly_moves_the_others(fit):
    probes = synthetic_probes()
    arm = synthetic_probe("off", Arm(0.7), error=0.3)
    fit = fit_model(LAW, [*probes, arm], start=fit.logarithms)
    half = next(probe for probe in probes if probe.arm == "half")
    for name in LAW.sets:
        predicted = fit.change(name, half.curve, half.replay)[-1]
        assert predicted == pytest.approx(half.changes[name][-1], rel=0.03)


def test_three_arms_predict_a_fourth():
    probes = {probe.arm: probe for probe in synthetic_probes()}
    target = probes.pop("more-replay")
    fit = fit_model(LAW, [probes[name] for name in ("peak", "half", "replay")])
    for name in LAW.sets:
        predicted = fit.change(name, target.curve, target.replay)
        assert predicted == pytest.approx(target.changes[name], abs=0.03)


def test_a_warm_start_finds_the_same_fit(fit):
    """From the fit to other losses, as for an arm that is left out."""
    probes = synthetic_probes(error=0.02)
    cold, warm = (fit_model(LAW, probes, start=start) for start in (None, fit.logarithms))
    assert warm.cost == pytest.approx(cold.cost, rel=1e-3)


def test_an_arm_of_old_data_only_counts_for_the_old():
    arm = synthetic_probe("no-shift", Arm(replay=1.0))
    assert arm.sets(LAW) == ["old"]


def test_the_logarithmic_form_fits_too():
    model = LawModel(("old",), ("new",), 0.1, "logarithmic")
    probes = synthetic_probes()
    fit = fit_model(model, probes)
    for probe in probes:
        for name in probe.sets(model):
            predicted = fit.change(name, probe.curve, probe.replay)[-1]
            assert predicted == pytest.approx(probe.changes[name][-1], abs=0.12)


@pytest.mark.parametrize(
    ("model", "logarithms"),
    [
        (PublishedModel(("old",), ("new",), 0.1), np.log([3, 0.1, 0.3, 0.02, 0.05, 1e-3] * 2)),
        (PublishedModel(("old",), ("new",), 0.1, 0.01), np.log([3, 0.1, 0.3, 0.02, 1e-3] * 2)),
        (TokensModel(("old",), ("new",)), np.log([0.3, 0.4, 1e-3, 0.2, 0.3, 2])),
    ],
)
def test_the_other_models_fit_losses_of_their_own(model, logarithms):
    """Changes on new data are falls, and those on old data rises."""
    arms = ("peak", "half", "replay", "more-replay")
    probes = [
        probe._replace(
            changes={
                name: model.change(logarithms, name, probe.curve, probe.replay)
                for name in probe.sets(model)
            }
        )
        for probe in synthetic_probes()
        if probe.arm in arms
    ]
    assert len(logarithms) == len(model.priors)
    fit = fit_model(model, probes)
    for probe in probes:
        for name in probe.sets(model):
            predicted = fit.change(name, probe.curve, probe.replay)[-1]
            assert predicted == pytest.approx(probe.changes[name][-1], abs=0.03)
    assert probes[0].changes["old"][-1] > 0 > probes[0].changes["new"][-1]
