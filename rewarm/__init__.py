"""rewarm: continual pre-training of GPT-NeoX / Pythia models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarm.errors import RewarmError
    from rewarm.quantities import Rate, Span
    from rewarm.recipe import Recipe
    from rewarm.schedules import Schedule, cosine, linear
    from rewarm.trackers.base import TrackedRun, Tracker
    from rewarm.version import __version__

# Imported on first use: `rewarm --help` needs none of them.
_EXPORTS = {
    "Rate": "rewarm.quantities",
    "Recipe": "rewarm.recipe",
    "RewarmError": "rewarm.errors",
    "Schedule": "rewarm.schedules",
    "Span": "rewarm.quantities",
    "TrackedRun": "rewarm.trackers.base",
    "Tracker": "rewarm.trackers.base",
    "__version__": "rewarm.version",
    "cosine": "rewarm.schedules",
    "linear": "rewarm.schedules",
}

__all__ = [
    "Rate",
    "Recipe",
    "RewarmError",
    "Schedule",
    "Span",
    "TrackedRun",
    "Tracker",
    "__version__",
    "cosine",
    "linear",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rewarm' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
