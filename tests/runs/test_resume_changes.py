"""What a resumed run's recipe may change, and what needs --accept-changes."""

import shutil
import sys
from pathlib import Path

import pytest
from training_runs import recipe_with, run

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.resume_changes import (
    SavedRecipe,
    read_saved_recipe,
    recipe_changes,
    recorded_microbatch,
)
from rewarm.runs.validation_roles import resolve_roles, with_roles


@pytest.fixture
def half(recipe_text, tmp_path):
    """A run that was stopped after 10 of 20 steps."""
    run(recipe_text, tmp_path / "run")
    shutil.rmtree(last_checkpoint(tmp_path / "run"))
    return tmp_path / "run"


def test_changes_of_rates_and_steps_are_listed(recipe_text, half):
    changed = {"schedule__peak_lr": "5e-3", "tokens": 30720}
    with pytest.raises(CheckpointError) as error:
        run(recipe_text, half, resume=True, **changed)
    message = str(error.value)
    assert "tokens: 20480 → 30720" in message
    assert "schedule.peak_lr: 0.01 → 0.005" in message
    # Up over 10 % of 20 steps to 1e-2, down to 1e-3 in a cosine; now 10 % of 30 steps to 5e-3.
    assert "lr at step 11 (the next): 5.5000e-03 → 4.1943e-03" in message
    assert "lr at step 20 (the last before): 1.0000e-03 → 2.2078e-03" in message
    assert "lr at step 30 (the last): none → 1.0000e-03" in message
    assert "--accept-changes" in message
    resumed = run(recipe_text, half, resume=True, accept_changes=True, **changed)
    assert resumed.name == "step-00000030"


def test_accepted_changes_are_printed(recipe_text, half, capsys):
    run(recipe_text, half, resume=True, accept_changes=True, optimizer__weight_decay=0.2)
    assert "changed optimizer.weight_decay: 0.1 → 0.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [
        {"every__log": 1},
        {"every": "{log: 3, evaluate: null, save: null}"},
        {"keep": "{last: 1}"},
        {"on_save_error": "continue"},
        {"guard__patience": 9},
        {"data__workers": 1},
        {"data__verify": "false"},
        {"data__validation": "{}"},
    ],
    ids=str,
)
def test_settings_that_decide_only_what_is_written_may_change(recipe_text, half, changed):
    checkpoint, recipe = last_checkpoint(half), recipe_with(recipe_text, half, **changed)
    saved, state = read_saved_recipe(checkpoint), read_training_state(checkpoint)
    assert recipe_changes(saved, state, recipe) == []


def test_a_saved_recipe_of_a_missing_plugin_is_compared_as_it_was_written(recipe_text, half):
    checkpoint = last_checkpoint(half)
    saved, state = read_saved_recipe(checkpoint), read_training_state(checkpoint)
    recipe = recipe_with(recipe_text, half)
    assert saved.recipe == with_roles(recipe, resolve_roles(recipe, []))
    unusable = SavedRecipe(saved.settings | {"schedule.name": "uninstalled"}, None)
    changes = recipe_changes(unusable, state, recipe_with(recipe_text, half))
    assert changes == ["schedule.name: uninstalled → rewarm"]


@pytest.mark.parametrize(
    ("recorded", "expected"), [(8, 8), (16, 16), (7, None), (0, None), (True, None), ("auto", None)]
)
def test_recorded_microbatch_divides_the_batch(recipe_text, tmp_path, recorded, expected):
    recipe = recipe_with(recipe_text, tmp_path / "run")  # of 16 sequences
    saved = SavedRecipe({"batch.microbatch": recorded}, None)
    assert recorded_microbatch(saved, recipe) == expected


