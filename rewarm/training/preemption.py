"""Requests to stop a run: a signal, a time limit, or a step named in advance."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from types import FrameType, TracebackType
from typing import Self

from rewarm import exit_codes
from rewarm.errors import Preempted

# Signals within so many seconds are one request: a launcher forwards to its processes what a
# scheduler sends to all of them.
_ONE_REQUEST = 0.2


class StopRequests:
    """Turns signals and limits into a stop after the current step; a second signal exits at once.

    A context manager: signal handlers are installed inside it, and restored at its end.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, until: int | None = None, deadline: float = math.inf) -> None:
        """Takes a step to stop after, and a `time.monotonic()` to have exited by."""
        self._until = until
        self._deadline = deadline
        self._signal: signal.Signals | None = None

    def __enter__(self) -> Self:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers = {number: signal.signal(number, self._remember) for number in self._SIGNALS}
        self._wakeup_fd = signal.set_wakeup_fd(self._writing)
        Thread(target=self._exit_at_second_signal, args=(reading,), daemon=True).start()
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        os.close(self._writing)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number)

    def _exit_at_second_signal(self, reading: int) -> None:
        """Ends the process at the second signal, whatever the main thread waits for.

        A Python handler would wait with it, for a long step, a save or a device that hangs; and two
        signals in that time would call it once.
        """
        first = None
        while number := os.read(reading, 1):
            if number[0] not in self._SIGNALS:
                continue
            first = first or time.monotonic()
            if time.monotonic() - first > _ONE_REQUEST:
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # shows the cursor again
                os._exit(128 + number[0])
        os.close(reading)

    def reason_to_stop(self, step: int, seconds_to_exit: float) -> str | None:
        """Returns why the run has to stop after a step, or None.

        Args:
            step: the one that was just taken.
            seconds_to_exit: what one more step, a checkpoint and the exit take.
        """
        if self._signal:
            return self._signal.name
        if time.monotonic() + seconds_to_exit > self._deadline:
            return "time limit"
        return f"step {step:,}" if step == self._until else None

    def stopped(self, reason: str, step: int, checkpoint: Path) -> Preempted:
        """Returns the error that ends the run after its checkpoint is saved."""
        error = Preempted(
            f"{reason}: stopped after step {step:,}, saved in {checkpoint}; continue with the same "
            "command and --resume"
        )
        if self._signal == signal.SIGINT:
            error.exit_code = exit_codes.INTERRUPTED
        return error
