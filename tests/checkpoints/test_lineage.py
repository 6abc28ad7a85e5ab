"""Lineage: the chain of models that a checkpoint was trained from."""

import json

from training_runs import run

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.lineage import lineage_forest
from rewarm.checkpoints.training_state import Ancestor, read_training_state


def test_the_lineage_of_three_runs_is_stored_and_printed(recipe_text, tmp_path, command):
    runs = tmp_path / "runs"
    run(recipe_text, runs / "base")
    run(recipe_text, runs / "arm", model=f"{{base: {runs}/base@10}}", tokens=2048)
    run(recipe_text, runs / "leaf", model=f"{{base: {runs}/arm}}", tokens=2048)
    state = read_training_state(last_checkpoint(runs / "leaf"))
    assert [ancestor.name for ancestor in state.lineage] == [f"{runs}/base@10", f"{runs}/arm"]
    assert [ancestor.tokens for ancestor in state.lineage] == [10240, 2048]
    assert state.lineage[0].lrs[1] == 1e-2
    assert state.lineage[0].losses.keys() == {"upstream", "downstream"}
    code, out, _ = command("lineage", runs)
    assert code == 0
    lines = out.splitlines()
    assert [line.lstrip("│├└─ ").split("  ")[0] for line in lines] == [
        f"{runs}/base@10", f"{runs}/arm", f"{runs}/leaf", f"{runs}/base",
    ]  # fmt: skip
    assert "10.24k tokens  lr 0.005 → peak 0.01 →" in lines[0]
    code, out, _ = command("lineage", f"{runs}/leaf", "--json")
    ((first, *_, last),) = json.loads(out)
    assert (first["step"], last["name"]) == (10, f"{runs}/leaf")


def test_models_with_the_same_weights_are_one_node():
    def ancestor(name, sha256=None):
        return Ancestor(name=name, directory="/", sha256=sha256)

    base, renamed = ancestor("base", "1"), ancestor("copy of base", "1")
    (root,) = lineage_forest([[base, ancestor("a", "2")], [renamed, ancestor("b", "3")]])
    assert root.model == base
    assert [child.model.name for child in root.children] == ["a", "b"]
