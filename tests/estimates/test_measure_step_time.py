"""What is measured: a stand-in for the recipe that takes the same steps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


MEASURE = """
import sys
from pathlib import Path
from rewarm.errors import RewarmError
from rewarm.estimates.measure_step_time import measure_step_time
from rewarm.model.architecture import Architecture
from rewarm.recipe.recipe import load_recipe
tiny = Architecture(layers=2, hidden=32, heads=2, vocabulary=512, positions=64)
try:
    measure_step_time(load_recipe(Path(sys.argv[1])), tiny, 0)
except RewarmError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_measured_run_too(recipe_file, number):
    """It would train for a million steps."""
    with subprocess.Popen([sys.executable, "-c", MEASURE, str(recipe_file)]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (started := children.read_text().split()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=30) == 75
    with pytest.raises(ProcessLookupError):
        os.kill(int(started[0]), 0)


def test_the_stand_in_differs_only_where_it_does_not_cost(recipe_text, tmp_path):
    recipe = recipe_of(recipe_text, "optimizer.carry=false", "memory=lean", "guard.patience=7")
    text = measure_step_time._stand_in(recipe, TINY, tmp_path, 640)
    stand_in, original = recipe_of(text).document(), recipe.document()
    changed = {name for name, value in stand_in.items() if original[name] != value}
    assert changed == {"tokens", "data", "schedule", "every"}  # the architecture is given
    assert stand_in["data"]["context"] == original["data"]["context"]
    assert stand_in["data"]["validation"] == {
        "random": {
            **{"shards": f"{tmp_path}/tokens", "field": "text", "split": None},
            **{"tokens": 640, "role": None},
        }
    }
    assert recipe_of(measure_step_time._stand_in(recipe, TINY, tmp_path, 0)).data.validation == {}


def test_random_shards_have_at_least_the_tokens(tmp_path):
    measure_step_time._write_random_shards(tmp_path / "tokens", TINY, 2_000)
    index = read_shard_index(tmp_path / "tokens")
    assert index.tokens == 2048
    assert index.tokenizer.vocabulary == 512
