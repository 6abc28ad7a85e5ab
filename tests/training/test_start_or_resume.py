"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import fcntl
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from rewarm_process import RewarmProcess
from safetensors.torch import load_file
from training_runs import metrics, run, signal_in_step, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.data.corpus import Corpus
from rewarm.data.shard_source import ShardSource
from rewarm.errors import CheckpointError, DataError, Preempted


def test_twenty_steps_are_ten_and_ten(recipe_text, tmp_path, trained_run):
    straight = last_checkpoint(trained_run)
    half = tmp_path / "half"
    run(recipe_text, half)
    shutil.rmtree(last_checkpoint(half))
    assert last_checkpoint(half).name == "step-00000010"
    resumed = run(recipe_text, half, resume=True)
    assert resumed.name == straight.name == "step-00000020"
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(half) == metrics(trained_run)


@pytest.mark.parametrize("step", [1, 7, 13])
def test_a_run_stopped_by_a_signal_ends_as_if_it_had_not_been(
    recipe_text, tmp_path, monkeypatch, trained_run, step
):
    straight = last_checkpoint(trained_run)
    with monkeypatch.context() as patch:
        signal_in_step(patch, step)
        with pytest.raises(Preempted, match=f"SIGTERM: stopped after step {step}, saved in"):
            run(recipe_text, tmp_path / "stopped")
    assert last_checkpoint(tmp_path / "stopped").name == f"step-{step:08d}"
    resumed = run(recipe_text, tmp_path / "stopped", resume=True)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "stopped") == metrics(trained_run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_command_saves_and_exits_with_the_code_of_the_signal(
    recipe_text, tmp_path, number, code
):
    path = tmp_path / "recipe.yaml"
    endless = recipe_text.replace("tokens: 20480\n", "tokens: 10M\n")
    path.write_text(endless.replace("lanes: 2\n", "lanes: 2\n  max_epochs: null\n"))
    process = RewarmProcess(tmp_path, "train", path)
    assert process.wait_for("\nstep 3/"), "ended before step 3"
    process.signal(number)
    assert process.wait() == code
    assert "Traceback" not in process.errors
    assert "--resume" in process.errors
    last = last_checkpoint(tmp_path / "run")
    assert json.loads((last / "progress.json").read_text())["step"] >= 3


@pytest.mark.slow
def test_five_kills_at_any_moment_lose_nothing(recipe_text, tmp_path):
    straight = run(recipe_text, tmp_path / "straight", every__save=2)
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
    assert trained_files(last_checkpoint(directory)) == trained_files(straight)
    assert metrics(directory) == metrics(tmp_path / "straight")
    assert not list(directory.rglob("*.partial"))


def test_resume_of_a_complete_run_changes_nothing(recipe_text, tmp_path):
    first = run(recipe_text, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(recipe_text, tmp_path / "run", resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_run_with_checkpoints_is_not_begun_again(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    with pytest.raises(CheckpointError, match="already has checkpoints, up to step-00000020"):
        run(recipe_text, tmp_path / "run")


def test_a_run_in_use_is_refused(recipe_text, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="in use by another process"):
            run(recipe_text, tmp_path / "run")


def test_a_changed_recipe_is_told_and_needs_a_word(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run", every__save=10)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000020")
    changed = {"schedule__peak_lr": "5e-3", "tokens": 30720}
    with pytest.raises(CheckpointError) as error:
        run(recipe_text, tmp_path / "run", resume=True, **changed)
    assert "tokens: 20480 → 30720" in str(error.value)
    assert "schedule.peak_lr: 0.01 → 0.005" in str(error.value)
    # Up over 10 % of 20 steps to 1e-2, down to 1e-3 in a cosine; now 10 % of 30 steps to 5e-3.
    assert "lr at step 11 (the next): 5.5000e-03 → 4.1943e-03" in str(error.value)
    assert "lr at step 20 (the last before): 1.0000e-03 → 2.2078e-03" in str(error.value)
    assert "lr at step 30 (the last): none → 1.0000e-03" in str(error.value)
    assert "--accept-changes" in str(error.value)
    resumed = run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **changed)
    assert resumed.name == "step-00000030"


FLAT = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Flat(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["flat-{module}"] = "flat-{module}"

    def __call__(self, progress):
        return {lr}
"""


def another_version(site, module, lr):
    """Installs version 2.0 of a plug-in in the place of 1.0."""
    (site / f"{module}.py").write_text(FLAT.format(module=module, lr=lr))
    metadata = site / f"{module}-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
    del sys.modules[module]


def test_a_new_version_of_a_plug_in_is_told_and_may_not_change_the_curve(
    recipe_text, tmp_path, distribution, capsys
):
    distribution("kind", FLAT.format(module="kind", lr="1e-3"), **{"flat-kind": "Flat"})
    settings = {"schedule": "{name: flat-kind}", "every__save": 10}
    for name in ("a", "b"):
        run(recipe_text, tmp_path / name, **settings)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000020")
    another_version(tmp_path / "site", "kind", "1e-3 + 0")
    run(recipe_text, tmp_path / "a", resume=True, **settings)
    said = "warning: the schedule is flat-kind of kind 2.0, and was flat-kind of kind 1.0"
    assert said in capsys.readouterr().err
    another_version(tmp_path / "site", "kind", "1e-3 if progress < 0.85 else 2e-3")
    with pytest.raises(CheckpointError) as error:
        run(recipe_text, tmp_path / "b", resume=True, **settings)
    assert (
        "flat-kind 1.0 → flat-kind 2.0: with the same settings, lr at 85 % of the run: "
        "1.0000e-03 → 2.0000e-03" in str(error.value)
    )
    run(recipe_text, tmp_path / "b", resume=True, accept_changes=True, **settings)


def test_what_decides_only_what_is_written_may_change(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000020"
    assert run(recipe_text, tmp_path / "run", resume=True, every__log=1) == path


def test_a_run_does_not_go_on_with_other_shards(recipe_text, tmp_path, corpora):
    shutil.copytree(corpora / "upstream", tmp_path / "upstream")
    where = {"data__train__upstream__shards": tmp_path / "upstream" / "train"}
    run(recipe_text, tmp_path / "run", **where)
    index = tmp_path / "upstream" / "train" / "index.json"
    facts = json.loads(index.read_text())
    del facts["shards"][-1]
    index.write_text(json.dumps(facts))
    max((tmp_path / "upstream" / "train").glob("*.tar")).unlink()
    with pytest.raises(CheckpointError, match="the shards of upstream are not those"):
        run(recipe_text, tmp_path / "run", resume=True, **where)
    longer = {"tokens": 21504, **where}
    on = run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, **longer)
    assert on.name == "step-00000021"


def test_a_shard_that_goes_bad_stops_the_run_with_everything_saved(recipe_text, tmp_path, corpora):
    shutil.copytree(corpora / "upstream", tmp_path / "upstream")
    folder = tmp_path / "upstream" / "train"
    where = {"data__train__upstream__shards": folder, "data__lanes": 1}
    straight = run(recipe_text, tmp_path / "straight", **where)
    upstream = Corpus("upstream", ShardSource(str(folder)), context=64, seed=5, lanes=1)
    bad = folder / upstream.shard_of_block(80)  # of the 96 that the run reads
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-600])
    with pytest.raises(DataError, match=bad.name) as error:
        run(recipe_text, tmp_path / "run", **where)
    assert "everything up to step" in str(error.value)
    assert read_training_state(last_checkpoint(tmp_path / "run")).step > 1
    bad.write_bytes(whole)
    assert trained_files(run(recipe_text, tmp_path / "run", resume=True, **where)) == trained_files(
        straight
    )


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda data: data[:-10]),
        ("optimizer.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("progress.json", lambda data: data.replace(b'"step": 20', b'"step": 19')),
        ("recipe.yaml", lambda data: data + b"\n"),
        ("MANIFEST.json", lambda _: b"{}"),
        ("MANIFEST.json", lambda data: data.replace(b"optimizer.safetensors", b"../../outside")),
    ],
)
def test_a_damaged_checkpoint_is_refused(recipe_text, tmp_path, name, damage):
    path = run(recipe_text, tmp_path / "run") / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="step-00000020"):
        run(recipe_text, tmp_path / "run", resume=True, tokens=30720, accept_changes=True)


def test_a_half_written_checkpoint_is_never_used(recipe_text, tmp_path):
    last = run(recipe_text, tmp_path / "run")
    (last / "MANIFEST.json").unlink()  # what a crash between two fsyncs could leave at worst
    assert last_checkpoint(tmp_path / "run").name == "step-00000010"


def test_carried_moments_are_the_bases_own(recipe_text, tmp_path):
    base = run(recipe_text, tmp_path / "base")
    carry = {
        "model": f"{{base: {base}}}",
        "optimizer__carry": "true",
        "schedule": "{name: constant, lr: 0.0}",
    }
    carried = run(recipe_text, tmp_path / "carried", tokens=1024, **carry)
    before = load_file(base / "optimizer.safetensors")
    after = load_file(carried / "optimizer.safetensors")
    assert before["updates"].item() == 20
    assert after["updates"].item() == 21
    name = "exp_avg/gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    # One step with β1 = 0.9: what is left of the old moment dominates; a fresh one would be 0.1 g.
    assert (
        torch.nn.functional.cosine_similarity(before[name].flatten(), after[name].flatten(), dim=0)
        > 0.8
    )
    # At rate 0 not a bit of the weights moves.
    assert (base / "model.safetensors").read_bytes() == (carried / "model.safetensors").read_bytes()


def test_a_base_without_moments_cannot_carry_them(recipe_text, tmp_path):
    base = run(recipe_text, tmp_path / "base")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((base / name).read_bytes())
    with pytest.raises(CheckpointError, match="has no Adam moments to carry"):
        run(recipe_text, tmp_path / "run", model=f"{{base: {bare}}}", optimizer__carry="true")
    assert Path(tmp_path / "run" / "checkpoints").is_dir()
    assert last_checkpoint(tmp_path / "run") is None
