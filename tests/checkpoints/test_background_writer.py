"""Checkpoints are kept, dropped, and missed without loss."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from training_runs import StopAfter, learnt, metrics, run

from rewarm.checkpoints import manifest, write_checkpoint
from rewarm.checkpoints.background_writer import BackgroundWriter, SaveResult
from rewarm.checkpoints.find_checkpoint import last_checkpoint, list_checkpoints
from rewarm.checkpoints.write_checkpoint import shutil
from rewarm.errors import CheckpointError, Preempted
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.run_directory import RunDirectory
from rewarm.training import loop
from rewarm.training.loop import train


def saves(directory):
    lines = [json.loads(x) for x in (directory / "events.jsonl").read_text().splitlines()]
    return [x for x in lines if x["kind"] == "save"]


def test_what_is_kept(recipe_text, tmp_path):
    named = tmp_path / "run" / "checkpoints" / "before-the-holidays"
    named.mkdir(parents=True)
    run(recipe_text, tmp_path / "run", every__save=2, keep="{last: 2, every: 8}")
    assert list(list_checkpoints(tmp_path / "run")) == [8, 16, 18, 20]
    assert named.is_dir()
    removed = [name for save in saves(tmp_path / "run") for name in save["removed"]]
    assert removed == [f"step-{step:08d}" for step in (2, 4, 6, 10, 12, 14)]


def full(monkeypatch, *steps):
    """Has the disk be full when these steps are saved."""
    usage = shutil.disk_usage

    class Usage:
        free = 1000

    def asked(path):
        return Usage if any(f"{step:08d}" in str(path) for step in steps) else usage(path)

    monkeypatch.setattr(shutil, "disk_usage", asked)


def test_a_full_disk_is_survived(recipe_text, tmp_path, monkeypatch, capsys):
    straight = run(recipe_text, tmp_path / "straight")
    full(monkeypatch, 8, 10)
    settled = run(recipe_text, tmp_path / "run", every__save=2)
    assert list(list_checkpoints(tmp_path / "run")) == [2, 4, 6, 12, 14, 16, 18, 20]
    said = capsys.readouterr().err
    assert "it takes 698,884 B, and 1,000 B are free on this disk" in said
    assert "training goes on (on_save_error: continue)" in said
    assert learnt(settled) == learnt(straight)


def test_a_full_disk_can_stop_the_run(recipe_text, tmp_path, monkeypatch):
    full(monkeypatch, 8)
    with pytest.raises(CheckpointError, match="step-00000008: cannot be written: it takes"):
        run(recipe_text, tmp_path / "run", every__save=2, on_save_error="stop")
    assert list(list_checkpoints(tmp_path / "run"))[-1] >= 6


def test_the_last_checkpoint_has_to_be_written(recipe_text, tmp_path, monkeypatch):
    full(monkeypatch, 20)
    with pytest.raises(CheckpointError, match="step-00000020: cannot be written"):
        run(recipe_text, tmp_path / "run")
    monkeypatch.undo()
    assert run(recipe_text, tmp_path / "run", resume=True).name == "step-00000020"


def test_metrics_wait_for_room(recipe_text, tmp_path):
    with RunDirectory(
        load_text(recipe_text, tmp_path), resume=False, accept_changes=False
    ) as opened:
        opened.begin(0)

        class FullDisk:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, data):
                return self.file.write(data[:5])

        whole, opened._metrics = opened._metrics, FullDisk(opened._metrics)
        opened.log("train", step=1)
        assert "No space left" in opened.catch_up()
        assert metrics(opened.directory) == []  # what is half there is left out, as after a kill
        opened._metrics = whole
        opened.log("train", step=2)
    assert [line["step"] for line in metrics(opened.directory)] == [1, 2]


def test_a_checkpoint_is_not_ahead_of_the_metrics(recipe_text, tmp_path, monkeypatch):
    """A disk that was full when lines were due, and is not when the run is stopped."""
    run(recipe_text, tmp_path / "straight")
    log = RunDirectory.log

    def without_room(*args, **values):
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "catch_up", lambda _: "No space left on device")
            log(*args, **values)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", without_room)
        StopAfter(patch, 7)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped")
    run(recipe_text, tmp_path / "stopped", resume=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_a_run_directory_that_cannot_be_written_says_so(recipe_text, tmp_path):
    in_the_way = tmp_path / "run" / "recipe.yaml.partial"
    in_the_way.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="run: cannot be written: Is a directory; what is"):
        run(recipe_text, tmp_path / "run")
    in_the_way.rmdir()
    run(recipe_text, tmp_path / "run", tokens=1024)


def test_a_log_on_a_full_disk_ends_nothing(recipe_file, tmp_path, command, monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    assert command("train", recipe_file)[0] == 0
    assert command("train", recipe_file)[0] == 3  # it has checkpoints, and nobody can be told


def test_a_checkpoint_that_cannot_be_dropped_ends_nothing(recipe_text, tmp_path, monkeypatch):
    rename = Path.rename

    def anothers(path, target):
        if Path(target).name == "step-00000004.deleting":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", anothers)
    run(recipe_text, tmp_path / "run", every__save=2, keep="{last: 1}")
    assert list(list_checkpoints(tmp_path / "run")) == [4, 20]


def test_a_signal_during_a_save_loses_neither_checkpoint(recipe_text, tmp_path, monkeypatch):
    straight = run(recipe_text, tmp_path / "straight", every__save=4)
    listed = manifest.build_manifest

    def slowly(directory):
        if directory.name == "step-00000004.partial":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # in which the steps go on, and one notices
        return listed(directory)

    with monkeypatch.context() as patch:
        patch.setattr(write_checkpoint, "build_manifest", slowly)
        with pytest.raises(Preempted, match="SIGTERM: stopped after step"):
            run(recipe_text, tmp_path / "run", every__save=4)
    first, last = list_checkpoints(tmp_path / "run").values()
    assert first.name == "step-00000004"
    assert last.name < "step-00000020"
    assert not list((tmp_path / "run").rglob("*.partial"))
    for whole in (first, last):
        manifest.verify_checkpoint(whole)
    resumed = run(recipe_text, tmp_path / "run", every__save=4, resume=True)
    assert learnt(resumed) == learnt(straight)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_an_error_that_nobody_expected_waits_for_the_save(recipe_text, tmp_path, monkeypatch):
    take, listed, taken = loop.take_step, manifest.build_manifest, []

    def out_of_memory(*args, **kwargs):
        taken.append(0)
        if len(taken) == 11:
            raise RuntimeError("out of memory")
        return take(*args, **kwargs)

    def slowly(directory):
        time.sleep(0.3)
        return listed(directory)

    monkeypatch.setattr(loop, "take_step", out_of_memory)
    monkeypatch.setattr(write_checkpoint, "build_manifest", slowly)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(recipe_text, tmp_path / "run")
    assert list(list_checkpoints(tmp_path / "run")) == [10]


STUCK = """
import hashlib
from rewarm.training.preemption import StopRequests
with StopRequests():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, where no handler is called
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_that_is_stuck(number):
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            process.send_signal(signal.SIGUSR1)  # a launcher's echo, the same wish
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            process.send_signal(number)
            assert process.wait(timeout=5) == 128 + number
        finally:
            process.kill()


