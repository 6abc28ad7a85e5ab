import json

import pytest
from training_runs import run

from rewarm.checkpoints.find_checkpoint import find_local_model, last_checkpoint, list_checkpoints
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError
from rewarm.model.published_checkpoints import published_training
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

# Flat at 1e-2, then down over the last fifth.
PLATEAU = "{name: no-warmup, peak_lr: 1e-2, min_lr: 1e-2, decay: linear}"


def test_a_chain_of_runs_is_known_and_drawn(recipe_text, tmp_path, command):
    runs = tmp_path / "runs"
    run(recipe_text, runs / "base")
    run(recipe_text, runs / "arm", model=f"{{base: {runs}/base@10}}", tokens=2048)
    run(recipe_text, runs / "leaf", model=f"{{base: {runs}/arm}}", tokens=2048)
    done = read_training_state(last_checkpoint(runs / "leaf"))
    assert [one.name for one in done.lineage] == [f"{runs}/base@10", f"{runs}/arm"]
    assert [one.tokens for one in done.lineage] == [10240, 2048]
    assert done.lineage[0].lrs[1] == 1e-2
    assert done.lineage[0].losses.keys() == {"upstream", "downstream"}
    code, out, _ = command("lineage", runs)
    assert code == 0
    lines = out.splitlines()
    assert [line.lstrip("│├└─ ").split("  ")[0] for line in lines] == [
        f"{runs}/base@10", f"{runs}/arm", f"{runs}/leaf", f"{runs}/base",
    ]  # fmt: skip
    assert "10.24k tokens  lr 0.005 → 0.01 →" in lines[0]
    code, out, _ = command("lineage", f"{runs}/leaf", "--json")
    ((first, *_, last),) = json.loads(out)
    assert (first["step"], last["name"]) == (10, f"{runs}/leaf")


def test_places_in_a_run(recipe_text, tmp_path):
    base = tmp_path / "base"
    run(recipe_text, base, every__save=4)
    assert find_local_model(f"{base}@last").name == "step-00000020"
    assert find_local_model(f"{base}@8").name == "step-00000008"
    with pytest.raises(CheckpointError, match="no checkpoint at step 9; there are 4, 8, 12"):
        find_local_model(f"{base}@9")
    with pytest.raises(CheckpointError, match="or before step 2, where the decay begins"):
        find_local_model(f"{base}@before-decay")
    with pytest.raises(CheckpointError, match="no such place; wanted a step, `last` or"):
        find_local_model(f"{base}@yesterday")
    assert find_local_model(f"{tmp_path}/nowhere@last") is None


def test_the_end_of_a_plateau_is_saved_and_can_be_named(recipe_text, tmp_path, distribution):
    source = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Flat(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["flat-then-down"] = "flat-then-down"

    def __call__(self, progress):
        return 1e-3 if progress <= 0.65 else 1e-3 * (1 - progress) / 0.35
"""
    distribution("flat", source, **{"flat-then-down": "Flat"})
    base = tmp_path / "base"
    settings = {"schedule": "{name: flat-then-down}", "every__save": "null", "keep": "{last: 1}"}
    run(recipe_text, base, **settings)
    assert list(list_checkpoints(base)) == [13, 20]
    assert find_local_model(f"{base}@before-decay").name == "step-00000013"


def test_a_rate_that_rises_and_stays_never_falls(thousand_steps):
    document = YamlDocument(thousand_steps, "r.yaml")
    document.set("schedule={name: rewarm, peak_lr: 3e-4, decay: none}")
    stays = validate_recipe(document)
    assert stays.before_decay == stays.steps
    assert not stays.branches
    document.set("schedule={name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 100 steps}")
    assert validate_recipe(document).before_decay == 100


@pytest.mark.parametrize(
    ("name", "revision", "tokens", "lr"),
    [
        # ../shared/paper.md, section 1: 143,000 steps, 3e-5 from step 115,139 on.
        ("EleutherAI/pythia-410m", None, 299_892_736_000, 3e-5),
        ("EleutherAI/pythia-410m-deduped", "step115139", 115_139 * 2_097_152, 3e-5),
        ("EleutherAI/pythia-410m", "step10000", 10_000 * 2_097_152, 2.9735e-4),
        ("EleutherAI/pythia-70m", "step27000", 27_000 * 2_097_152, 2.7695e-4 / 0.3),
    ],
)
def test_how_far_a_published_checkpoint_was_trained(name, revision, tokens, lr):
    known = published_training(name, revision)
    assert known.tokens == tokens
    assert known.lrs[-1] == pytest.approx(lr, rel=1e-4)


def test_what_is_not_published_is_not_known():
    assert published_training("EleutherAI/pythia-410m", "main-branch") is None
    assert published_training("someone/pythia-410m", "step10000") is None
