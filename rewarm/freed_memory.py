"""Which freed blocks of memory the C library keeps, and which it returns to the system."""

from __future__ import annotations

import ctypes


def keep_freed_blocks(largest: int) -> None:
    """Has glibc keep freed blocks up to a size, and return larger ones to the system at once.

    By default that size grows with what is freed, up to 32 MB, and what is kept is in pieces. Other
    C libraries have no such setting.

    Args:
        largest: the size, in bytes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, largest)
        mallopt(trim_threshold, 2 * largest - 1)