def load_text(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_what_a_kill_left_is_cleared_away_with_a_note(recipe_text, tmp_path, capsys):
    run(recipe_text, tmp_path / "run", tokens=10240)
    left = tmp_path / "run" / "checkpoints" / "step-00000099.partial"
    left.mkdir()
    run(recipe_text, tmp_path / "run", resume=True, accept_changes=True)
    assert "step-00000099.partial: not whole, cleared away" in capsys.readouterr().err
    assert not left.exists()


def test_a_time_limit_saves_and_leaves(recipe_text, tmp_path):
    recipe = load_text(recipe_text.replace("tokens: 20480", "tokens: 20M"), tmp_path)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_epochs": None})})
    began = time.monotonic()
    with pytest.raises(Preempted, match=r"time limit: stopped after step \d+, saved in") as error:
        train(recipe, deadline=began + 3)
    assert error.value.exit_code == 75
    assert time.monotonic() - began < 3
    assert last_checkpoint(tmp_path / "run")


def test_a_time_limit_leaves_room_for_the_save_under_way_too():
    saver = BackgroundWriter(None, None, None, "", None, prune=list)
    saver._writing = Future()
    saver._writing.set_result(SaveResult(1, seconds=2.0, stall=0.0, error=None, removed=[]))
    saver.end()
    assert saver.to_end == 3.0
    saver._writing = Future()
    assert saver.to_end == 6.0


def test_the_command_takes_a_time_limit(recipe_file):
    words = [sys.executable, "-m", "rewarm", "train", str(recipe_file), "--time-limit"]
    ended = subprocess.run([*words, "1ms"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "should be a duration, such as 3h55m" in ended.stderr
    ended = subprocess.run([*words, "1s"], capture_output=True, text=True, check=False)
    assert ended.returncode == 75, ended.stderr


def test_verify_reads_a_run_whole(recipe_text, tmp_path, command):
    last = run(recipe_text, tmp_path / "run")
    code, out, _ = command("verify", tmp_path / "run")
    assert code == 0
    assert "step-00000010: whole: step 10, 10,240 tokens" in out
    weights = last / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, err = command("verify", tmp_path / "run")
    assert code == 3
    assert "step-00000020/model.safetensors: changed since it was written" in err
    assert "step-00000010: whole" in out


def test_verify_resume_proves_it_or_says_what_differs(recipe_file, command, monkeypatch):
    code, out, err = command("verify-resume", recipe_file, "--steps", 6)
    assert code == 0, err
    assert "6 steps, straight and interrupted: weights, moments, stream and metrics are" in out
    code, _, err = command("verify-resume", recipe_file, "--set", "data.lanes=1", "--set",
                           "data.train.upstream.shards=/nowhere")  # fmt: skip
    assert code == 3
    assert "/nowhere" in err
    from rewarm.training import verify_resume

    broken = verify_resume._STRETCH.replace('f"run={run}"', 'f"run={run}", f"seed={len(run)}"')
    monkeypatch.setattr(verify_resume, "_STRETCH", broken)
    code, _, err = command("verify-resume", recipe_file, "--steps", 2)
    assert code == 3
