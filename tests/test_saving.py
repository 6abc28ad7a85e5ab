"""Checkpoints are kept, dropped, and missed without loss."""

import json
import subprocess
import sys
import time

import pytest
from test_resume import learnt, metrics, run

from rewarm import bases, checkpoint
from rewarm.errors import CheckpointError, Preempted
from rewarm.recipe import load
from rewarm.train import train


def saves(directory):
    lines = [json.loads(x) for x in (directory / "events.jsonl").read_text().splitlines()]
    return [x for x in lines if x["kind"] == "save"]


def test_what_is_kept(recipe_text, tmp_path):
    named = tmp_path / "run" / "checkpoints" / "before-the-holidays"
    named.mkdir(parents=True)
    run(recipe_text, tmp_path / "run", every__save=2, keep="{last: 2, every: 8}")
    assert list(bases.checkpoints(tmp_path / "run")) == [8, 16, 18, 20]
    assert named.is_dir()
    removed = [name for save in saves(tmp_path / "run") for name in save["removed"]]
    assert removed == [f"step-{step:08d}" for step in (2, 4, 6, 10, 12, 14)]


def full(monkeypatch, *steps):
    """Has the disk be full when these steps are saved."""
    usage = checkpoint.shutil.disk_usage

    class Usage:
        free = 1000

    def asked(path):
        return Usage if any(f"{step:08d}" in str(path) for step in steps) else usage(path)

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", asked)


def test_a_full_disk_is_survived(recipe_text, tmp_path, monkeypatch, capsys):
    straight = run(recipe_text, tmp_path / "straight")
    full(monkeypatch, 8, 10)
    settled = run(recipe_text, tmp_path / "run", every__save=2)
    assert list(bases.checkpoints(tmp_path / "run")) == [2, 4, 6, 12, 14, 16, 18, 20]
    said = capsys.readouterr().err
    assert "it takes 698,884 B, and 1,000 B are free on this disk" in said
    assert "training goes on (on_save_error: continue)" in said
    assert learnt(settled) == learnt(straight)


def test_a_full_disk_can_stop_the_run(recipe_text, tmp_path, monkeypatch):
    full(monkeypatch, 8)
    with pytest.raises(CheckpointError, match="step-00000008: cannot be written: it takes"):
        run(recipe_text, tmp_path / "run", every__save=2, on_save_error="stop")
    assert list(bases.checkpoints(tmp_path / "run"))[-1] >= 6


def test_the_last_checkpoint_has_to_be_written(recipe_text, tmp_path, monkeypatch):
    full(monkeypatch, 20)
    with pytest.raises(CheckpointError, match="step-00000020: cannot be written"):
        run(recipe_text, tmp_path / "run")
    monkeypatch.undo()
    assert run(recipe_text, tmp_path / "run", resume=True).name == "step-00000020"


def test_metrics_wait_for_room(recipe_text, tmp_path):
    from rewarm.run import Run

    with Run(load_text(recipe_text, tmp_path), resume=False, accept_changes=False) as opened:
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
        assert (opened.directory / "metrics.jsonl").read_bytes() == b""
        opened._metrics = whole
        opened.log("train", step=2)
    assert [line["step"] for line in metrics(opened.directory)] == [1, 2]


def load_text(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load(path)


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
    assert bases.last_checkpoint(tmp_path / "run")


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
    from rewarm import verify_resume

    broken = verify_resume._STRETCH.replace('f"run={run}"', 'f"run={run}", f"seed={len(run)}"')
    monkeypatch.setattr(verify_resume, "_STRETCH", broken)
    code, _, err = command("verify-resume", recipe_file, "--steps", 2)
    assert code == 3
