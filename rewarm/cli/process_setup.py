"""The start time of this process, how its threads wait, its Ctrl-C, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from rewarm import exit_codes
from rewarm.cli.worker_process import has_ended_alone
from rewarm.reader_threads import has_blocked_threads
from rewarm.stop_signals import REPEATED_SIGNALS

STARTED_VARIABLE = "REWARM_STARTED"
"""The environment variable by which a launcher passes its start time to its processes."""

STARTED = float(os.environ.get(STARTED_VARIABLE) or time.monotonic())
"""Time limits count from here, so that they include imports that take seconds."""

INTERRUPTED_MESSAGE = "interrupted; finished shards and saved checkpoints are kept"
"""The message after Ctrl-C outside the training loop, which has its own."""


def let_threads_sleep() -> None:
    """Makes OpenMP threads sleep soon while they wait for each other.

    PyTorch's libgomp reads this when it is loaded. By default its threads wait busily for a while;
    if the machine does other work too, they take the core from the thread that they wait for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def exit_process(code: int) -> NoReturn:
    """Ends the process, at once where a thread still waits for a storage or a process that hangs.

    Python's own exit would join such a thread if a library started it, and may crash in one that
    returns from C meanwhile.
    """
    if code == exit_codes.STOPPED:  # a signal that may come several times must not change it
        for number in REPEATED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    if has_blocked_threads() or has_ended_alone():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def exit_at_interrupts_of_imports() -> None:
    """Makes Ctrl-C end the process at once while a module is imported.

    A KeyboardInterrupt there is a traceback before `main` runs, may be turned into an ImportError,
    and aborts the process in the C++ part of PyTorch's import. Elsewhere it is raised as usual.
    """
    # Not if the process was started in the background, where a shell ignores the signal.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename == "<frozen importlib._bootstrap>":
            with contextlib.suppress(OSError):
                os.write(2, f"{INTERRUPTED_MESSAGE}\n".encode())
            os._exit(exit_codes.INTERRUPTED)
        caller = caller.f_back
    signal.default_int_handler(number, frame)
