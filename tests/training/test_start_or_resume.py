"""The three ways to start, and a resumed run that is, bit for bit, the uninterrupted one."""

import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from rewarm_process import RewarmProcess
from safetensors.torch import load_file
from training_runs import events, metrics, recipe_with, run, signal_in_step, trained_files
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError, Preempted
from rewarm.runs.resolve_run import resolve
from rewarm.training.loop import train
from rewarm.training.start_or_resume import start_or_resume


def assert_same_run(directory, expected):
    checkpoint, expected_checkpoint = last_checkpoint(directory), last_checkpoint(expected)
    assert checkpoint.name == expected_checkpoint.name
    assert trained_files(checkpoint) == trained_files(expected_checkpoint)
    assert metrics(directory) == metrics(expected)


def test_twenty_steps_are_ten_and_ten(recipe_text, tmp_path, trained_run):
    half = tmp_path / "half"
    shutil.copytree(trained_run, half)
    shutil.rmtree(last_checkpoint(half))
    assert last_checkpoint(half).name == "step-00000010"
    run(recipe_text, half, resume=True)
    assert_same_run(half, trained_run)


@pytest.mark.parametrize("step", [1, 7, 13])
def test_a_run_stopped_by_a_signal_is_resumed_exactly(
    recipe_text, tmp_path, trained_run, monkeypatch, step
):
    with monkeypatch.context() as patch:
        signal_in_step(patch, step)
        with pytest.raises(Preempted, match=f"SIGTERM: stopped after step {step}, saved in"):
            run(recipe_text, tmp_path / "stopped")
    assert last_checkpoint(tmp_path / "stopped").name == f"step-{step:08d}"
    run(recipe_text, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "stopped", trained_run)


@pytest.mark.slow
def test_five_kills_at_any_moment_lose_nothing(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "straight", every__save=2)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    directory = tmp_path / "killed"
    command = ("train", path, "--resume", "--set", f"run={directory}", "--set", "every.save=2")
    for delay in (0.0, 0.15, 0.3, 0.45, 0.6):
        process = RewarmProcess(tmp_path, *command)
        process.wait_for("\nstep")
        time.sleep(delay)
        process.signal(signal.SIGKILL)
        process.wait()
    assert RewarmProcess(tmp_path, *command).wait() == 0
    assert_same_run(directory, tmp_path / "straight")
    assert not list(directory.rglob("*.partial"))


def test_a_run_from_a_base_starts_with_its_loss_at_step_0(recipe_text, tmp_path, trained_run):
    settings = {"model": f"{{base: {trained_run}}}", "tokens": 4096, "schedule__start_lr": "1e-3"}
    checkpoint = run(recipe_text, tmp_path / "run", **settings)
    first, base_last = metrics(tmp_path / "run")[0], metrics(trained_run)[-1]
    assert (first["step"], first["tokens"]) == (0, 0)
    for name in ("upstream/loss", "downstream/loss"):
        assert first[name] == base_last[name]
    state = read_training_state(checkpoint)
    assert (state.step, state.tokens) == (4, 4096)


def test_fresh_draws_new_weights_in_the_shape_of_the_base(recipe_text, tmp_path, trained_run):
    """With the same seed, data and shape, it is the same run."""
    run(recipe_text, tmp_path / "fresh", model=f"{{base: {trained_run}, fresh: true}}")
    assert metrics(tmp_path / "fresh") == metrics(trained_run)


def test_any_neox_model_of_hugging_face_is_a_base(recipe_text, tmp_path):
    torch.manual_seed(0)
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=640, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, use_parallel_residual=False,
            bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(tmp_path / "base")  # fmt: skip
    checkpoint = run(recipe_text, tmp_path / "run", model=f"{{base: {tmp_path}/base}}", tokens=2048)
    assert GPTNeoXForCausalLM.from_pretrained(checkpoint).config.vocab_size == 640


