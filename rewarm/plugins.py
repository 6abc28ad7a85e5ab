"""Finds what installed distributions offer as entry points, without importing it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from rewarm.errors import did_you_mean


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


def find_plugin(
    group: str, noun: str, name: str, hint: Callable[[str, list[str]], str] = did_you_mean
) -> InstalledPlugin:
    """Returns the plug-in of that name, without importing it.

    Args:
        group: the group of the entry points.
        noun: what errors call such a plug-in.
        name: its name.
        hint: is given a name that is not installed and those that are; says what to try.

    Raises:
        ValueError: no plug-in has that name, or two distributions provide one.
    """
    plugins = installed_plugins(group)
    matching = [plugin for plugin in plugins if plugin.name == name]
    if not matching:
        names = sorted({plugin.name for plugin in plugins})
        raise ValueError(
            f"no {noun} named {name!r}{hint(name, names)} "
            f"(installed: {', '.join(names) or 'none; is rewarm installed?'}; plug-ins add others)"
        )
    if len(matching) > 1:
        owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in matching)
        raise ValueError(
            f"two distributions offer a {noun} named {name!r}: {owners}; uninstall one of them"
        )
    return matching[0]


def _distribution_metadata(entry: EntryPoint, key: str) -> str:
    """Returns a field of a distribution's metadata, or `?` if it is missing."""
    return next(iter((entry.dist and entry.dist.metadata.get_all(key)) or []), "?")
