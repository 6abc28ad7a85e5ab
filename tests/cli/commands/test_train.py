"""`rewarm train`: its options, and what it prints where."""

import subprocess
import sys

import pytest

from rewarm.checkpoints.find_checkpoint import last_checkpoint


def test_the_last_checkpoint_is_the_only_result(recipe_file, command, tmp_path):
    code, out, errors = command("train", recipe_file, "--set", "tokens=2048")
    assert code == 0
    assert out == f"{last_checkpoint(tmp_path / 'run')}\n"
    assert "steps   1 to 2 of 1,024 tokens; lr " in errors
    assert "memory  " in errors


def test_a_time_limit_has_a_unit(recipe_file, command, tmp_path):
    code, _, errors = command("train", recipe_file, "--time-limit", "1ms")
    assert code == 2
    assert "should be a duration, such as 3h55m" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_time_limit_counts_from_the_start_of_the_process(recipe_file):
    words = [sys.executable, "-m", "rewarm", "train", str(recipe_file), "--time-limit", "1s"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 75, ended.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [("sede=1", "sede: no such setting"), ("batch.microbatch=7", "should divide the 16 sequences")],
)
def test_a_wrong_recipe_is_refused_before_anything_is_created(
    recipe_file, command, tmp_path, override, message
):
    code, out, errors = command("train", recipe_file, "--set", override)
    assert (code, out) == (2, "")
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_sys_exit_in_a_schedule_during_training_is_an_error(command, recipe_file, distribution):
    source = """
import sys
from typing import ClassVar, Literal
from rewarm import Schedule

class Exits(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["exits-later"] = "exits-later"
    def __call__(self, progress):
        return sys.exit(0) if progress == 3 / 7 else 1e-3  # no progress that is sampled before
"""
    distribution("exits_later", source, **{"exits-later": "Exits"})
    settings = ("--set", "schedule={name: exits-later}", "--set", "tokens=7168")
    code, out, err = command("train", recipe_file, *settings)
    assert (code, out) == (2, "")
    assert "schedule 'exits-later' at progress 0.428571 raised SystemExit: 0" in err


def test_resume_from_another_folder_continues_the_same_run(
    recipe_text, command, tmp_path, monkeypatch
):
    """It began a second run there, when paths were relative to the working directory."""
    path = tmp_path / "recipes" / "r.yaml"
    path.parent.mkdir()
    path.write_text(recipe_text.replace(f"{tmp_path}/run", "../runs/x"))
    monkeypatch.chdir(path.parent)
    words = ("--set", "tokens=2048", "--set", "every.evaluate=null")
    assert command("train", "r.yaml", *words)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    saved = tmp_path / "runs" / "x" / "recipe.yaml"
    for recipe in (("../recipes/r.yaml", *words), ("../runs/x/recipe.yaml",), (saved,)):
        code, out, errors = command("train", *recipe, "--resume")
        assert (code, out) == (0, f"{last_checkpoint(tmp_path / 'runs' / 'x')}\n"), errors
        assert "complete: step 2 of 2 is saved" in errors
    assert not list((tmp_path / "elsewhere").iterdir())
