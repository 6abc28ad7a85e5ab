"""Finds schedules by name among the installed entry points."""

from __future__ import annotations

import sys
from importlib.metadata import version
from inspect import isabstract
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from rewarm.errors import ScheduleError, did_you_mean
from rewarm.plugins import InstalledPlugin, find_plugin, installed_plugins
from rewarm.schedules.base import CONTRACT, Schedule
from rewarm.schedules.third_party_code import describe_error, within_time_limit

GROUP = "rewarm.schedules"
"""The group of the entry points, as in a plug-in's pyproject.toml."""

PLUGINS = {
    "d2z": "rewarm-d2z",
    "infinite": "rewarm-infinite",
    "power": "rewarm-power",
    "reuse": "rewarm-reuse",
    "sequence": "rewarm-sequence",
    "wsd": "rewarm-wsd",
    "wsd-s": "rewarm-wsd",
}
"""The schedules of the plug-ins in rewarm's repository, and the distribution of each."""

_DECAYS = ("clipped-cosine", "cosine", "linear", "inverse-sqrt", "1-sqrt")
"""Settings of `rewarm` and `no-warmup` that are schedules in other libraries, long names first."""

_MAX_IMPORT_SECONDS = 120.0
"""Importing a plug-in that needs a large library takes long from a slow network disk."""


def installed() -> list[InstalledPlugin]:
    """Returns all installed schedules, sorted by name, without importing any."""
    return installed_plugins(GROUP)


def origin(name: str) -> InstalledPlugin:
    """Returns the installed schedule of that name, without importing it.

    Raises:
        ScheduleError: no schedule has that name, or two distributions provide one.
    """
    try:
        return find_plugin(GROUP, "schedule", name, _hint)
    except ValueError as error:
        raise ScheduleError(str(error)) from None


def _hint(name: str, names: list[str]) -> str:
    """Returns how to get the schedule that a name, which is not installed, probably means."""
    if decay := next((decay for decay in _DECAYS if decay in name.replace("_", "-")), None):
        return f": a decay, and no schedule; write name: rewarm (or no-warmup) and decay: {decay}"
    known = name.replace("_", "-").removeprefix("rewarm-")
    if known in PLUGINS:
        distribution = PLUGINS[known]
        called = "it" if known == name else f"{known!r}"
        return (
            f": {called} is in the plug-in {distribution}, which is not installed; in a clone of "
            f"rewarm: pip install ./plugins/{distribution}"
        )
    return did_you_mean(name, [*names, *PLUGINS])


def identity(name: str) -> dict[str, str]:
    """Returns a schedule's name, distribution and version, as stored in checkpoints.

    Raises:
        ScheduleError: no schedule has that name, or two distributions provide one.
    """
    plugin = origin(name)
    return {"name": name, "distribution": plugin.distribution, "version": plugin.version}


def find(name: str, *, max_seconds: float = _MAX_IMPORT_SECONDS) -> type[Schedule]:
    """Returns the schedule class of that name, importing only that plug-in.

    Args:
        name: the schedule's name.
        max_seconds: the time that importing the plug-in may take.

    Raises:
        ScheduleError: the schedule is missing, ambiguous, cannot be imported, or breaks the
            contract.
    """
    plugin = origin(name)
    label = f"schedule {name!r} of {plugin.distribution} {plugin.version}"
    kind = _load(plugin, label, max_seconds)
    if not (isinstance(kind, type) and issubclass(kind, Schedule)):
        raise ScheduleError(f"{label} is not a rewarm.Schedule: {plugin.entry.value}")
    contract = vars(kind).get("contract")  # its own, not an inherited one
    if contract != CONTRACT:
        declared_contract = (
            f"contract {contract!r}" if contract else "no contract (contract: ClassVar[int])"
        )
        raise ScheduleError(
            f"{label} was built for {declared_contract} of rewarm schedules, and rewarm "
            f"{version('rewarm')} has contract {CONTRACT}; install a version of "
            f"{plugin.distribution} for contract {CONTRACT}"
        )
    if isabstract(kind):
        raise ScheduleError(f"{label} has no __call__(self, progress): {plugin.entry.value}")
    declared_name = kind.model_fields["name"].default
    if declared_name != name:
        raise ScheduleError(
            f"{label} declares the name {declared_name!r}; it should equal the name of its "
            "entry point"
        )
    return kind


def _load(plugin: InstalledPlugin, label: str, max_seconds: float) -> Any:
    """Returns what a plug-in's entry point names.

    Raises:
        ScheduleError: importing the plug-in failed, or took longer than `max_seconds`.
    """
    remedy = f"fix or uninstall {plugin.distribution}"
    try:
        if plugin.entry.module in sys.modules:
            return plugin.entry.load()
        return within_time_limit(
            plugin.entry.load,
            max_seconds,
            lambda: f"{label} cannot be imported: it takes longer than {max_seconds:g} s; {remedy}",
        )
    except (KeyboardInterrupt, ScheduleError):
        raise
    except BaseException as error:  # importing third-party code may raise anything
        raise ScheduleError(
            f"{label} cannot be imported: {describe_error(error)}; {remedy}"
        ) from error


def settings_schema(kind: type[Schedule], **options: Any) -> dict[str, Any]:
    """Returns the JSON Schema of a schedule's settings; `options` as of `model_json_schema`.

    Raises:
        ScheduleError: the plug-in raised an exception.
    """
    try:
        return kind.model_json_schema(**options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # third-party code may raise anything
        raise ScheduleError(
            f"the settings of schedule {kind.__name__} cannot be described: {describe_error(error)}"
        ) from error


def read(settings: Any, context: dict[str, Any]) -> Schedule:
    """Returns the schedule that settings such as `{name: rewarm, peak_lr: 3e-4, ...}` describe.

    Recipes, and schedules that contain others, read their schedules through this function.

    Args:
        settings: a dict of settings, or a schedule, whose settings are read again.
        context: `budget`, the Budget that spans are resolved against, and `base_lr`, a function
            that returns the base model's last learning rate; either may be None.

    Raises:
        ValueError: `settings` is not a dict, or the schedule's own checks raised an exception.
        ValidationError: there is no such schedule, or settings are wrong; errors have locations.
    """
    if isinstance(settings, Schedule):
        settings = settings.model_dump(mode="json")
    if not isinstance(settings, dict):
        raise ValueError("should be settings, such as {name: rewarm, peak_lr: 3e-4, ...}")
    name = settings.get("name")
    try:
        if not isinstance(name, str):
            if name is not None:
                raise ScheduleError("should be text")
            setting = next((key for key in settings if key != "name"), "peak_lr")
            raise ScheduleError(
                "required, but missing, since `schedule: {...}` is a whole schedule; to change one "
                f"setting of it, in an arm or after --set, write schedule.{setting}"
            )
        kind = find(name)
    except ScheduleError as error:
        problem = PydanticCustomError("recipe", str(error))
        details = InitErrorDetails(type=problem, loc=("name",), input=name)
        raise ValidationError.from_exception_data("schedule", [details]) from None
    try:
        schedule = kind.model_validate(settings, context=context)
        schedule.model_dump_json()  # a run writes it into its recipe, after it has started
        return schedule
    except (KeyboardInterrupt, ValidationError):
        raise
    except BaseException as error:  # a third-party validator may raise anything, also SystemExit
        raise ValueError(f"{name!r} cannot check its settings: {describe_error(error)}") from error
