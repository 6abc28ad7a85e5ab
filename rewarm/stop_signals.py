"""The signals that ask a run or a study to save and end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from rewarm import exit_codes
from rewarm.errors import Preempted

STOP_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1),
    *(signal.SIGHUP, signal.SIGXCPU),
)
REPEATED_SIGNALS = (signal.SIGHUP, signal.SIGXCPU)
"""Of a closed terminal and an exceeded CPU limit: they may come again, and ask for nothing new."""


def signals_to_handle() -> tuple[signal.Signals, ...]:
    """Returns the signals to handle: SIGHUP stays ignored where it is, as under `nohup`."""
    return tuple(
        number
        for number in STOP_SIGNALS
        if number not in REPEATED_SIGNALS or signal.getsignal(number) != signal.SIG_IGN
    )


@contextlib.contextmanager
def stop_signals_noted(*, interrupts: bool = True) -> Iterator[list[int]]:
    """Yields a list to which signals are added inside, where a process has to be ended first.

    An error that a handler raised while the process is being started would leave it behind.

    Args:
        interrupts: also SIGINT, which else raises KeyboardInterrupt at once.
    """
    noted: list[int] = []
    handlers = {
        number: signal.signal(number, lambda received, _frame: noted.append(received))
        for number in signals_to_handle()
        if interrupts or number != signal.SIGINT
    }
    try:
        yield noted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def raise_if_stopped(noted: list[int]) -> None:
    """Raises Preempted, with the exit code of the signal, if a signal was noted."""
    if noted:
        number = signal.Signals(noted[0])
        error = Preempted(f"{number.name}: stopped; run the same command again")
        if number == signal.SIGINT:
            error.exit_code = exit_codes.INTERRUPTED
        raise error
