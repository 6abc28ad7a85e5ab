"""When this process started, and how its threads wait: set before anything heavy is imported."""

from __future__ import annotations

import os
import time

STARTED = time.monotonic()
"""A time limit counts from here, imports of seconds included."""


def let_threads_sleep() -> None:
    """Makes a CPU's threads wait for each other asleep after a moment.

    PyTorch's libgomp reads this when it is loaded. By default its threads wait busily for a while;
    beside other work, it is then the thread that is waited for which gets no core.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
