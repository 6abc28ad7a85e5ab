"""What is recorded beside the steps: metrics, evaluations, checkpoints, and why a run ended."""

import json
import math
import shutil

import pytest
from safetensors.torch import load_file
from shard_folders import flip_bit
from training_runs import events, metrics, recipe_with, run, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.data.corpus import Corpus
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError, Diverged, Preempted
from rewarm.runs.metrics_file import read_metrics
from rewarm.study.run_outcomes import read_outcome
from rewarm.training import run_evaluations
from rewarm.training.validation_loss import SetLoss


def test_training_metrics(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    training = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in training] == [3, 6, 9, 12, 15, 18, 20]
    recipe = recipe_with(recipe_text, tmp_path / "run")
    for line in training:
        assert line["tokens"] == 1024 * line["step"]
        assert line["lr"] == recipe.lr(line["step"])
        assert line["tokens_per_second"] > 0
        assert line["grad_norm"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["downstream/tokens"] + line["upstream/tokens"] == line["tokens"]
        assert abs(line["upstream/tokens"] - 0.3 * line["tokens"]) < 64  # less than one block


def test_evaluation_metrics(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    evaluations = metrics(tmp_path / "run", "evaluate")
    assert [line["step"] for line in evaluations] == [0, 5, 10, 15, 20]
    assert [event["step"] for event in events(tmp_path / "run", "evaluate")] == [0, 5, 10, 15, 20]
    first, last = evaluations[0], evaluations[-1]
    for name in ("upstream", "downstream"):
        assert first[f"{name}/forgetting"] == 0
        assert last[f"{name}/forgetting"] == last[f"{name}/loss"] - first[f"{name}/loss"]
        bits, bits_before = (line[f"{name}/bits_per_byte"] for line in (last, first))
        assert bits / bits_before == pytest.approx(last[f"{name}/loss"] / first[f"{name}/loss"])
        assert last[f"{name}/perplexity"] == pytest.approx(math.exp(last[f"{name}/loss"]))
    assert last["downstream/loss"] < first["downstream/loss"] - 1  # it learns
    assert first["upstream/loss"] == pytest.approx(math.log(512), rel=0.1)


def test_evaluations_have_a_schedule_of_their_own(recipe_text, tmp_path):
    schedule = "{log: 20, evaluate: [{until: 20%, every: 2}, {every: 10}]}"
    run(recipe_text, tmp_path / "run", every=schedule)
    assert [line["step"] for line in metrics(tmp_path / "run", "evaluate")] == [0, 2, 4, 10, 20]


def test_a_set_that_a_resume_adds_has_its_baseline_there(recipe_text, tmp_path, corpora):
    run(recipe_text, tmp_path / "run", tokens=2048)
    third = {"data__validation__third": f"{{shards: {corpora}/third/val}}"}
    run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, tokens=3072, **third)
    [baseline] = metrics(tmp_path / "run", "baseline")
    assert baseline["step"] == 2
    assert "upstream/loss" not in baseline
    last = metrics(tmp_path / "run", "evaluate")[-1]
    assert last["third/forgetting"] == last["third/loss"] - baseline["third/loss"] != 0
    assert "upstream/forgetting" in last
    history = read_outcome(tmp_path / "run").losses["third"]
    assert history.baseline == (baseline["third/loss"], 2)


def test_changed_validation_data_starts_a_new_baseline(recipe_text, tmp_path, corpora, command):
    """The other text is measured where the run is resumed; its loss is not forgetting."""
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "run", until=7)
    other = {"data__validation__upstream__shards": f"{corpora}/third/val"}
    checkpoint = run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **other)
    [baseline] = metrics(tmp_path / "run", "baseline")
    assert (baseline["step"], set(baseline)) == (
        7,
        {
            *("kind", "step", "tokens", "upstream/loss", "upstream/perplexity"),
            *("upstream/bits_per_byte", "upstream/forgetting"),
        },
    )  # fmt: skip
    state = read_training_state(checkpoint)
    assert state.baseline["upstream"] == baseline["upstream/loss"]
    assert state.baseline_steps == {"upstream": 7}
    losses = read_outcome(tmp_path / "run").losses
    upstream, downstream = losses["upstream"], losses["downstream"]
    assert [point.step for point in upstream.points] == [7, 10, 15, 20]
    assert upstream.forgetting == upstream.final - baseline["upstream/loss"]
    assert [point.step for point in downstream.points] == [0, 5, 10, 15, 20]
    command("report", tmp_path / "run", "--out", tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "the upstream data is new since step 7; its changes count from there" in text
    run(recipe_text, tmp_path / "run", resume=True, **other)  # accepted once, and saved


def test_a_loss_that_is_not_finite_leaves_a_checkpoint_that_can_be_read(
    recipe_text, tmp_path, monkeypatch
):
    losses = {"downstream": SetLoss(math.nan, 1), "upstream": SetLoss(2.0, 1)}
    monkeypatch.setattr(run_evaluations, "measure_losses", lambda *_, **__: losses)
    checkpoint = run(recipe_text, tmp_path / "run", tokens=2048)
    assert read_training_state(checkpoint).losses == {"upstream": 2.0}


def test_divergence_names_the_step_and_the_last_good_checkpoint(recipe_text, tmp_path):
    settings = {
        "schedule": "{name: constant, lr: 1e38}", "every__save": 1, "optimizer__clip": "null",
    }  # fmt: skip
    with pytest.raises(Diverged, match=r"not finite: loss") as error:
        run(recipe_text, tmp_path / "run", **settings)
    assert error.value.exit_code == 4
    message = str(error.value)
    assert "steps 2 to 4 were not finite" in message
    assert "downstream: " in message
    assert last_checkpoint(tmp_path / "run").name == "step-00000001"
    assert "the last checkpoint before it is" in message
    assert "step-00000001; try" in message
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        state = load_file(path / "optimizer.safetensors")
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_shard_that_is_damaged_later_stops_the_run_saved(recipe_text, tmp_path, corpora):
    shutil.copytree(corpora / "upstream", tmp_path / "upstream")
    folder = tmp_path / "upstream" / "train"
    settings = {"data__train__upstream__shards": folder, "data__lanes": 1}
    straight = run(recipe_text, tmp_path / "straight", **settings)
    upstream = Corpus("upstream", ShardSource(str(folder)), context=64, seed=5, lanes=1)
    shard = folder / upstream.shard_of_block(80)  # of the 96 that the run reads
    content = shard.read_bytes()
    flip_bit(shard)
    with pytest.raises(DataError, match=shard.name) as error:
        run(recipe_text, tmp_path / "run", **settings)
    assert "everything up to step" in str(error.value)
    assert read_training_state(last_checkpoint(tmp_path / "run")).step > 1
    shard.write_bytes(content)
    resumed = run(recipe_text, tmp_path / "run", resume=True, **settings)
    assert trained_files(resumed) == trained_files(straight)


def test_saves_are_events(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    saves = events(tmp_path / "run", "save")
    assert [(save["step"], save["error"]) for save in saves] == [(10, None), (20, None)]
    (start,) = events(tmp_path / "run", "start")
    assert start["environment"]["device"].startswith("cpu, ")
    assert start["environment"]["attention"] == "flash"
    assert json.loads(json.dumps(start["rates"])).keys() == {"1", "2", "3", "20"}
