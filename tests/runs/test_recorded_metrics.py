"""What a checkpoint says about the metrics: the file of a real run, damaged in every way."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from training_runs import run

from rewarm.errors import CheckpointError, Preempted
from rewarm.runs.metrics_file import METRICS_FILE
from rewarm.runs.recorded_metrics import read_run_metrics
from rewarm.study.run_outcomes import read_outcome


@pytest.fixture(scope="module")
def stopped_run(trained_run, tmp_path_factory):
    """A run of 20 steps that was stopped after step 12."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Preempted):
        run((trained_run / "recipe.yaml").read_text(), directory, until=12)
    return directory


def _without(path, number):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:number] + lines[number + 1 :]))


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text(path.read_text()[:300]),
    "first line missing": lambda path: _without(path, 0),
    "a line missing": lambda path: _without(path, 3),
    "a line twice": lambda path: path.write_text(2 * path.read_text().splitlines(True)[0]),
    "a number changed": lambda path: path.write_text(path.read_text().replace("5", "6", 1)),
    "a bad line": lambda path: path.write_text("{\n" + path.read_text()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_metrics_are_noticed_by_every_reader(
    damage, stopped_run, recipe_text, tmp_path, command
):
    directory = Path(shutil.copytree(stopped_run, tmp_path / "run"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text)
    damage(directory / METRICS_FILE)
    damaged = {path: path.read_bytes() for path in directory.glob("*.jsonl")}
    for words in (
        ("train", recipe, "--resume"),
        ("check", recipe, "--resume"),
        ("verify", directory),
        ("report", directory, "--out", tmp_path / "report.html"),
        ("report", tmp_path, "--out", tmp_path / "report.csv"),
    ):
        code, _, err = command(*words)
        assert (code, words[0]) == (3, words[0])
        assert "metrics.jsonl" in err
        assert "--resume --accept-changes" in err
        assert not list(tmp_path.glob("report.*"))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl"):
        read_outcome(directory)
    assert {path: path.read_bytes() for path in directory.glob("*.jsonl")} == damaged


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_accepted_gap_is_marked_and_no_number_is_made_up(
    damage, stopped_run, recipe_text, tmp_path, command
):
    """The baseline is the checkpoint's own; what needs the missing lines is not known."""
    directory = Path(shutil.copytree(stopped_run, tmp_path / "run"))
    before = read_outcome(directory).losses["upstream"]
    damage(directory / METRICS_FILE)
    damaged = directory / METRICS_FILE
    damaged_bytes = damaged.read_bytes() if damaged.exists() else None
    run(recipe_text, directory, resume=True, accept_changes=True)
    copy = directory / "metrics-damaged-00000012.jsonl"
    assert (copy.read_bytes() if copy.exists() else None) == (damaged_bytes or None)
    lines = read_run_metrics(directory).lines
    assert [line["step"] for line in lines if line["kind"] == "gap"] == [12]
    history = read_outcome(directory).losses["upstream"]
    assert history.start == before.start
    assert history.forgetting == history.final - before.start != 0
    assert (history.peak_rise, history.mean_loss, history.recovered_at) == (None, None, None)
    code, out, _ = command("verify", directory)
    assert code == 0
    assert "intact" in out
    code, _, _ = command("report", directory, "--out", tmp_path / "report.md")
    assert code == 0
    assert "metrics before step 12 are incomplete" in (tmp_path / "report.md").read_text()


def test_metrics_are_on_the_disk_before_their_checkpoint_is_complete(
    recipe_text, tmp_path, monkeypatch
):
    """Without a power loss, what was synced shows only in the order of the calls."""
    calls = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor):
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_rename(path, target):
        calls.append(f"rename {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    run(recipe_text, tmp_path / "run", every__save=5)
    renames = [i for i, call in enumerate(calls) if call.startswith("rename step-")]
    assert len(renames) == 4
    for first, last in pairwise([0, *renames]):
        assert METRICS_FILE in calls[first:last]


def test_a_checkpoint_of_an_earlier_version_is_checked_as_far_as_possible(
    stopped_run, recipe_text, tmp_path
):
    """It has no record of the lines: only a baseline that is missing in them can be noticed."""
    directory = Path(shutil.copytree(stopped_run, tmp_path / "run"))
    for manifest in directory.rglob("MANIFEST.json"):
        data = json.loads(manifest.read_text())
        del data["metrics"]
        manifest.write_text(json.dumps(data))
    path = directory / METRICS_FILE
    complete = path.read_text()
    path.write_text("".join(complete.splitlines(keepends=True)[1:]))
    with pytest.raises(CheckpointError, match="lacks the downstream loss before step 1"):
        run(recipe_text, directory, resume=True)
    path.write_text(complete)
    run(recipe_text, directory, resume=True)


def test_an_accepted_gap_stays_marked_at_an_earlier_checkpoint(
    trained_run, recipe_text, tmp_path, command
):
    """It was dropped there, and the report showed a mean loss of the lines that were left."""
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    shutil.rmtree(directory / "checkpoints" / "step-00000020")
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "other", until=5)
    earlier = directory / "checkpoints" / "step-00000005"
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-00000005", earlier)
    lines = (directory / METRICS_FILE).read_text().splitlines(keepends=True)
    (directory / METRICS_FILE).write_text("".join(["garbage\n", *lines[2:]]))
    with pytest.raises(Preempted):
        run(recipe_text, directory, resume=True, accept_changes=True, until=12)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text)
    assert command("train", recipe, "--resume-from", "5")[0] == 0
    metrics = read_run_metrics(directory)
    assert [line["step"] for line in metrics.lines if line["kind"] == "gap"] == [5]
    assert read_outcome(directory).losses["upstream"].mean_loss is None


def test_a_complete_run_without_any_metrics_keeps_the_losses_of_its_checkpoint(
    trained_run, recipe_text, tmp_path, command
):
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    before = read_outcome(directory).losses["upstream"]
    (directory / METRICS_FILE).unlink()
    run(recipe_text, directory, resume=True, accept_changes=True)
    history = read_outcome(directory).losses["upstream"]
    assert (history.start, history.final) == (before.start, before.final)
    assert history.forgetting == before.forgetting
    # A checkpoint records losses; the bits per byte were in the metrics only.
    assert history.points == [before.points[-1]._replace(bits_per_byte=None)]
    assert command("report", directory, "--out", tmp_path / "r.md")[0] == 0
    assert "metrics before step 20 are incomplete" in (tmp_path / "r.md").read_text()


def test_each_damaged_file_is_kept(stopped_run, recipe_text, tmp_path):
    directory = Path(shutil.copytree(stopped_run, tmp_path / "run"))
    for damage in ("first\n", "second\n"):
        path = directory / METRICS_FILE
        path.write_text(damage)
        with pytest.raises(Preempted):
            run(recipe_text, directory, resume=True, accept_changes=True, until=13)
        shutil.rmtree(directory / "checkpoints" / "step-00000013")
    kept = [path.read_text() for path in sorted(directory.glob("metrics-damaged-*.jsonl"))]
    assert sorted(kept) == ["first\n", "second\n"]


def test_lines_of_another_run_after_the_last_step_are_refused_in_a_report(
    trained_run, tmp_path, command
):
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    line = json.loads((directory / METRICS_FILE).read_text().splitlines()[-1])
    with (directory / METRICS_FILE).open("a") as file:
        file.write(json.dumps(line | {"step": 25, "tokens": 25600}) + "\n")
    code, _, err = command("report", directory, "--out", tmp_path / "r.md")
    assert code == 3
    assert "has lines of step 25, and the run has 20 steps" in err
