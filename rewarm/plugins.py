"""Lists what installed distributions offer as entry points, without importing it."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple


class InstalledPlugin(NamedTuple):
    """An entry point and the distribution that it belongs to."""

    name: str
    distribution: str
    version: str
    entry: EntryPoint


def installed_plugins(group: str) -> list[InstalledPlugin]:
    """Returns the entry points of a group, sorted by name, without importing any."""
    entries = {
        (entry.name, _distribution_metadata(entry, "Name"), entry.value): entry
        for entry in entry_points(group=group)
    }
    return sorted(
        (
            InstalledPlugin(name, distribution, _distribution_metadata(entry, "Version"), entry)
            for (name, distribution, _), entry in entries.items()
        ),
        key=lambda plugin: plugin[:3],
    )


def _distribution_metadata(entry: EntryPoint, key: str) -> str:
    """Returns a field of a distribution's metadata, or `?` if it is missing."""
    return next(iter((entry.dist and entry.dist.metadata.get_all(key)) or []), "?")
