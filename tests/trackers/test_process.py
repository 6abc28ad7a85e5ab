"""What trackers do wrong does not reach a run: only lines are dropped, and counted."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked_lines import send, train_line

from rewarm.trackers import process, run_trackers

HOSTILE = """\
from contextlib import contextmanager
import atexit, os, sys, time
from rewarm import Tracker

class Hostile(Tracker):
    contract = 1
    how: str

    @contextmanager
    def open(self, run):
        def act(how):
            if how == "raise":
                raise RuntimeError("server gone")
            if how == "exit":
                sys.exit(0)
            if how == "killed":
                os.kill(os.getpid(), 9)
            if how == "hang":
                (run.folder / "pid").write_text(str(os.getpid()))
                time.sleep(10**6)
            while how == "flood":
                print("x" * 10000)
                print("x" * 10000, file=sys.stderr)
        if self.how == "at exit":
            atexit.register(time.sleep, 10**6)
            os.register_at_fork(before=lambda: time.sleep(10**6))
        yield lambda step, values: act(self.how) if step == 3 else None
"""
STARTING = """\
from contextlib import contextmanager
import signal, subprocess, sys
from rewarm import Tracker

TIMER = "import signal; print(signal.getitimer(signal.ITIMER_PROF)[0])"

class Starting(Tracker):
    contract = 1

    @contextmanager
    def open(self, run):
        def log(step, values):
            child = subprocess.check_output([sys.executable, "-c", TIMER], text=True)
            own = signal.getitimer(signal.ITIMER_PROF)[0]
            (run.folder / "timers").write_text(f"{own} {child}")

        yield log
"""
LINES = [train_line(step) for step in range(1, 2001)]


@pytest.fixture
def hostile(distribution, tmp_path, monkeypatch):
    monkeypatch.setattr(run_trackers, "_SILENCE", 0.5)
    monkeypatch.setattr(process, "_START_SECONDS", 10.0)
    distribution("hostile", HOSTILE, "rewarm.trackers", hostile="Hostile")

    def act(how, lines=LINES):
        start = time.monotonic()
        (event,) = send(tmp_path / "run", {"hostile": {"how": how}}, lines)
        return event, time.monotonic() - start

    return act


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("raise", "RuntimeError: server gone"),
        ("exit", "SystemExit: 0"),
        ("killed", "its process ended with signal 9"),
    ],
)
def test_a_tracker_that_ends_is_reported_with_the_lines_it_lacks(hostile, how, error, tmp_path):
    event, _ = hostile(how)
    assert event == {"name": "hostile", "sent": 2, "dropped": 1998, "error": error}
    if how == "raise":
        folder = tmp_path / "run" / "trackers" / "hostile"
        assert "in act" in (folder / "error.txt").read_text()


@pytest.mark.slow
def test_a_tracker_that_hangs_is_killed(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_START_SECONDS", 0.0)
    monkeypatch.setattr(run_trackers, "_SILENCE", 3.0)
    event, seconds = hostile("hang")
    assert event["dropped"] == 1998
    assert event["error"] == "did not finish in time at the end of the run"
    assert seconds < 15
    pid = Path(tmp_path / "run" / "trackers" / "hostile" / "pid").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.slow
def test_a_tracker_that_computes_without_end_is_ended(hostile, monkeypatch):
    monkeypatch.setattr(run_trackers, "_SILENCE", 60.0)
    event, _ = hostile("flood")
    assert (event["sent"], event["dropped"]) == (2, 1998)
    assert event["error"].startswith("computed for more than 2 s on one line")


def test_processes_that_a_tracker_starts_may_compute_longer(distribution, tmp_path):
    distribution("starting", STARTING, "rewarm.trackers", starting="Starting")
    (event,) = send(tmp_path / "run", {"starting": {}}, LINES[:3])
    assert (event["sent"], event["error"]) == (3, None)
    timers = (tmp_path / "run" / "trackers" / "starting" / "timers").read_text().split()
    assert float(timers[0]) > 0
    assert float(timers[1]) == 0


@pytest.mark.slow
def test_a_tracker_that_hangs_is_ended_during_the_run(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_START_SECONDS", 0.0)
    monkeypatch.setattr(process, "_HANGING_SECONDS", 2.0)

    def lines():
        yield from LINES
        pid = tmp_path / "run" / "trackers" / "hostile" / "pid"
        while not pid.exists():  # a busy machine starts it late
            time.sleep(0.1)
        time.sleep(4)
        yield from LINES

    event, _ = hostile("hang", lines())
    assert event["error"] == "did not answer for 2 s"
    assert event["sent"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no SCHED_IDLE")
def test_a_tracker_runs_only_when_a_core_is_idle(run_when_idle):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as sleeping:
        run_when_idle(sleeping.pid)
        assert os.sched_getscheduler(sleeping.pid) == os.SCHED_IDLE


def test_handlers_of_the_exit_and_of_forks_are_not_waited_for(hostile):
    event, _ = hostile("at exit", LINES[:5])
    assert event == {"name": "hostile", "sent": 5, "dropped": 0, "error": None}


def test_sending_does_not_wait_and_its_queue_is_bounded(distribution, monkeypatch):
    class Waiting(process.TrackerProcess):
        def _write(self, request):
            pass  # takes nothing from the queue

    tracker = Waiting("x", ())
    start = time.perf_counter()
    for _ in range(100_000):
        tracker.send(b"line\n")
    assert time.perf_counter() - start < 5
    assert tracker._queue.qsize() == 1000
    assert (tracker.lines, tracker.dropped) == (100_000, 100_000)
