"""`rewarm lineage`: which model was trained from which, as a tree and as JSON."""

import json

from training_runs import run


def test_lineage_is_printed_as_a_tree_and_as_json(recipe_text, tmp_path, command):
    runs = tmp_path / "runs"
    run(recipe_text, runs / "base", tokens=2048)
    run(recipe_text, runs / "arm", model=f"{{base: {runs}/base}}", tokens=1024)
    code, out, _ = command("lineage", runs)
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith(f"{runs}/base  ")
    assert second.startswith(f"└── {runs}/arm  ")
    code, out, _ = command("lineage", runs / "arm", "--json")
    assert code == 0
    ((base, arm),) = json.loads(out)
    assert (base["step"], base["name"]) == (2, f"{runs}/base")
    assert (arm["step"], arm["name"]) == (1, f"{runs}/arm")


def test_a_folder_without_runs_is_refused(tmp_path, command):
    code, out, err = command("lineage", tmp_path)
    assert (code, out) == (3, "")
    assert str(tmp_path) in err
