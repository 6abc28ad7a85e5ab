"""The law on the curves of docs/cpu-mini.html, against the tables in docs/."""

import re

import pytest
from law_accuracy import law, probe_of, runs_of_page
from repository import ROOT

from rewarm.predict.fit import fit_model


@pytest.fixture(scope="module")
def probes():
    runs = dict(runs_of_page(ROOT / "docs" / "cpu-mini.html"))
    arms = ("rewarm", "half", "double", "constant", "replay-5", "replay-25", "no-shift")
    return {arm: probe_of(arm, runs[arm]) for arm in arms}


def test_the_curves_are_those_of_the_results(probes):
    text = (ROOT / "docs" / "cpu-mini.md").read_text()
    for arm, probe in probes.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {arm} |"))
        changes = [float(number) for number in re.findall(r"\| ([+-][\d.]+) ±", row)][:2]
        assert probe.changes["upstream"][-1] == pytest.approx(changes[0], abs=1e-4)
        assert probe.changes["downstream"][-1] == pytest.approx(-changes[1], abs=1e-4)


@pytest.mark.parametrize("left_out", ["half", "replay-5"])
def test_an_arm_is_predicted_from_six_others(probes, left_out):
    """Within the worst errors on arms that are inside of the others: docs/predict.md."""
    target = probes[left_out]
    others = [probe for arm, probe in probes.items() if arm != left_out]
    fit = fit_model(law("saturating"), others)
    for name, tolerance in (("upstream", 0.07), ("downstream", 0.02)):
        predicted = fit.change(name, target.curve, target.replay)[-1]
        assert predicted == pytest.approx(target.changes[name][-1], rel=tolerance)
