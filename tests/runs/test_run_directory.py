"""The run directory: metrics survive full disks and kills; leftovers are removed and reported."""

import fcntl
import json
import math
from pathlib import Path

import pytest
from training_runs import metrics, run, signal_in_step

from rewarm.errors import CheckpointError, Preempted
from rewarm.runs.run_directory import RunDirectory


def test_one_process_at_a_time_opens_it(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        assert directory.checkpoints.is_dir()
        with (tmp_path / "run" / "lock").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(CheckpointError, match="in use by another process"):
            RunDirectory(tmp_path / "run")
    with RunDirectory(tmp_path / "run"):
        pass


def test_another_last_checkpoint_than_expected_is_refused(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").touch()
    with pytest.raises(CheckpointError, match="another process saved step-00000010 while this one"):
        RunDirectory(tmp_path / "run")
    with RunDirectory(tmp_path / "run", checkpoint):  # the refused one holds no lock
        pass


def test_metrics_after_the_resumed_step_are_removed(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000010"
    with RunDirectory(tmp_path / "run") as directory:
        directory.prepare("", 0)
        for step in (5, 10, 15):
            directory.log_metrics("train", step=step, loss=math.nan if step == 5 else 2.5)
    checkpoint.mkdir()
    (checkpoint / "MANIFEST.json").touch()
    with RunDirectory(tmp_path / "run", checkpoint) as directory:
        directory.prepare("run: x\n", 10)
        directory.log_event("start", step=10)
    assert metrics(tmp_path / "run") == [
        {"kind": "train", "step": 5, "loss": None}, {"kind": "train", "step": 10, "loss": 2.5},
    ]  # fmt: skip
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "run: x\n"
    event = json.loads((tmp_path / "run" / "events.jsonl").read_text())
    assert event.items() >= {"kind": "start", "step": 10}.items()


def test_metrics_wait_until_the_disk_has_space(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        directory.prepare("", 0)

        class FullDisk:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, data):
                return self.file.write(data[:5])

        file, directory._metrics = directory._metrics, FullDisk(directory._metrics)
        directory.log_metrics("train", step=1)
        assert "No space left" in directory.flush_metrics()
        assert metrics(directory.path) == []  # a partial line is ignored, as after a kill
        directory._metrics = file
        directory.log_metrics("train", step=2)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_a_checkpoint_is_not_ahead_of_the_metrics(recipe_text, tmp_path, monkeypatch):
    """The disk is full when lines are due, and no longer when the run is stopped."""
    run(recipe_text, tmp_path / "straight")
    log_metrics = RunDirectory.log_metrics

    def log_on_a_full_disk(*args, **values):
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "flush_metrics", lambda _: "No space left on device")
            log_metrics(*args, **values)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log_metrics", log_on_a_full_disk)
        signal_in_step(patch, 7)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped")
    run(recipe_text, tmp_path / "stopped", resume=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_a_run_directory_that_cannot_be_written_is_reported(recipe_text, tmp_path, monkeypatch):
    rename = Path.rename

    def refuse_recipe(path, target):
        if Path(target).name == "recipe.yaml":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_recipe)
        with pytest.raises(CheckpointError, match="run: cannot be written: Permission denied; wh"):
            run(recipe_text, tmp_path / "run")
    run(recipe_text, tmp_path / "run", tokens=1024)


def test_partly_written_checkpoints_are_removed_and_reported(recipe_text, tmp_path, capsys):
    run(recipe_text, tmp_path / "run", tokens=10240)
    partial = tmp_path / "run" / "checkpoints" / "step-00000099.partial"
    partial.mkdir()
    run(recipe_text, tmp_path / "run", resume=True, accept_changes=True)
    assert "step-00000099.partial: incomplete, removed" in capsys.readouterr().err
    assert not partial.exists()
