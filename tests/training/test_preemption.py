"""Signals and time limits end a run, saved; a second signal ends a process that is stuck."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rewarm_process import RewarmProcess

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import Preempted
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train

STUCK = """
import hashlib
from rewarm.training.preemption import StopRequests
with StopRequests():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, where no handler is called
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_own_code(recipe_text, tmp_path, number, code):
    path = tmp_path / "recipe.yaml"
    endless = recipe_text.replace("tokens: 20480\n", "tokens: 10M\n")
    path.write_text(endless.replace("lanes: 2\n", "lanes: 2\n  max_epochs: null\n"))
    process = RewarmProcess(tmp_path, "train", path)
    assert process.wait_for("\nstep 3/"), "ended before step 3"
    process.signal(number)
    assert process.wait() == code
    assert "Traceback" not in process.errors
    assert "--resume" in process.errors
    assert read_training_state(last_checkpoint(tmp_path / "run")).step >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_that_is_stuck(number):
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            process.send_signal(signal.SIGUSR1)  # a launcher's copy of the same request
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            process.send_signal(number)
            assert process.wait(timeout=5) == 128 + number
        finally:
            process.kill()


def test_a_time_limit_saves_and_exits(recipe_file, tmp_path):
    overrides = ["tokens=20M", "data.max_epochs=null"]
    recipe = load_recipe(recipe_file, overrides)
    started = time.monotonic()
    with pytest.raises(Preempted, match=r"time limit: stopped after step \d+, saved in") as error:
        train(recipe, deadline=started + 3)
    assert error.value.exit_code == 75
    assert time.monotonic() - started < 3
    assert last_checkpoint(Path(recipe.run))
