"""The start time of this process, how its threads wait, and how it ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import NoReturn

from rewarm.reader_threads import has_blocked_threads

STARTED = time.monotonic()
"""Time limits count from here, so that they include imports that take seconds."""


def let_threads_sleep() -> None:
    """Makes OpenMP threads sleep soon while they wait for each other.

    PyTorch's libgomp reads this when it is loaded. By default its threads wait busily for a while;
    if the machine does other work too, they take the core from the thread that they wait for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def exit_process(code: int) -> NoReturn:
    """Ends the process, at once where a thread still waits for a storage that hangs.

    Python's own exit would join such a thread if a library started it, and may crash in one that
    returns from C meanwhile.
    """
    if has_blocked_threads():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
