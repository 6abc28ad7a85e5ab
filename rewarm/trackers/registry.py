"""Finds trackers by name among the installed entry points, and checks a recipe's settings."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from inspect import isabstract
from typing import Any

from pydantic import ValidationError

from rewarm.errors import did_you_mean
from rewarm.plugins import InstalledPlugin, find_plugin
from rewarm.trackers.base import TRACKER_CONTRACT, Tracker

TRACKER_GROUP = "rewarm.trackers"
"""The group of the entry points, as in a plug-in's pyproject.toml."""


def find_tracker(name: str) -> InstalledPlugin:
    """Returns the installed tracker of that name, without importing it.

    Raises:
        ValueError: no tracker has that name, or two distributions provide one.
    """
    return find_plugin(TRACKER_GROUP, "tracker", name)


def is_builtin(plugin: InstalledPlugin) -> bool:
    """Returns whether a tracker is part of rewarm, so that importing it runs nobody else's code."""
    return plugin.entry.module.startswith("rewarm.trackers.")


def load_tracker(plugin: InstalledPlugin) -> type[Tracker]:
    """Imports a tracker and returns its class.

    Raises:
        ValueError: it breaks the contract.
        BaseException: whatever importing it raises.
    """
    label = f"{plugin.entry.value} of {plugin.distribution} {plugin.version}"
    kind = plugin.entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Tracker)):
        raise ValueError(f"{label} is not a rewarm.Tracker")
    contract = vars(kind).get("contract")  # its own, not an inherited one
    if contract != TRACKER_CONTRACT:
        raise ValueError(
            f"{label} was built for contract {contract!r} of rewarm trackers, and rewarm "
            f"{version('rewarm')} has contract {TRACKER_CONTRACT}; install another version of "
            f"{plugin.distribution}"
        )
    if isabstract(kind):
        raise ValueError(f"{label} has no open(self, run)")
    return kind


def setting_problems(kind: type[Tracker], settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the (dotted setting, problem) pairs of a tracker's settings."""
    try:
        kind.model_validate(settings)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            setting = ".".join(map(str, details["loc"]))
            message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if details["type"] == "extra_forbidden":
                known = list(kind.model_fields)
                hint = did_you_mean(setting, known) or f" (settings here: {', '.join(known)})"
                message = f"no such setting{hint if known else ', as this tracker has none'}"
            elif details["type"] == "missing":
                message = "required, but missing"
            else:
                message += f" (got {details['input']!r:.60})"
            yield setting, message
