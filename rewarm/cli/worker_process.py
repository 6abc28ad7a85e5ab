"""What this process is to a run in several processes; without PyTorch."""

from __future__ import annotations

import os
import sys


def is_worker() -> bool:
    """Returns whether a launcher has started this process: rewarm's own, torchrun, or srun."""
    return "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Returns whether this process speaks for all: the first of a run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def has_ended_alone() -> bool:
    """Returns whether this process has left a run without an agreement with the others.

    Its process group is still open then.
    """
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())
