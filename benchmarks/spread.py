"""How benchmarks print repeated measurements."""

from __future__ import annotations

import statistics


def spread(values: list[float], digits: int) -> str:
    """Returns `median (lowest to highest)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
