"""The versions of Python and of the packages that a run depends on, and the schedule plug-ins."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from rewarm.diagnostics.finding import MachineProblem
from rewarm.version import __version__

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface-hub"),
    *("numpy", "pydantic", "webdataset", "fsspec"),
)


@dataclass(frozen=True)
class Software:
    """Versions.

    Attributes:
        rewarm: the version of rewarm, and the folder that it was imported from.
        python: the version of Python, and its path.
        system: kernel, C library, machine.
        packages: versions by name; None if the package is not installed.
        unmet: packages whose version is not the required one: name, version, requirement.
        schedules: names of schedules, each with all distributions that offer it.
    """

    rewarm: str
    python: str
    system: str
    packages: dict[str, str | None]
    unmet: list[tuple[str, str, str]]
    schedules: list[tuple[str, str]]

    def facts(self) -> dict[str, str]:
        """Returns the versions."""
        packages = (f"{name} {number or 'missing'}" for name, number in self.packages.items())
        plugins = dict.fromkeys(o for _, o in self.schedules if not o.startswith("rewarm "))
        return {
            "rewarm": self.rewarm,
            "Python": self.python,
            "system": self.system,
            "packages": ", ".join(packages),
            "schedule plug-ins": ", ".join(plugins) or "none",
        }

    def problems(self) -> list[MachineProblem]:
        """Returns versions that rewarm does not support, and names that are offered twice."""
        problems = [
            MachineProblem(f"{name} {number}", f"{name} {needed}", f"pip install '{name}{needed}'")
            for name, number, needed in self.unmet
        ]
        names = Counter(name for name, _ in self.schedules)
        for name in (name for name, count in names.items() if count > 1):
            owners = " and ".join(owner for other, owner in self.schedules if other == name)
            problems.append(
                MachineProblem(
                    f"the schedule {name!r} is offered by {owners}",
                    "one distribution for each name",
                    "uninstall one of them",
                )
            )
        return problems


def examine_software() -> Software:
    """Returns the versions that are installed, without importing the packages."""
    from rewarm.schedules.registry import installed

    return Software(
        rewarm=f"{__version__}, {Path(__file__).parents[1]}",
        python=f"{platform.python_version()}, {sys.executable}",
        system=f"{platform.platform()}, {' '.join(platform.libc_ver())}",
        packages={name: _version_of(name) for name in PACKAGES},
        unmet=_unmet_requirements(),
        schedules=[
            (plugin.name, f"{plugin.distribution} {plugin.version}") for plugin in installed()
        ],
    )


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _unmet_requirements() -> list[tuple[str, str, str]]:
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in requires("rewarm") or []]
    return [
        (needed.name, number or "is not installed", str(needed.specifier))
        for needed in requirements
        if needed.marker is None or needed.marker.evaluate({"extra": ""})
        if (number := _version_of(needed.name)) is None
        or not needed.specifier.contains(number, prereleases=True)
    ]
