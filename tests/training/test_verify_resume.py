"""A resumed run is compared with an uninterrupted one, file by file."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import run

from rewarm.errors import Preempted
from rewarm.recipe.recipe import load_recipe
from rewarm.training import verify_resume
from rewarm.training.loop import train


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(recipe_file, command):
    code, out, err = command("verify-resume", recipe_file, "--steps", 6)
    assert code == 0, err
    assert "6 steps, uninterrupted and interrupted: weights, optimizer state, data and" in out


@pytest.mark.slow
def test_an_interrupted_run_in_two_processes_ends_as_an_uninterrupted_one(recipe_file, command):
    words = ("--gpus", 2, "--set", "parallel.shard=all")
    code, out, err = command("verify-resume", recipe_file, "--steps", 4, *words)
    assert code == 0, err
    assert "4 steps, uninterrupted and interrupted" in out


def test_a_difference_is_an_error(recipe_file, command, monkeypatch):
    def run_part(words, directory, start, until):
        """Trains in this process, with another seed in each directory."""
        seed = f"seed={len(directory.name)}"
        recipe = load_recipe(Path(words[-1]), [f"run={directory}", seed, "keep={}"])
        with contextlib.suppress(Preempted):
            train(recipe, resume=start == "resume", stop_after_step=until)

    monkeypatch.setattr(verify_resume, "_run_part", run_part)
    code, _, err = command("verify-resume", recipe_file, "--steps", 2)
    assert code == 3
    assert "the resumed run differs" in err


def test_differences_are_described(recipe_text, tmp_path):
    original, other = tmp_path / "original", tmp_path / "other"
    run(recipe_text, original, tokens=3072)
    shutil.copytree(original, other)
    assert verify_resume._differences(original, other) == []
    checkpoint = other / "checkpoints" / "step-00000003"
    weights = load_file(checkpoint / "model.safetensors")
    weights["embed_out.weight"] += torch.tensor(2.0**-10)
    save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "progress.json").write_text("{}")
    lines = (other / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"step": 3', '"step": 4')
    (other / "metrics.jsonl").write_text("\n".join(lines))
    weights_differ, progress_differs, metrics_differ = verify_resume._differences(original, other)
    assert weights_differ.startswith("model.safetensors: 1 of 28 tensors, by up to 0.00097")
    assert progress_differs == "progress.json: the digest of the data, or the state of the guard"
    assert metrics_differ == "metrics: from the train line of step 3 on"
    checkpoint.rename(checkpoint.with_name("step-00000004"))
    assert verify_resume._differences(original, other) == [
        "the last checkpoint: step-00000003 and step-00000004"
    ]
