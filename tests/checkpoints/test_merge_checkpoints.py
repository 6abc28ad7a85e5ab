"""Merged checkpoints against sums by numpy, the decay that they stand for, and what is refused."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from damage import edit_json, rewrite_manifest
from safetensors.numpy import load_file
from training_runs import run

from rewarm.checkpoints.find_checkpoint import list_checkpoints, locate_base
from rewarm.checkpoints.lineage import model_lineage, read_lineages
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.checkpoints.merge_checkpoints import find_merge_sources, rate_note, write_merged
from rewarm.checkpoints.merge_weights import checkpoint_weights, update_factors
from rewarm.checkpoints.training_state import read_training_state
from rewarm.cli import app
from rewarm.errors import CheckpointError


@pytest.fixture(scope="module")
def plateau(tmp_path_factory, trained_run):
    """A run at a constant rate, with checkpoints at 5, 10, 15 and 20."""
    directory = tmp_path_factory.mktemp("plateau") / "run"
    text = (trained_run / "recipe.yaml").read_text()
    schedule = "{name: rewarm, peak_lr: 1e-2, min_lr: 1e-2, warmup: 0}"
    run(text, directory, every__save=5, schedule=schedule)
    return directory


def by_hand(method, steps, d):
    """The weights from the definitions, and for 1-sqrt from the rate of many small updates."""
    k = len(steps) - 1
    if method == "mean":
        return np.full(k + 1, 1 / (k + 1))
    if method == "ema":
        average = np.eye(k + 1)[0]
        for j in range(1, k + 1):
            average = d * average + (1 - d) * np.eye(k + 1)[j]
        return average
    fine = 200_000
    updates = (np.arange(fine) + 0.5) / fine  # progress in the middle of each small update
    times = (np.array(steps) - steps[0]) / (steps[-1] - steps[0])
    factors = [
        np.mean(1 - np.sqrt(updates[(updates > a) & (updates <= b)])) for a, b in pairwise(times)
    ]
    return -np.diff([1, *factors, 0])


@pytest.mark.parametrize("method", ["mean", "ema", "1-sqrt"])
@pytest.mark.parametrize("steps", [[5, 10, 15, 20], [100, 400, 500], [7, 9]])
def test_weights_are_those_of_the_definition_and_stand_for_a_decay(method, steps):
    weights = checkpoint_weights(method, steps, 0.7)
    assert weights == pytest.approx(by_hand(method, steps, 0.7), abs=1e-5)
    assert sum(weights) == pytest.approx(1, abs=1e-15)
    # Σ c_j θ_j = θ_0 + Σ w_i u_i for any updates.
    updates = np.random.default_rng(0).normal(size=(len(steps), 4))  # θ_0 is the first
    factors = update_factors(weights)
    merged = np.array(weights) @ updates.cumsum(0)
    assert merged == pytest.approx(updates[0] + np.array(factors) @ updates[1:])
    assert all(1 >= a >= b >= 0 for a, b in pairwise(factors))


@pytest.mark.parametrize("method", ["mean", "ema", "1-sqrt"])
def test_merged_weights_are_the_weighted_sum(plateau, tmp_path, method):
    sources = find_merge_sources([f"{plateau}@last:3"])
    write_merged(sources, method, tmp_path / "merged", decay=0.6)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    checkpoints = list_checkpoints(plateau)
    files = [load_file(checkpoints[step] / "model.safetensors") for step in (10, 15, 20)]
    weights = by_hand(method, [10, 15, 20], 0.6)
    for name, tensor in merged.items():
        products = (w * f[name].astype(np.float64) for w, f in zip(weights, files, strict=True))
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, sum(products), rtol=2e-6, atol=1e-6)


def test_a_merge_is_a_checkpoint_with_a_lineage_and_a_base(plateau, tmp_path, recipe_text):
    explicit = [f"{plateau}@{step}" for step in (20, 5)]  # in any order
    merged = write_merged(find_merge_sources(explicit), "mean", tmp_path / "merged")
    assert [(source.step, source.weight) for source in merged] == [(5, 0.5), (20, 0.5)]
    verify_checkpoint(tmp_path / "merged")
    state = read_training_state(tmp_path / "merged")
    assert (state.step, state.losses, state.averaging.checkpoints) == (20, {}, merged)
    ancestor = model_lineage(locate_base(str(tmp_path / "merged")))[-1]
    assert "mean of 2 checkpoints, steps 5 to 20" in ancestor.one_line()
    assert "mean of 2 checkpoints" in (tmp_path / "merged" / "README.md").read_text()
    new = run(recipe_text, tmp_path / "new", model=f"{{base: {tmp_path / 'merged'}}}", tokens=2048)
    assert read_lineages(tmp_path / "new")[0][0].averaging.checkpoints == merged
    settings = {"model": f"{{base: {tmp_path / 'merged'}}}", "optimizer__carry": True}
    with pytest.raises(CheckpointError, match="no optimizer state to carry"):
        run(recipe_text, tmp_path / "carry", **settings)
    with pytest.raises(CheckpointError, match="averaged already"):
        find_merge_sources([str(tmp_path / "merged"), str(new)])


def test_a_merge_is_read_by_transformers(plateau, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_merged(find_merge_sources([f"{plateau}@last:2"]), "mean", tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    theirs = model.state_dict()
    for name, tensor in ours.items():
        same_name = name if name in theirs else name.replace("embed_out", "lm_head")
        assert torch.equal(theirs[same_name], torch.from_numpy(tensor))


def test_what_is_refused(plateau, tmp_path, trained_run):
    def message(*references):
        with pytest.raises(CheckpointError) as raised:
            find_merge_sources([str(reference) for reference in references])
        return str(raised.value)

    assert "the run has 4 complete checkpoints" in message(f"{plateau}@last:9")
    assert "a merge takes two or more" in message(f"{plateau}@last:1")
    assert "name each checkpoint once" in message(f"{plateau}@5", f"{plateau}@5")
    assert "of different runs" in message(f"{plateau}@5", f"{trained_run}@10")
    assert "no checkpoint at step 7" in message(f"{plateau}@5", f"{plateau}@7")
    copied = shutil.copytree(plateau, tmp_path / "run")
    config = copied / "checkpoints" / "step-00000020" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"rotary_pct": 0.5}))
    assert "changed since it was written" in message(f"{copied}@last:2")
    weights = copied / "checkpoints" / "step-00000015" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "model.safetensors: changed since" in message(f"{copied}@10", f"{copied}@15")
    sources = find_merge_sources([f"{plateau}@last:2"])
    with pytest.raises(CheckpointError, match="already exists; name another directory"):
        write_merged(sources, "mean", tmp_path)
    inside = plateau / "checkpoints" / "step-00000099"
    with pytest.raises(CheckpointError, match="is in the folder of a run's own checkpoints"):
        write_merged(sources, "mean", inside)
    assert not inside.exists()


def test_other_models_and_tokenizers_are_refused(plateau, tmp_path):
    for name, change, problem in (
        ("config.json", {"layer_norm_eps": 1e-3}, "of different architectures"),
        ("tokenizer.json", {"version": "2.0"}, "of different tokenizers"),
    ):
        copied = shutil.copytree(plateau, tmp_path / name)
        checkpoint = copied / "checkpoints" / "step-00000020"
        edit_json(name, **change)(checkpoint, None)
        rewrite_manifest(checkpoint)
        with pytest.raises(CheckpointError, match=problem):
            find_merge_sources([f"{copied}@last:2"])


def test_a_changing_rate_is_reported(plateau, trained_run):
    assert rate_note(find_merge_sources([f"{plateau}@last:3"])) == []
    [line] = rate_note(find_merge_sources([f"{trained_run}@last:2"]))
    assert "at the newest; merging stands for a decay where the rate was constant" in line


def test_the_command(plateau, tmp_path, capsys):
    copied = shutil.copytree(plateau, tmp_path / "run")
    assert app.run(["merge", f"{copied}@last:4", "--as", "1-sqrt"]) == 0
    *table, path = capsys.readouterr().out.splitlines()
    assert path == str(copied / "merged" / "1-sqrt-of-4-step-00000005-to-00000020")
    weights = [float(line.split()[1]) for line in table[1:]]
    assert weights == pytest.approx(by_hand("1-sqrt", [5, 10, 15, 20], None), abs=1e-4)
    assert app.run(["verify", path]) == 0
    assert app.run(["merge", f"{copied}@last:4", "--as", "median"]) == 2
