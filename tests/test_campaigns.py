"""The campaigns in benchmarks/ that look for lost work and wrong numbers, with a few points each.

Each script starts its own processes, exits with 1 on a violation, and prints it.
"""

import shutil
import subprocess
import sys

import pytest
from repository import ROOT

pytestmark = pytest.mark.slow


def run_campaign(name, *arguments):
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_run_survives_power_losses():
    lines = run_campaign("power_loss.py", "--points", 5)
    assert len(lines) == 6
    assert lines[-1].startswith("5 power losses: ")


def test_mutated_files_of_a_run_give_no_wrong_number():
    lines = run_campaign("mutated_run_files.py", "--cases", 8, "--workers", 1)
    assert lines[-1].startswith("8 cases in ")
    assert lines[-1].endswith(": 0 violations")


def test_check_and_train_refuse_faulty_setups_alike():
    lines = run_campaign("check_against_train.py", "--setups", 5)
    assert lines[-1] == "5 set-ups, 0 violations"
