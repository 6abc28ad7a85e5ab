"""Finding a model by its name: a directory, a run, a checkpoint reference or a hub name."""

import json
import shutil

import pytest
from training_runs import run

from recipes import recipe_of
from rewarm.checkpoints import find_checkpoint
from rewarm.checkpoints.find_checkpoint import (
    find_local_model,
    ignored_settings,
    incomplete_checkpoints,
    last_checkpoint,
    list_checkpoints,
    locate_base,
    read_architecture,
    read_last_checkpoint,
)
from rewarm.errors import CheckpointError
from rewarm.model.architecture import PRESETS


def test_checkpoint_references(recipe_text, tmp_path):
    base = tmp_path / "base"
    run(recipe_text, base, every__save=4)
    assert find_local_model(f"{base}").name == "step-00000020"
    assert find_local_model(f"{base}@last").name == "step-00000020"
    assert find_local_model(f"{base}@8").name == "step-00000008"
    assert find_local_model(f"{base}@step-00000008").name == "step-00000008"
    with pytest.raises(
        CheckpointError, match="no checkpoint at step 9; the run has checkpoints at steps 4, 8, 12"
    ):
        find_local_model(f"{base}@9")
    with pytest.raises(CheckpointError, match="or before step 2, where the decay begins"):
        find_local_model(f"{base}@before-decay")
    with pytest.raises(CheckpointError, match="not a checkpoint reference; expected a step, such"):
        find_local_model(f"{base}@yesterday")
    assert find_local_model(f"{tmp_path}/nowhere@last") is None


def test_before_decay_is_saved_and_kept(recipe_text, tmp_path, distribution):
    source = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Plateau(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["plateau"] = "plateau"

    def __call__(self, progress):
        return 1e-3 if progress <= 0.65 else 1e-3 * (1 - progress) / 0.35
"""
    distribution("plateau", source, **{"plateau": "Plateau"})
    base = tmp_path / "base"
    settings = {"schedule": "{name: plateau}", "every__save": "null", "keep": "{last: 1}"}
    run(recipe_text, base, **settings)
    assert list(list_checkpoints(base)) == [13, 20]
    assert find_local_model(f"{base}@before-decay").name == "step-00000013"


def test_a_learning_rate_that_never_falls_has_no_step_before_decay(thousand_steps):
    rises = recipe_of(thousand_steps, "schedule={name: rewarm, peak_lr: 3e-4, decay: none}")
    assert rises.step_before_decay == rises.steps
    assert not rises.has_plateau_before_decay
    falls = "schedule={name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 100 steps}"
    assert recipe_of(thousand_steps, falls).step_before_decay == 100


def test_incomplete_checkpoints_are_refused_and_not_listed(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for name in ("step-00000002.partial", "step-00000004.deleting", "best"):
        (checkpoints / name).mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    for name in ("step-00000002", "step-00000004"):
        (checkpoints / name).mkdir()
    (checkpoints / "step-00000002" / "MANIFEST.json").touch()
    assert list(list_checkpoints(tmp_path)) == [2]
    assert list(incomplete_checkpoints(tmp_path)) == [4]
    assert find_local_model(f"{tmp_path}@2").name == "step-00000002"
    refusal = r"step-00000004: not a complete checkpoint \(no MANIFEST.json\): .* such as .*@2"
    for name in (f"{tmp_path}", f"{tmp_path}@last"):
        with pytest.raises(CheckpointError, match=refusal):
            find_local_model(name)
    with pytest.raises(CheckpointError, match="no checkpoint at step 4"):
        find_local_model(f"{tmp_path}@4")


def test_a_checkpoint_that_is_deleted_meanwhile_is_replaced_by_the_newest(tmp_path):
    for step in (2, 4):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "MANIFEST.json").touch()
    read = []

    def delete_and_read(checkpoint):
        read.append(checkpoint.name)
        if len(read) == 1:
            shutil.rmtree(checkpoint)
        return (checkpoint / "MANIFEST.json").read_text()

    assert read_last_checkpoint(tmp_path, delete_and_read) == ""
    assert read == ["step-00000004", "step-00000002"]
    with pytest.raises(FileNotFoundError):  # what is missing in a checkpoint that stays
        read_last_checkpoint(tmp_path, lambda checkpoint: (checkpoint / "other").read_text())


def test_the_kind_of_a_base(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["pythia-14m"].to_hugging_face()))
    base = locate_base(str(tmp_path))
    assert (base.kind, base.architecture.layers) == ("local model", 6)
    (tmp_path / "progress.json").touch()
    with pytest.raises(CheckpointError, match=r"progress.json, but no MANIFEST.json"):
        locate_base(str(tmp_path))
    (tmp_path / "MANIFEST.json").touch()
    assert locate_base(str(tmp_path)).kind == "rewarm checkpoint"
    with pytest.raises(CheckpointError, match=r"only a hub name can have a revision \(step1\)"):
        locate_base(str(tmp_path), "step1")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../model", "-x/model", "owner/"])
def test_a_name_that_is_not_a_hub_name_is_not_asked_the_hub_for(name):
    with pytest.raises(CheckpointError, match=r"no such folder \(/.*\); correct the path"):
        locate_base(name)


def test_a_folder_that_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="an empty folder; expected a model directory"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        read_architecture(tmp_path)


def test_what_rewarm_leaves_out_of_a_config_is_reported(tmp_path):
    config = PRESETS["pythia-14m"].to_hugging_face()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ignored_settings(tmp_path) == []
    config |= {"attention_dropout": 0.1, "hidden_dropout": 0, "classifier_dropout": 0.1}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_x.X"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    dropout, auto_map = ignored_settings(tmp_path)
    assert dropout.startswith("attention_dropout 0.1 of its config.json is not applied")
    assert auto_map.startswith("auto_map of its config.json is not used (AutoModelForCausalLM)")
    assert read_architecture(tmp_path).parameters == PRESETS["pythia-14m"].parameters


@pytest.mark.parametrize("quantization", [{"quant_method": "bitsandbytes"}, {"bits": 4}, "gptq"])
def test_a_quantized_model_is_refused(tmp_path, quantization):
    config = PRESETS["pythia-14m"].to_hugging_face() | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: .* weights are quantized \(.*plain"):
        read_architecture(tmp_path)


def test_a_listing_that_misses_the_only_checkpoint_is_repeated(recipe_text, tmp_path, monkeypatch):
    """It was saved while the folder was listed, and the one before it was deleted."""
    checkpoint = run(recipe_text, tmp_path / "run")
    step_paths, listings = find_checkpoint._step_paths, []

    def miss_it_once(directory):
        listings.append(directory)
        return step_paths(directory) if len(listings) > 1 else []

    monkeypatch.setattr(find_checkpoint, "_step_paths", miss_it_once)
    assert last_checkpoint(tmp_path / "run") == checkpoint
