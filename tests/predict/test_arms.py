"""Which runs one law can describe, and what those have in common."""

import pytest
from predicted_studies import ARMS, write_arm
from synthetic_probes import Arm

from rewarm.checkpoints.training_state import Ancestor
from rewarm.errors import CheckpointError
from rewarm.predict.arms import comparable_runs, study_arms
from rewarm.report.collect_runs import collect_runs
from rewarm.report.left_out_losses import measured_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, arm in ARMS.items():
        write_arm(folder / name, arm)
    return measured_runs(collect_runs([folder]))


def test_seeds_of_an_arm_are_averaged(tmp_path, runs):
    [other] = measured_runs(collect_runs([write_arm(tmp_path / "peak", Arm(0.5), seed=2)]))
    arms = study_arms([*runs, other])
    changes = {probe.arm: probe.changes["upstream"][-1] for probe in arms.probes}
    peak, half = (study_arms(runs).probes[i].changes["upstream"][-1] for i in (1, 0))
    assert [probe.arm for probe in arms.probes] == ["half", "peak", "quarter", "replay"]
    assert changes["peak"] == pytest.approx((peak + half) / 2)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"base": Ancestor(name="base", directory="/models/base", sha256="0123456789abcdef")},
            "sha256 of the base of quarter: 0123456789ab; of half: fedcba987654",
        ),
        (
            {"validation_digests": {"upstream": "0" * 64, "downstream": "1" * 64}},
            "data of the validation sets of quarter: downstream 111111111111, upstream 0000",
        ),
    ],
)
def test_weights_and_data_are_compared_by_their_digests(runs, changed, reason):
    """The same path may have had other weights, or text of another tokenizer, before."""
    digests = dict.fromkeys(("upstream", "downstream"), "f" * 64)
    base = Ancestor(name="base", directory="/models/base", sha256="fedcba9876543210")
    known = {"base": base, "validation_digests": digests}
    outcomes = [
        run.outcome._replace(**known | (changed if run.arm == "quarter" else {})) for run in runs
    ]
    compared = [run._replace(outcome=one) for run, one in zip(runs, outcomes, strict=True)]
    with pytest.raises(CheckpointError, match=reason):
        study_arms(compared)
    assert [run.arm for run in comparable_runs("half", compared)] == ["half", "peak", "replay"]


def test_comparable_runs_are_those_like_the_reference(tmp_path, runs):
    write_arm(tmp_path / "unfinished", Arm(), tokens=900 * 2048)
    write_arm(tmp_path / "elsewhere", Arm(), model={"base": "/models/other", "base_lr": 2e-4})
    others = measured_runs(collect_runs([tmp_path]))
    assert comparable_runs("half", [*others, *runs]) == runs
    assert comparable_runs("unfinished", [*others, *runs]) == []
    assert [run.arm for run in comparable_runs("elsewhere", [*others, *runs])] == ["elsewhere"]
    with pytest.raises(CheckpointError, match=r"new data: 1 \(elsewhere\)"):
        study_arms(comparable_runs("elsewhere", [*others, *runs]))
