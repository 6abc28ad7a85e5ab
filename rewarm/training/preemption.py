"""Requests to stop a run: a signal, a time limit, or a step named in advance.

```
 while it starts     the request ends the run at once: there is nothing to save yet
 between two steps   a signal is acknowledged at once, and `check` raises StopRequested
 waiting for data    `wait_for` raises it, and leaves the thread that reads behind
```
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from threading import Thread
from types import FrameType, TracebackType
from typing import Any, Self

from rewarm import exit_codes
from rewarm.errors import Preempted
from rewarm.stop_signals import REPEATED_SIGNALS, signals_to_handle

# Signals within so many seconds are one request: a launcher forwards to its processes what a
# scheduler sends to all of them.
_ONE_REQUEST = 0.2
_POLL_SECONDS = 0.05
"""Between two looks for a request while data is waited for."""
_LONGEST_END_OF_START = 1.0
"""Seconds after which a start ends that no exception can end, since it is blocked in C."""
_EXIT_SECONDS = 1.0
"""What the exit of a run takes that has nothing to save."""


class StopRequested(BaseException):
    """The run has to stop here; the text is the reason.

    Not an Exception: what handles errors must not take it for one.
    """

    def __init__(self, reason: str, exit_code: int = exit_codes.STOPPED) -> None:
        """Takes the reason, and the exit code that stands for it."""
        super().__init__(reason)
        self.exit_code = exit_code


class StopRequests:
    """Turns signals and limits into a stop; a second signal exits at once.

    A context manager: signal handlers are installed inside it, and restored at its end.
    """

    def __init__(self, until: int | None = None, deadline: float = math.inf) -> None:
        """Takes a step to stop after, and a `time.monotonic()` to have exited by."""
        self._until = until
        self._deadline = deadline
        self._reason: str | None = None
        self._exit_code = exit_codes.STOPPED
        self._is_starting = False
        self.announce: Callable[[str], None] | None = None
        """Shows a line when a signal comes during a step; set when there is where to show it."""

    def __enter__(self) -> Self:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers = {
            number: signal.signal(number, self._remember)
            for number in signals_to_handle()
            + ((signal.SIGALRM,) if math.isfinite(self._deadline) else ())
        }
        self._wakeup_fd = signal.set_wakeup_fd(self._writing)
        Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(
        self, _k: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        os.close(self._writing)
        if isinstance(error, StopRequested):
            raise preempted(
                error,
                "stopped before the first step; nothing new to save; run the same command again",
            ) from None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._reason is None:
            self._reason, self._exit_code = _request(number)
        if self._is_starting:
            raise StopRequested(self._reason, self._exit_code)

    def _watch(self, reading: int) -> None:
        """Ends the process at the second signal, whatever the main thread waits for.

        A Python handler would wait with it, for a long step, a save or a device that hangs; and two
        signals in that time would call it once.
        """
        first, is_announced = None, False
        while number := os.read(reading, 1):
            if number[0] not in self._handlers:
                continue
            if self._is_starting:
                self._end_start(number[0])
            elif not is_announced and self.announce:
                is_announced = True
                # In a thread: a terminal that hangs must not keep a second signal from ending this.
                Thread(target=self.announce, args=[_receipt(number[0])], daemon=True).start()
            if number[0] in (*REPEATED_SIGNALS, signal.SIGALRM):
                continue
            first = first or time.monotonic()
            if time.monotonic() - first > _ONE_REQUEST:
                name = signal.Signals(number[0]).name
                _exit_now(128 + number[0], f"{name} again: stopped without saving\n")
        os.close(reading)

    def _end_start(self, number: int) -> None:
        """Ends the process if a start does not end: the handler's exception cannot reach it."""
        time.sleep(_LONGEST_END_OF_START)
        if self._is_starting:
            reason, exit_code = _request(number)
            _exit_now(exit_code, f"{reason}: stopped before the first step\n")

    @contextlib.contextmanager
    def while_starting(self) -> Iterator[None]:
        """Has a request end at once what is inside: a download, a checkpoint that is read.

        Raises:
            StopRequested: a stop is requested, before or inside.
        """
        timer = (0.0, 0.0)
        self._is_starting = True
        try:
            self.check(_EXIT_SECONDS)
            if math.isfinite(self._deadline):
                left = self._deadline - _EXIT_SECONDS - time.monotonic()
                timer = signal.setitimer(signal.ITIMER_REAL, max(1e-3, left))
            yield
        finally:
            self._is_starting = False
            if math.isfinite(self._deadline):
                signal.setitimer(signal.ITIMER_REAL, *timer)

    def check(self, seconds_to_exit: float, step: int | None = None) -> None:
        """Raises StopRequested if the run has to stop.

        Args:
            seconds_to_exit: what the run takes until it has exited, if it stops at the next check.
            step: the one that was just taken; None within a step.
        """
        if self._reason is None and time.monotonic() + seconds_to_exit > self._deadline:
            self._reason = "time limit"
        if self._reason is None and step is not None and step == self._until:
            self._reason = f"step {step:,}"
        if self._reason is not None:
            raise StopRequested(self._reason, self._exit_code)

    def wait_for(self, read: futures.Future[Any], seconds_to_exit: float) -> Any:
        """Returns the result of a read; raises StopRequested if the run has to stop before.

        The thread that reads is left behind then.
        """
        self.check(seconds_to_exit)
        while not read.done():
            futures.wait([read], timeout=_POLL_SECONDS)
            self.check(seconds_to_exit)
        return read.result()


def preempted(request: StopRequested, message: str) -> Preempted:
    """Returns the error that ends the run, with the reason and the exit code of the request."""
    error = Preempted(f"{request}: {message}")
    error.exit_code = request.exit_code
    return error


def _request(number: int) -> tuple[str, int]:
    """Returns the reason that a signal stands for, and the exit code of the run."""
    if number == signal.SIGALRM:
        return "time limit", exit_codes.STOPPED
    interrupted = number == signal.SIGINT
    return (
        signal.Signals(number).name,
        exit_codes.INTERRUPTED if interrupted else exit_codes.STOPPED,
    )


def _receipt(number: int) -> str:
    """Returns what is shown at once when a signal comes during a step."""
    again = "" if number in REPEATED_SIGNALS else "; again to quit without saving"
    return f"{signal.Signals(number).name}: saving after this step{again}"


def _exit_now(code: int, message: str) -> None:
    clear_bar = "\r\x1b[2K\x1b[?25h" if sys.stderr.isatty() else ""  # and show the cursor
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), (clear_bar + message).encode())
    os._exit(code)
