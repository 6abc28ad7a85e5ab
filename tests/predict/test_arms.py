"""Which runs one law can describe, and what those have in common."""

import json

import pytest
from predicted_studies import ARMS, BATCH, STARTS, recipe_document, write_arm
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


def write_seed(folder, rise):
    """A second seed of the peak arm, whose losses on old data are higher."""
    run = write_arm(folder, Arm(), seed=2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["upstream/loss"] += rise
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize("name", ["peak", "again"])
def test_seeds_of_an_arm_are_averaged_whatever_its_name(name, tmp_path, runs):
    [other] = measured_runs(collect_runs([write_seed(tmp_path / name, 0.2)]))
    arms = study_arms([*runs, other])
    peaks = [study_arms(some).probes[1].changes["upstream"][-1] for some in (runs, [*runs, other])]
    assert [probe.arm for probe in arms.probes] == ["half", "peak", "quarter", "replay"]
    assert peaks[1] == pytest.approx(peaks[0] + 0.1)
    assert arms.merged == ({} if name == "peak" else {other.arm: "peak"})


def test_copies_of_a_run_do_not_count(tmp_path, runs):
    copies = measured_runs(collect_runs([write_arm(tmp_path / f"copy{i}", Arm()) for i in "ab"]))
    arms = study_arms([*runs, *copies])
    assert len(arms.probes) == 4
    with pytest.raises(CheckpointError, match=r"different arms that train on new data: 1 \("):
        study_arms([runs[1], *copies])


def test_runs_of_an_arm_have_one_schedule(tmp_path, runs):
    [other] = measured_runs(collect_runs([write_arm(tmp_path / "peak", Arm(0.7), seed=2)]))
    with pytest.raises(CheckpointError, match="is not that of the other runs of peak"):
        study_arms([*runs, other])


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


def refusal(runs, run):
    """Why the arms of some runs and of another one are refused."""
    with pytest.raises(CheckpointError) as error:
        study_arms([*runs, *measured_runs(collect_runs([run]))])
    assert str(run) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"model": {"base": "/models/base", "revision": "a"}},
            "model.revision of other: a; of half: not set; ",
        ),
        (
            {"batch": {"tokens": 4096}, "tokens": 400 * 4096},
            "batch.tokens of other: 4096; of half: 2048; ",
        ),
        ({"optimizer": {"weight_decay": 0.5}}, "optimizer.weight_decay of other: 0.5"),
        (
            {"model": {"base": "/models/base", "tokenizer": "/models/tokenizer"}},
            "model.tokenizer of other: /models/tokenizer; of half: not set; ",
        ),
        ({"model": {"preset": "pythia-14m"}}, "other starts from new weights, not from a base; "),
        ({"model": {"base": "/models/base", "fresh": True}}, "other starts from new weights"),
        ({"tokens": 900 * BATCH}, "other has upstream losses up to step 400 of 900: it is unfin"),
    ],
)
def test_runs_of_another_law_are_refused(tmp_path, runs, settings, reason):
    assert reason in refusal(runs, write_arm(tmp_path / "other", Arm(), **settings))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": 64}, "data.context of other: 64; of half: 128; "),
        (
            {"train": {"german": {"shards": "/data/german/train"}}},
            "new data of other: german (/data/german/train); of half: downstream (/data/new/train)",
        ),
        (
            {"validation": {name: {"shards": "/v", "tokens": "48k"} for name in STARTS}},
            "tokens of the validation sets of other: downstream 48,000, upstream 48,000; of half: ",
        ),
    ],
)
def test_runs_on_other_data_are_refused(tmp_path, runs, changes, reason):
    data = recipe_document(Arm())["data"] | changes
    assert reason in refusal(runs, write_arm(tmp_path / "other", Arm(), data=data))


def test_runs_with_other_losses_are_refused(tmp_path, runs):
    """Another set; a last loss that is not finite, null in metrics; a loss that rose."""
    run = write_arm(tmp_path / "other", Arm())
    text = (run / "metrics.jsonl").read_text()
    *lines, last = text.splitlines()
    for changed, reason in (
        (
            text.replace("downstream/loss", "code/loss"),
            "validation sets of other: code, upstream; of half: downstream, upstream; ",
        ),
        (
            last_line_with(lines, last, {"upstream/loss": None}),
            "other has upstream losses up to step 360 of 400: it is unfinished or diverged",
        ),
        (
            last_line_with(lines, last, {"downstream/loss": 9.0}),
            "other trains on new data, and its downstream loss changed by +3.1 nats: it diverged",
        ),
    ):
        (run / "metrics.jsonl").write_text(changed)
        assert reason in refusal(runs, run)


def last_line_with(lines, last, losses):
    return "\n".join([*lines, json.dumps(json.loads(last) | losses)]) + "\n"


def test_comparable_runs_are_those_like_the_reference(tmp_path, runs):
    write_arm(tmp_path / "unfinished", Arm(), tokens=900 * BATCH)
    write_arm(tmp_path / "elsewhere", Arm(), model={"base": "/models/other", "base_lr": 2e-4})
    others = measured_runs(collect_runs([tmp_path]))
    assert comparable_runs("half", [*others, *runs]) == runs
    assert comparable_runs("unfinished", [*others, *runs]) == []
    assert [run.arm for run in comparable_runs("elsewhere", [*others, *runs])] == ["elsewhere"]
    with pytest.raises(CheckpointError, match=r"new data: 1 \(elsewhere\)"):
        study_arms(comparable_runs("elsewhere", [*others, *runs]))
