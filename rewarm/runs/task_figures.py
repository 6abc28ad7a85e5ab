"""The figures of tasks, as metrics.jsonl has them: `TASK/METRIC`, and `..._stderr` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STDERR = "_stderr"
_NOT_FIGURES = {"kind", "step", "tokens"}


def stderr_name(name: str) -> str:
    """Returns the name of the standard error of a figure."""
    return f"{name}{_STDERR}"


def is_stderr(name: str) -> bool:
    """Returns whether a name is that of a standard error."""
    return name.endswith(_STDERR)


def values_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures in a line of kind `tasks`, or alone, without their standard errors."""
    return {
        name: value
        for name, value in figures.items()
        if name not in _NOT_FIGURES and not is_stderr(name)
    }
