"""Saving in the background: full disks, signals and errors lose no checkpoint or metrics."""

import os
import shutil
import signal
import time
from concurrent.futures import Future

import pytest
from training_runs import metrics, run, trained_files

from rewarm.checkpoints import write_checkpoint
from rewarm.checkpoints.background_writer import BackgroundWriter, SaveResult
from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.errors import CheckpointError, Preempted
from rewarm.training import loop
from rewarm.training.processes import ALONE


def fill_disk_at_steps(monkeypatch, *steps):
    """Makes the disk look full when the checkpoints of these steps are saved."""
    disk_usage = shutil.disk_usage

    class FullDisk:
        free = 1000

    def usage_of(path):
        is_full = any(f"{step:08d}" in str(path) for step in steps)
        return FullDisk if is_full else disk_usage(path)

    monkeypatch.setattr(shutil, "disk_usage", usage_of)


def call_before_manifest(monkeypatch, action):
    """Calls `action(folder)` in the writing thread before a checkpoint is complete."""
    build_manifest = write_checkpoint.build_manifest

    def act_and_build(folder, *arguments):
        action(folder)
        return build_manifest(folder, *arguments)

    monkeypatch.setattr(write_checkpoint, "build_manifest", act_and_build)


def test_a_full_disk_does_not_end_the_run(recipe_text, tmp_path, monkeypatch, capsys):
    straight = run(recipe_text, tmp_path / "straight")
    fill_disk_at_steps(monkeypatch, 8, 10)
    last = run(recipe_text, tmp_path / "run", every__save=2)
    assert list(list_checkpoints(tmp_path / "run")) == [2, 4, 6, 12, 14, 16, 18, 20]
    err = capsys.readouterr().err
    assert "the checkpoint needs 698,884 B, and the disk has only 1,000 B free" in err
    assert "(on_save_error: continue)" in err
    assert trained_files(last) == trained_files(straight)


def test_on_save_error_stop_ends_the_run(recipe_text, tmp_path, monkeypatch):
    fill_disk_at_steps(monkeypatch, 8)
    with pytest.raises(
        CheckpointError, match="step-00000008: cannot be written: the checkpoint needs"
    ):
        run(recipe_text, tmp_path / "run", every__save=2, on_save_error="stop")
    assert list(list_checkpoints(tmp_path / "run"))[-1] >= 6


def test_a_failed_last_save_ends_the_run(recipe_text, tmp_path, monkeypatch):
    fill_disk_at_steps(monkeypatch, 20)
    with pytest.raises(CheckpointError, match="step-00000020: cannot be written"):
        run(recipe_text, tmp_path / "run")
    monkeypatch.undo()
    assert run(recipe_text, tmp_path / "run", resume=True).name == "step-00000020"


def test_a_signal_during_a_save_completes_both_checkpoints(recipe_text, tmp_path, monkeypatch):
    straight = run(recipe_text, tmp_path / "straight", every__save=4)

    def signal_and_wait(folder):
        if folder.name == "step-00000004.partial":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # the next steps are taken meanwhile, and the signal is noticed

    with monkeypatch.context() as patch:
        call_before_manifest(patch, signal_and_wait)
        with pytest.raises(Preempted, match="SIGTERM: stopped after step"):
            run(recipe_text, tmp_path / "run", every__save=4)
    first, last = list_checkpoints(tmp_path / "run").values()
    assert first.name == "step-00000004"
    assert last.name < "step-00000020"
    assert not list((tmp_path / "run").rglob("*.partial"))
    for checkpoint in (first, last):
        verify_checkpoint(checkpoint)
    resumed = run(recipe_text, tmp_path / "run", every__save=4, resume=True)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_an_unexpected_error_waits_for_the_pending_save(recipe_text, tmp_path, monkeypatch):
    take_step, calls = loop.take_step, []

    def run_out_of_memory_at_step_11(*args, **kwargs):
        calls.append(0)
        if len(calls) == 11:
            raise RuntimeError("out of memory")
        return take_step(*args, **kwargs)

    monkeypatch.setattr(loop, "take_step", run_out_of_memory_at_step_11)
    call_before_manifest(monkeypatch, lambda _: time.sleep(0.3))
    with pytest.raises(RuntimeError, match="out of memory"):
        run(recipe_text, tmp_path / "run")
    assert list(list_checkpoints(tmp_path / "run")) == [10]


def test_seconds_to_finish_includes_the_pending_save():
    writer = BackgroundWriter(
        None, None, None, "", None, sync_metrics=None, prune=list, processes=ALONE
    )
    writer._pending = Future()
    writer._pending.set_result(SaveResult(1, seconds=2.0, stall=0.0, error=None, removed=[]))
    writer.wait_for_save()
    assert writer.seconds_to_finish == 3.0
    writer._pending = Future()
    assert writer.seconds_to_finish == 6.0