def test_carried_optimizer_state_is_the_bases_own(recipe_text, tmp_path, trained_run):
    base = last_checkpoint(trained_run)
    settings = {
        "model": f"{{base: {base}}}",
        "optimizer__carry": "true",
        "schedule": "{name: constant, lr: 1e-30}",
    }
    carried = run(recipe_text, tmp_path / "carried", tokens=1024, **settings)
    before = load_file(base / "optimizer.safetensors")
    after = load_file(carried / "optimizer.safetensors")
    assert before["updates"].item() == 20
    assert after["updates"].item() == 21
    name = "exp_avg/gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    # One step with β1 = 0.9: what is left of the old moment dominates; a fresh one would be 0.1 g.
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(before[name].flatten(), after[name].flatten(), dim=0) > 0.8
    # At a rate of 1e-30 not a bit of the weights changes.
    assert (base / "model.safetensors").read_bytes() == (carried / "model.safetensors").read_bytes()


def test_what_is_printed_before_the_first_step(recipe_text, tmp_path, trained_run):
    recipe = recipe_with(
        recipe_text, tmp_path / "run", model=f"{{base: {trained_run}}}", tokens=2048
    )
    run_parts = start_or_resume(resolve(recipe, thorough=True))
    assert run_parts.start_record.tensors == "28 of 28 tensors matched"
    assert run_parts.separator_id is None
    headings = [line[:8].strip() for line in run_parts.start_messages]
    assert headings == ["start", "", "", "", "", "model", "device", "memory", "steps"]
    assert run_parts.start_messages[5:7] == [
        "model   58,240 parameters, 512 embedding rows, 135 of them padding",
        "device  cpu, fp32, flash attention; no GPU was found, so the run is on the CPU",
    ]


def test_a_run_whose_last_checkpoint_is_damaged_is_resumed_from_another(
    recipe_text, recipe_file, tmp_path, trained_run, command
):
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    last = directory / "checkpoints" / "step-00000020"
    (last / "model.safetensors").write_bytes(b"damaged")
    code, _, err = command("train", recipe_file, "--resume")
    assert code == 3
    assert "step-00000020/model.safetensors: changed since it was written" in err
    assert "--resume-from STEP" in err
    code, out, err = command("train", recipe_file, "--resume-from", "step-00000010")
    assert code == 0
    assert out.strip().endswith("step-00000020")
    assert "step-00000020: renamed to step-00000020.set-aside" in err
    assert_same_run(directory, trained_run)
    set_aside = directory / "checkpoints" / "step-00000020.set-aside"
    assert (set_aside / "model.safetensors").read_bytes() == b"damaged"


def test_an_incomplete_last_checkpoint_is_not_in_the_way(recipe_text, tmp_path, trained_run):
    """Saved again at the same step, where the rename failed for ever."""
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (directory / "checkpoints" / "step-00000020" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="step-00000020: not a complete checkpoint"):
        run(recipe_text, directory, resume=True)
    recipe = recipe_with(recipe_text, directory)
    train(recipe, resume_from="10")
    assert_same_run(directory, trained_run)


def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_again(
    recipe_text, tmp_path, trained_run, capsys
):
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    shutil.rmtree(directory / "checkpoints")
    (directory / "events.jsonl").unlink()
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:3]))  # up to step 5 of 10
    run(recipe_text, directory, resume=True)
    assert "metrics.jsonl: 3 lines after step 0 removed; those steps are taken again" in (
        capsys.readouterr().err
    )
    assert_same_run(directory, trained_run)


def test_another_number_of_cpu_threads_is_reported_on_resume(recipe_text, tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(recipe_text, tmp_path / "run", tokens=2048)
        run(recipe_text, tmp_path / "run", tokens=3072, resume=True, accept_changes=True)
        assert "CPU threads" not in capsys.readouterr().err
        torch.set_num_threads(1)
        last = run(recipe_text, tmp_path / "run", tokens=4096, resume=True, accept_changes=True)
    finally:
        torch.set_num_threads(threads)
    warning = "warning: CPU threads: 1 now, 2 before: .* for the same bits set OMP_NUM_THREADS=2"
    assert re.search(warning, capsys.readouterr().err)
    assert read_training_state(last).cpu_threads == 1
    starts = events(tmp_path / "run", "start")
    assert [start["cpu_threads"] for start in starts] == [2, 2, 1]
