"""What may ask a run to stop: a signal, a time limit, or a step named in advance."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from rewarm.errors import Preempted


class Interruptions:
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
        self._before = {one: signal.signal(one, self._note) for one in self._SIGNALS}
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:
            raise SystemExit(128 + number)
        self._signal = signal.Signals(number)

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
