import pytest

from recipes import recipe_of, recipe_problems
from rewarm.errors import RecipeError
from rewarm.recipe.recipe import load_recipe


def test_trackers_are_off_by_default(thousand_steps):
    assert recipe_of(thousand_steps).trackers == {}


def test_a_tracker_without_settings_has_its_defaults(thousand_steps):
    recipe = recipe_of(thousand_steps, "trackers={tensorboard: }")
    assert recipe.document()["trackers"] == {"tensorboard": {}}


def test_a_saved_recipe_may_name_a_tracker_that_is_not_installed(thousand_steps):
    assert recipe_of(thousand_steps, "trackers={theirs: {x: 1}}").trackers == {"theirs": {"x": 1}}


def test_settings_that_are_no_mapping_are_refused(thousand_steps):
    (problem,) = recipe_problems(thousand_steps, "trackers=[wandb]")
    assert "trackers: should be settings (`key: value` lines), got ['wandb']" in problem


def test_problems_have_a_location(thousand_steps, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"{thousand_steps}trackers:\n  tensorbord: {{}}\n  wandb:\n    projct: x\n    mode: 5\n"
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    first, second, third = raised.value.problems
    assert f"{path}:12:3: trackers.tensorbord: no tracker named 'tensorbord'; did you " in first
    assert f"{path}:14:5: trackers.wandb.projct: no such setting; did you mean 'proj" in second
    assert f"{path}:15:5: trackers.wandb.mode: should be 'offline', 'online' or 'disa" in third
