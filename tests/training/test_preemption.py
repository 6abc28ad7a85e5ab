"""Signals and time limits end a run, saved; a second signal ends a process that is stuck."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.checkpoints.find_checkpoint import last_checkpoint
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


def test_train_accepts_a_time_limit(recipe_file, command):
    code, _, errors = command("train", recipe_file, "--time-limit", "1ms")
    assert code == 2
    assert "should be a duration, such as 3h55m" in errors
    words = [sys.executable, "-m", "rewarm", "train", str(recipe_file), "--time-limit", "1s"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 75, ended.stderr
