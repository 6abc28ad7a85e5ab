"""A training step against one large batch, and the loop around it."""

import pytest
import torch
from tiny_models import random_tokens, take_tiny_step, tiny_model
from training_runs import metrics, run

from rewarm.errors import DataError
from rewarm.recipe.fields import OptimizerSettings
from rewarm.training.optimizer import build_adamw


def test_accumulation_is_one_large_batch():
    tokens = random_tokens(8)
    parameters, losses = [], []
    for microbatch in (2, 8):
        model = tiny_model()
        losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]).item())
        # The large eps keeps rounding in tiny gradients from mattering.
        optimizer = build_adamw(model, OptimizerSettings(eps=1e-3))
        result = take_tiny_step(model, optimizer, tokens, microbatch=microbatch)
        losses.append(result.loss.item())
        parameters.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*parameters, atol=1e-6)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_last_step_is_always_logged_evaluated_and_saved(recipe_text, tmp_path):
    every = {"every__save": "null", "every__evaluate": "null", "every__log": 7}
    run(recipe_text, tmp_path / "run", **every)
    assert [(line["kind"], line["step"]) for line in metrics(tmp_path / "run")] == [
        ("evaluate", 0), ("train", 7), ("train", 14), ("train", 20), ("evaluate", 20),
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000020"]


def test_resume_of_a_complete_run_changes_nothing(recipe_text, tmp_path, capsys):
    first = run(recipe_text, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(recipe_text, tmp_path / "run", resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert "complete: step 20 of 20 is saved" in capsys.readouterr().err


def test_resume_without_a_checkpoint_is_a_new_run(recipe_text, tmp_path):
    assert run(recipe_text, tmp_path / "run", resume=True, tokens=1024).name == "step-00000001"


def test_a_refused_run_creates_nothing(recipe_text, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        run(recipe_text, tmp_path / "run", data__train__upstream__shards="nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_five_percent_of_replay_is_five_percent_of_the_tokens(recipe_text, tmp_path):
    run(
        recipe_text,
        tmp_path / "run",
        tokens=64000,
        batch="{tokens: 64, microbatch: 1}",
        data__max_epochs="null",
        data__train__downstream__weight="95%",
        data__train__upstream__weight="5%",
        every="{log: 100, evaluate: null, save: null}",
    )
    lines = metrics(tmp_path / "run", "train")
    # 1,000 steps of one block of 64 tokens: by hand, 50 blocks are replay, 5 in every 100 steps.
    assert [line["upstream/tokens"] for line in lines] == [64 * 5 * n for n in range(1, 11)]
    assert [line["downstream/tokens"] for line in lines] == [64 * 95 * n for n in range(1, 11)]


def test_separate_documents_train_and_are_measured(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "separate", data__documents="separate")
    run(recipe_text, tmp_path / "across")
    separate, across = (
        metrics(tmp_path / name, "evaluate")[-1]["upstream/loss"] for name in ("separate", "across")
    )
    assert separate < 4
    assert separate != across