def test_a_project_folder_may_be_moved(recipe_text, corpora, tmp_path, command, monkeypatch):
    """Shards, base and run have other paths then, and the same content."""
    project = tmp_path / "project"
    shutil.copytree(corpora, project / "data")
    (project / "recipes").mkdir()
    text = recipe_text.replace(str(corpora), "../data").replace(f"{tmp_path}/run", "../runs/base")
    (project / "recipes" / "base.yaml").write_text(text)
    architecture = text[text.index("model:") : text.index("data:")]
    arm = text.replace(architecture, "model: {base: ../runs/base}\n").replace(
        "runs/base\nseed", "runs/arm\nseed"
    )
    (project / "recipes" / "arm.yaml").write_text(arm)
    assert command("train", project / "recipes" / "base.yaml", "--set", "tokens=1024")[0] == 0
    assert command("train", project / "recipes" / "arm.yaml")[0] == 0
    moved = tmp_path / "moved"
    project.rename(moved)
    shutil.rmtree(last_checkpoint(moved / "runs" / "arm"))
    monkeypatch.chdir(moved / "runs")
    code, out, err = command("train", "../recipes/arm.yaml", "--resume")
    assert code == 0, err
    assert "resumes after step 10" in err
    assert "changed" not in err
    assert out.strip() == str(last_checkpoint(Path("arm")))
    assert not project.exists()


def test_other_shards_or_another_base_are_changes(recipe_text, half, corpora, tmp_path):
    shards = f"{{downstream: {{shards: {corpora}/third/train}}}}"
    recipe = recipe_with(recipe_text, half, data__train=shards)
    checkpoint = last_checkpoint(half)
    saved, state = read_saved_recipe(checkpoint), read_training_state(checkpoint)
    assert any(
        change.startswith("data.train.downstream.shards: ")
        for change in recipe_changes(saved, state, recipe)
    )
    shutil.copytree(corpora / "downstream" / "train", tmp_path / "copy")
    recipe = recipe_with(recipe_text, half, data__train__downstream__shards=tmp_path / "copy")
    assert recipe_changes(saved, state, recipe) == []


def test_the_relative_paths_of_an_older_checkpoint_are_no_change(
    recipe_text, corpora, tmp_path, monkeypatch
):
    """They are relative to the folder in which the run was started."""
    started_in = tmp_path / "project"
    shutil.copytree(corpora, started_in / "data")
    monkeypatch.chdir(started_in)
    text = recipe_text.replace(str(corpora), "data").replace(f"{tmp_path}/run", "runs/x")
    checkpoint = run(text, Path("runs/x"), tokens=1024).absolute()  # paths as they are
    assert "run: runs/x" in (checkpoint / "recipe.yaml").read_text()
    monkeypatch.chdir("/")
    path = started_in / "recipe.yaml"
    path.write_text(text)
    saved = read_saved_recipe(checkpoint)
    assert saved.settings["run"] == f"{started_in}/runs/x"
    assert saved.settings["data.train.upstream.shards"] == f"{started_in}/data/upstream/train"
    recipe = load_recipe(path, ["tokens=1024"])
    assert recipe_changes(saved, read_training_state(checkpoint), recipe) == []


PLUGIN = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Flat(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["flat-kind"] = "flat-kind"

    def __call__(self, progress):
        return {lr}
"""


def install_version_2(site, lr):
    """Replaces version 1.0 of the plug-in by another one."""
    (site / "kind.py").write_text(PLUGIN.format(lr=lr))
    metadata = site / "kind-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
    del sys.modules["kind"]


def test_a_new_version_of_a_plugin_is_reported_and_may_not_change_the_curve(
    recipe_text, tmp_path, distribution, capsys
):
    distribution("kind", PLUGIN.format(lr="1e-3"), **{"flat-kind": "Flat"})
    settings = {"schedule": "{name: flat-kind}", "every__save": 10}
    run(recipe_text, tmp_path / "a", **settings)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step-00000020")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    install_version_2(tmp_path / "site", "1e-3 + 0")
    run(recipe_text, tmp_path / "a", resume=True, **settings)
    warning = "warning: the schedule is flat-kind of kind 2.0, and was flat-kind of kind 1.0"
    assert warning in capsys.readouterr().err
    install_version_2(tmp_path / "site", "1e-3 if progress < 0.85 else 2e-3")
    with pytest.raises(CheckpointError) as error:
        run(recipe_text, tmp_path / "b", resume=True, **settings)
    assert (
        "flat-kind 1.0 → flat-kind 2.0: with the same settings, lr at 85 % of the run: "
        "1.0000e-03 → 2.0000e-03" in str(error.value)
    )
    run(recipe_text, tmp_path / "b", resume=True, accept_changes=True, **settings)
