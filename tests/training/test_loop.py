"""A training step against one large batch, and the loop around it."""

import os
import shutil

import pytest
import torch
from hanging_reads import hanging_at
from rewarm_process import RewarmProcess
from tiny_models import random_tokens, take_tiny_step, tiny_model
from training_runs import act_after_step, metrics, run, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint, list_checkpoints
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.data.corpus import Corpus
from rewarm.errors import DataError, ScheduleError
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.training_settings import OptimizerSettings
from rewarm.training import loop
from rewarm.training.optimizer import build_adamw
from rewarm.training.progress_line import ProgressLine


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


def fail_at_call(monkeypatch, owner, name, number, error, *, after=False):
    """Makes the `number`-th call of a function fail, before or after it has done its work."""
    function, calls = getattr(owner, name), []

    def fail_or_call(*args, **kwargs):
        calls.append(name)
        if len(calls) == number and not after:
            raise error
        result = function(*args, **kwargs)
        if len(calls) == number:
            raise error
        return result

    monkeypatch.setattr(owner, name, fail_or_call)


@pytest.mark.parametrize(
    ("owner", "name", "number", "error", "step"),
    [
        (loop, "clip_gradient", 13, MemoryError("no memory"), 12),
        (torch.autograd, "backward", 26, RuntimeError("in C++"), 12),  # microbatch 2 of step 13
        (loop, "take_step", 13, KeyboardInterrupt(), 12),
        (loop, "take_step", 13, SystemExit(0), 12),
        (ProgressLine, "show_step", 13, RuntimeError("a broken progress line"), 13),
        (ProgressLine, "show_training", 4, OSError(5, "a broken log"), 12),
    ],
)
def test_any_error_saves_what_was_reached(
    recipe_text, tmp_path, monkeypatch, capsys, owner, name, number, error, step
):
    with monkeypatch.context() as patch:
        fail_at_call(patch, owner, name, number, error)
        with pytest.raises(type(error)) as raised:
            run(recipe_text, tmp_path / "run")
    assert raised.value is error
    saved = last_checkpoint(tmp_path / "run")
    assert saved.name == f"step-{step:08d}"
    expected = f"{type(error).__name__} after step {step}: everything up to step {step} is saved in"
    assert f"{expected} {saved}" in capsys.readouterr().err
    straight = run(recipe_text, tmp_path / "straight")
    assert trained_files(run(recipe_text, tmp_path / "run", resume=True)) == trained_files(straight)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


@pytest.mark.parametrize("after", [False, True])
def test_a_step_that_may_be_half_applied_is_not_saved(
    recipe_text, tmp_path, monkeypatch, capsys, after
):
    fail_at_call(monkeypatch, loop, "apply_update", 13, RuntimeError("a device"), after=after)
    with pytest.raises(RuntimeError, match="a device"):
        run(recipe_text, tmp_path / "run")
    assert list(list_checkpoints(tmp_path / "run")) == [10]
    message = "step 13 is not saved, since its update may be incomplete; everything up to step 10"
    assert message in capsys.readouterr().err


def test_a_step_at_a_wrong_rate_is_not_saved(recipe_text, tmp_path, monkeypatch):
    apply_update = loop.apply_update
    monkeypatch.setattr(
        loop, "apply_update", lambda optimizer, lr, skip: apply_update(optimizer, 2 * lr, skip)
    )
    with pytest.raises(ScheduleError, match=r"at a rate of 0\.01, .*nothing is saved"):
        run(recipe_text, tmp_path / "run", every__save=1)
    assert not list_checkpoints(tmp_path / "run")


def test_an_error_of_the_schedule_keeps_its_exit_code(recipe_text, tmp_path, monkeypatch):
    rate_at = Recipe.lr

    def fail(recipe, step):
        if step == 13:
            raise ScheduleError("no rate")
        return rate_at(recipe, step)

    # Not before: the preview of the schedule asks for the rates of all steps when the run starts.
    act_after_step(monkeypatch, 12, lambda: monkeypatch.setattr(Recipe, "lr", fail))
    with pytest.raises(ScheduleError, match="no rate; everything up to step 12 is saved") as error:
        run(recipe_text, tmp_path / "run")
    assert error.value.exit_code == 2


def test_an_error_that_prevents_saving_is_named_too(recipe_text, tmp_path, monkeypatch, capsys):
    fail_at_call(monkeypatch, loop, "take_step", 13, RuntimeError("the device is lost"))
    save = loop.RunRecorder.save

    def fail_after_step_10(recorder, state, **kwargs):
        if state.step > 10:
            raise RuntimeError("it cannot be read")
        return save(recorder, state, **kwargs)

    monkeypatch.setattr(loop.RunRecorder, "save", fail_after_step_10)
    with pytest.raises(RuntimeError, match="the device is lost"):
        run(recipe_text, tmp_path / "run")
    expected = "step 12 could not be saved: it cannot be read; everything up to step 10 is saved"
    assert expected in capsys.readouterr().err


def test_a_run_ends_without_the_data_that_was_read_ahead(recipe_text, tmp_path, monkeypatch):
    with hanging_at(monkeypatch, Corpus, "block", 16 * 20 + 1):
        assert run(recipe_text, tmp_path / "run").name == "step-00000020"


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_shard_truncated_in_place_while_it_is_read_ends_the_run_saved(
    corpora, recipe_text, tmp_path, part
):
    """Reading it through a memory map would kill the process (SIGBUS, exit code 135)."""
    copy = shutil.copytree(corpora, tmp_path / "corpora")
    endless = recipe_text.replace(str(corpora), str(copy)).replace(
        "tokens: 20480\n", "tokens: 10M\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(endless.replace("lanes: 2\n", "lanes: 2\n  max_epochs: null\n"))
    process = RewarmProcess(tmp_path, "train", path, "--set", "every={log: 1, evaluate: 1}")
    assert process.wait_for("\nstep 3/"), "ended before step 3"
    for shard in (copy / "downstream" / part).glob("*.tar"):
        os.truncate(shard, 1024)
    assert process.wait() == 3
    assert f"{copy}/downstream/{part}/0" in process.errors
    assert "everything up to step" in process.errors
    assert "Traceback" not in process.errors
    verify_checkpoint(last_checkpoint(tmp_path / "run"))
