"""Probes that fail, hang or end their process leave a sentence, and the others run."""

import sys
import time
from pathlib import Path

import pytest

from rewarm.diagnostics.finding import examine, examine_within, run_command


def fail():
    raise PermissionError(13, "Permission denied", "/proc/meminfo")


def test_an_exception_becomes_the_error_of_the_section():
    result = examine("Memory", fail)
    assert result.finding is None
    assert result.error == "PermissionError: [Errno 13] Permission denied: '/proc/meminfo'"
    (problem,) = result.problems()
    assert problem.found.startswith("Memory could not be examined: PermissionError")
    assert examine_within(5, "Memory", fail) == result


def test_a_probe_that_hangs_is_abandoned():
    start = time.monotonic()
    result = examine_within(0.1, "Disk", lambda: time.sleep(2))
    assert time.monotonic() - start < 1.8
    assert result.error == "no answer within 0.1 s"


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    child = tmp_path / "child"
    words = ["sh", "-c", f"sleep 60 & echo $! > {child}; wait"]
    with pytest.raises(TimeoutError, match=r"sh: no answer within 0\.5 s"):
        run_command(words, 0.5)
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z":  # its new parent may be slow
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.02)


def test_a_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"^the last line$"):
        run_command(["sh", "-c", "echo first >&2; echo the last line >&2; exit 3"], 5)
    with pytest.raises(RuntimeError, match=r"^exit code -11$"):
        run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], 20)
    with pytest.raises(FileNotFoundError):
        run_command(["no-such-command"], 5)
