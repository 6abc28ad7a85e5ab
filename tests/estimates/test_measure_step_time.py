"""What is measured: a stand-in for the recipe that takes the same steps."""

import pytest

from recipes import recipe_of
from rewarm.data.shard_format import read_shard_index
from rewarm.errors import RewarmError
from rewarm.estimates import measure_step_time
from rewarm.model.architecture import Architecture
from rewarm.recipe.recipe import load_recipe

TINY = Architecture(layers=2, hidden=32, heads=2, vocabulary=512, positions=64)


def test_a_recipe_that_fails_ends_with_its_message_and_exit_code(recipe_file, monkeypatch):
    monkeypatch.setattr(measure_step_time, "MIN_SECONDS", 0.0)
    short = TINY.model_copy(update={"positions": 32})
    with pytest.raises(RewarmError, match=r"ended with exit code 2: .*context: should be") as error:
        measure_step_time.measure_step_time(load_recipe(recipe_file), short, 0)
    assert error.value.exit_code == 2


def test_the_stand_in_differs_only_where_it_does_not_cost(recipe_text, tmp_path):
    recipe = recipe_of(recipe_text, "optimizer.carry=false", "memory=lean", "guard.patience=7")
    text = measure_step_time._stand_in(recipe, TINY, tmp_path, 640)
    stand_in, original = recipe_of(text).document(), recipe.document()
    changed = {name for name, value in stand_in.items() if original[name] != value}
    assert changed == {"tokens", "data", "schedule", "every"}  # the architecture is given
    assert stand_in["data"]["context"] == original["data"]["context"]
    assert stand_in["data"]["validation"] == {
        "random": {"shards": f"{tmp_path}/tokens", "tokens": 640}
    }
    assert recipe_of(measure_step_time._stand_in(recipe, TINY, tmp_path, 0)).data.validation == {}


def test_random_shards_have_at_least_the_tokens(tmp_path):
    measure_step_time._write_random_shards(tmp_path / "tokens", TINY, 2_000)
    index = read_shard_index(tmp_path / "tokens")
    assert index.tokens == 2048
    assert index.tokenizer.vocabulary == 512
