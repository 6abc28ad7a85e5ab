"""The start time of this process, and how its threads wait; set before heavy imports."""

from __future__ import annotations

import os
import time

STARTED = time.monotonic()
"""Time limits count from here, so that they include imports that take seconds."""


def let_threads_sleep() -> None:
    """Makes OpenMP threads sleep soon while they wait for each other.

    PyTorch's libgomp reads this when it is loaded. By default its threads wait busily for a while;
    if the machine does other work too, they take the core from the thread that they wait for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
