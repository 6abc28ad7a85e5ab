"""Sends lines to a tracker in a process of its own, without ever waiting for it.

```
 training thread ── send ──> queue of 1,000 lines ── thread ──> pipe ──> process of the tracker
                      └─ dropped when it is full          lines sent <── thread ──┘
```
A process, since a library in a thread can hold the interpreter's lock, and handlers that it
registers for forks and the exit can hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from rewarm.safe_loading import parse_json
from rewarm.trackers.worker import LINE_SECONDS, START_SECONDS, TrackerRequest

_QUEUED_LINES = 1000
_START_SECONDS = 10.0
"""The time in which a tracker need not answer after its start, as imports take long."""
_HANGING_SECONDS = 60.0
"""The time without progress after which a tracker whose queue is full is ended: it may be busy."""
_LONGEST_STATUS = 1_000_000
_COMPUTES = (
    f"computed for more than {LINE_SECONDS:g} s on one line, or {START_SECONDS:g} s at its start "
    "or end"
)


def start_worker(name: str) -> subprocess.Popen[bytes]:
    """Starts the process of a tracker, which finds the same modules as this one.

    Raises:
        OSError: it cannot be started.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-P", "-m", "rewarm.trackers.worker", name]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        # Ctrl-C is for the run, which then ends this process. Not a session of its own: Linux would
        # share the cores between sessions (autogroup), whatever the niceness in one of them is.
        process_group=0,
    )


def _run_when_idle(pid: int) -> None:
    """Gives a process only the time that nothing else wants: the run goes first."""
    with contextlib.suppress(OSError):  # such as a kernel that does not allow it
        if sys.platform == "linux":
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.setpriority(os.PRIO_PROCESS, pid, 19)


def kill_worker(process: subprocess.Popen[bytes]) -> None:
    """Kills the process of a tracker, and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class TrackerProcess:
    """A tracker of a run. Only `send` is called while the run trains; it returns at once."""

    def __init__(self, name: str, request: TrackerRequest) -> None:
        """Starts it in the background."""
        self.name = name
        self.lines = 0
        """Lines that the run has written."""
        self.sent = 0
        """Lines of these that the tracker has."""
        self.error: str | None = None
        """Why the tracker has ended early."""
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_end_queued = False
        self._ended = threading.Event()
        self._progress_time = time.monotonic() + _START_SECONDS
        first = json.dumps(request).encode() + b"\n"
        self._start_thread(self._write, first)

    @property
    def dropped(self) -> int:
        """Lines that did not reach the tracker."""
        return self.lines - self.sent

    def send(self, line: bytes) -> None:
        """Sends a line of metrics.jsonl; drops it if the tracker is too slow or has ended."""
        self.lines += 1
        if self._ended.is_set():
            return
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            if time.monotonic() - self._progress_time > _HANGING_SECONDS and self._process:
                self.error = self.error or f"did not answer for {_HANGING_SECONDS:g} s"
                kill_worker(self._process)

    def _start_thread(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(
            target=function,
            args=arguments,
            name=f"rewarm-tracker-{self.name}",
            daemon=True,  # the exit does not wait for it
        )
        thread.start()

    def _write(self, request: bytes) -> None:
        """Starts the process, and writes the lines in the queue to it."""
        try:
            self._process = process = start_worker(self.name)
            assert process.stdin
            assert process.stdout
            _run_when_idle(process.pid)
            self._start_thread(self._read, process, process.stdout)
            with process.stdin as pipe:
                pipe.write(request)
                pipe.flush()
                while line := self._queue.get():
                    pipe.write(line)
                    pipe.flush()
        except BrokenPipeError:
            return  # `_read` learns why
        except Exception as error:
            self.error = self.error or f"its process cannot be started: {error}"
            if self._process is None:
                self._ended.set()

    def _read(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        """Reads what has become of the lines, until the process ends."""
        with pipe, contextlib.suppress(OSError, ValueError, TypeError):
            while status := pipe.readline(_LONGEST_STATUS):
                values = parse_json(status)
                self.sent = values.get("sent", self.sent)
                self.error = self.error or values.get("error")
                self._progress_time = time.monotonic()
        code = process.wait()
        if code and not self.error:
            what = f"signal {-code}" if code < 0 else f"exit code {code}"
            is_limit = code == -signal.SIGPROF
            self.error = _COMPUTES if is_limit else f"its process ended with {what}"
        self._ended.set()

    def queue_end(self) -> bool:
        """Tells the tracker that the run has ended; returns False while the queue is full."""
        if not self._is_end_queued:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
                self._is_end_queued = True
        return self._is_end_queued

    def close(self, silence: float, deadline: float) -> None:
        """Waits until the tracker has what is queued, as long as it makes progress.

        Args:
            silence: seconds without progress after which it is ended.
            deadline: the `time.monotonic()` value at which it is ended in any case.
        """
        start = time.monotonic()
        while not self._ended.wait(0.02):
            self.queue_end()
            now = time.monotonic()
            if now > deadline or now - max(start, self._progress_time) > silence:
                self.error = self.error or "did not finish in time at the end of the run"
                if self._process:
                    kill_worker(self._process)
                    self._ended.wait(1)
                return
