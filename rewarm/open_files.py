"""The limit on open files: checked and raised before a run, and a reserve to save it."""

from __future__ import annotations

import os
import resource

from rewarm.errors import DataError

RESERVE = 32
"""Files that saving a checkpoint and writing metrics may open."""

_OTHERS = 128
"""Files that may be open beside the shards: the interpreter, PyTorch, the driver, plug-ins."""

_reserve: list[int] = []


def check_limit(shards: dict[str, int]) -> None:
    """Makes sure that a number of shards can be open at once; raises the soft limit if it is lower.

    Args:
        shards: the most shards that are open at once, by what reads them.

    Raises:
        DataError: the hard limit is too low.
    """
    needed = sum(shards.values()) + RESERVE + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, needed):
        return
    if not _is_enough(hard, needed):
        terms = " + ".join(f"{count:,} ({reader})" for reader, count in shards.items())
        raise DataError(
            f"the limit on open files is {hard:,}, and the run needs {needed:,}: shards of {terms} "
            f"+ {RESERVE + _OTHERS} others; raise the limit (ulimit -Hn), set a smaller "
            "data.lanes, or write fewer, larger shards"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _is_enough(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed


def hold_reserve() -> None:
    """Holds descriptors, so that a checkpoint can be saved after all others are used up."""
    while len(_reserve) < RESERVE:
        _reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def release_reserve() -> None:
    """Closes the descriptors that `hold_reserve` holds."""
    while _reserve:
        os.close(_reserve.pop())
