"""Finds schedules by name among the installed entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points, version
from inspect import isabstract
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from rewarm.errors import ScheduleError, did_you_mean
from rewarm.schedules.base import CONTRACT, Schedule

GROUP = "rewarm.schedules"


class Installed(NamedTuple):
    """One entry point of the group and the distribution that brought it."""

    name: str
    distribution: str
    version: str
    entry: EntryPoint


def installed() -> list[Installed]:
    """Returns every schedule on offer, by name; imports none of them."""
    found = {
        (entry.name, _said(entry, "Name"), entry.value): entry
        for entry in entry_points(group=GROUP)
    }
    return sorted(
        (
            Installed(name, distribution, _said(entry, "Version"), entry)
            for (name, distribution, _), entry in found.items()
        ),
        key=lambda one: one[:3],
    )


def _said(entry: EntryPoint, key: str) -> str:
    """Returns what a distribution's metadata say under a key, which may be nothing."""
    return next(iter((entry.dist and entry.dist.metadata.get_all(key)) or []), "?")


def origin(name: str) -> Installed:
    """Returns the one installed schedule of that name, without importing it.

    Raises:
        ScheduleError: there is none, or two distributions offer it.
    """
    offered = installed()
    named = [one for one in offered if one.name == name]
    if not named:
        names = sorted({one.name for one in offered})
        raise ScheduleError(
            f"no schedule named {name!r}{did_you_mean(name, names)} "
            f"(installed: {', '.join(names) or 'none; is rewarm installed?'}; others come with "
            "plug-ins)"
        )
    if len(named) > 1:
        owners = " and ".join(f"{one.distribution} {one.version}" for one in named)
        raise ScheduleError(
            f"two distributions offer a schedule named {name!r}: {owners}; uninstall one of them"
        )
    return named[0]


def identity(name: str) -> dict[str, str]:
    """Returns what a checkpoint says of the plug-in that gave its rates.

    Raises:
        ScheduleError: there is none of that name, or two.
    """
    plugin = origin(name)
    return {"name": name, "distribution": plugin.distribution, "version": plugin.version}


def find(name: str) -> type[Schedule]:
    """Returns the schedule class of that name, importing only that plug-in.

    Raises:
        ScheduleError: it is missing, ambiguous, cannot be imported, or is not what it claims.
    """
    plugin = origin(name)
    owner = f"schedule {name!r} of {plugin.distribution} {plugin.version}"
    try:
        loaded = plugin.entry.load()
    except (Exception, SystemExit) as error:  # a stranger's import may raise anything
        raise ScheduleError(
            f"{owner} cannot be imported: {type(error).__name__}: {error}; "
            f"mend or uninstall {plugin.distribution}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Schedule)):
        raise ScheduleError(f"{owner} is not a rewarm.Schedule: {plugin.entry.value}")
    built_for = vars(loaded).get("contract")  # its own, not one that it inherits
    if built_for != CONTRACT:
        said = f"contract {built_for!r}" if built_for else "no contract (contract: ClassVar[int])"
        raise ScheduleError(
            f"{owner} was built for {said} of rewarm schedules, and rewarm {version('rewarm')} has "
            f"contract {CONTRACT}; install a {plugin.distribution} for contract {CONTRACT}"
        )
    if isabstract(loaded):
        raise ScheduleError(f"{owner} has no __call__(self, progress): {plugin.entry.value}")
    declared = loaded.model_fields["name"].default
    if declared != name:
        raise ScheduleError(f"{owner} calls itself {declared!r}; the two names must be the same")
    return loaded


def read(written: Any, context: dict[str, Any]) -> Schedule:
    """Returns the schedule that settings such as `{name: rewarm, peak_lr: 3e-4, ...}` say.

    A recipe reads its schedule through this one function, and so does a schedule made of others.

    Args:
        written: the settings, or a schedule, which is read again.
        context: what spans and rates are resolved against: `budget`, a Budget, and `base_lr`, a
            function that says the last rate of the base; each may be None.

    Raises:
        ValueError: these are no settings, or the schedule broke while it checked them.
        ValidationError: there is no such schedule, or its settings are wrong; each fault located.
    """
    if isinstance(written, Schedule):
        written = written.model_dump(mode="json")
    if not isinstance(written, dict):
        raise ValueError("should be settings, such as {name: rewarm, peak_lr: 3e-4, ...}")
    name = written.get("name")
    try:
        if not isinstance(name, str):
            raise ScheduleError("required, but missing" if name is None else "should be text")
        kind = find(name)
    except ScheduleError as error:
        fault = PydanticCustomError("recipe", str(error))
        details = InitErrorDetails(type=fault, loc=("name",), input=name)
        raise ValidationError.from_exception_data("schedule", [details]) from None
    try:
        return kind.model_validate(written, context=context)
    except ValidationError:
        raise
    except Exception as error:  # a stranger's validator may raise anything
        raise ValueError(
            f"{name!r} cannot check its settings: {type(error).__name__}: {error}"
        ) from error
