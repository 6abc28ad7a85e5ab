"""What may ask a run to stop: a signal, a time limit, or a step named in advance."""

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

from rewarm.errors import Preempted

# Seconds in which several signals are one wish: a launcher hands on to its processes what a
# scheduler sends to all of them.
_ONE_WISH = 0.2


class StopRequests:
    """Turns signals and limits into a wish to stop at the next step; a second signal stops at once.

    A context manager: handlers are put in place inside it, and back at its end.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, until: int | None = None, deadline: float = math.inf) -> None:
        """Takes a step to stop behind, and a `time.monotonic()` to be gone by."""
        self._until = until
        self._deadline = deadline
        self._signal: signal.Signals | None = None

    def __enter__(self) -> Self:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = {one: signal.signal(one, self._note) for one in self._SIGNALS}
        self._fd_before = signal.set_wakeup_fd(self._writing)
        Thread(target=self._listen, args=(reading,), daemon=True).start()
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._writing)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number)

    def _listen(self, reading: int) -> None:
        """Ends the process at the second signal, whatever the main thread waits for.

        A handler would wait with it, for a long step, a save or a device that hangs; and two
        signals in that time would call it once.
        """
        first = None
        while number := os.read(reading, 1):
            if number[0] not in self._SIGNALS:
                continue
            first = first or time.monotonic()
            if time.monotonic() - first > _ONE_WISH:
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # the cursor that the bar hid
                os._exit(128 + number[0])
        os.close(reading)

    def asked(self, step: int, needed: float) -> str | None:
        """Returns what asks the run to stop behind a step, if anything does.

        Args:
            step: the one that was just taken.
            needed: seconds that one more step and a checkpoint take.
        """
        if self._signal:
            return self._signal.name
        if time.monotonic() + needed > self._deadline:
            return "time limit"
        return f"step {step:,}" if step == self._until else None

    def preempted(self, asked: str, step: int, saved: Path) -> Preempted:
        """Returns the error that ends the run after its checkpoint is saved."""
        error = Preempted(
            f"{asked}: stopped after step {step:,}, saved in {saved}; go on with the same command "
            "and --resume"
        )
        if self._signal == signal.SIGINT:
            error.exit_code = 130
        return error
