"""The limit on open files, with real limits and descriptors."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT
from training_runs import run

from rewarm import open_files
from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.errors import DataError
from rewarm.training import loop


@pytest.fixture
def limits():
    """The soft and the hard limit, which the test may change the soft one of."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_to_what_is_needed(limits):
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    open_files.check_limit({"corpus a": 50})
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256
    open_files.check_limit({"corpus a": 300, "validation set b": 100})
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (560, limits[1])


def test_a_hard_limit_that_is_too_low_is_refused_with_the_arithmetic(limits):
    if limits[1] == resource.RLIM_INFINITY:
        pytest.skip("there is no hard limit")
    with pytest.raises(DataError) as error:
        open_files.check_limit({"corpus a": limits[1], "validation set b": 1})
    assert f"is {limits[1]:,}, and the run needs {limits[1] + 161:,}: " in str(error.value)
    assert f"shards of {limits[1]:,} (corpus a) + 1 (validation set b) + 160 others" in str(
        error.value
    )


@pytest.mark.parametrize("command", ["check", "train"])
def test_check_and_train_refuse_a_hard_limit_that_is_too_low(recipe_file, command):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120)); "
        "from rewarm.cli.app import main; main()"
    )
    words = [sys.executable, "-c", code, command, str(recipe_file)]
    result = subprocess.run(
        words, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.returncode == 3
    assert "the limit on open files is 120, and the run needs 1" in result.stderr


def test_a_run_is_saved_when_descriptors_run_out(recipe_text, tmp_path, monkeypatch, limits):
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 300, limits[1]))
    take_step, used, steps = loop.take_step, [], 0

    def take_and_use_up_descriptors(*args, **kwargs):
        nonlocal steps
        steps += 1
        with contextlib.suppress(OSError):
            while steps == 4:
                used.append(os.open(os.devnull, os.O_RDONLY))
        return take_step(*args, **kwargs)

    monkeypatch.setattr(loop, "take_step", take_and_use_up_descriptors)
    settings = {"data__workers": 0, "data__lanes": 1, "every": "{log: 1, evaluate: null}"}
    try:
        with pytest.raises(DataError, match=r"\.tar: cannot be read: Too many open files") as error:
            run(recipe_text, tmp_path / "run", **settings)
    finally:
        for descriptor in used:
            os.close(descriptor)
    checkpoint = last_checkpoint(tmp_path / "run")
    assert f"everything up to step {steps} is saved in {checkpoint}" in str(error.value)
    assert 4 <= steps < 20
    verify_checkpoint(checkpoint)
    monkeypatch.undo()
    resumed = run(recipe_text, tmp_path / "run", resume=True, **settings)
    assert resumed.name == "step-00000020"
