"""`rewarm schedules`: the installed schedules, the settings of one, and `new` and `test`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rewarm.cli.help_pages import Command, Group
from rewarm.cli.options import Json
from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.terminal_tables import plain_table, print_table
from rewarm.errors import ScheduleError

_SLOW_IMPORT = 1.0  # seconds; the list reports the time of slower imports
_IMPORT_TIMEOUT = 10.0  # seconds


class _ScheduleNames(Group):
    """Interprets a word that is not a command as the name of a schedule to show."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        is_command = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if is_command else ["show", *args])


schedules = typer.Typer(
    cls=_ScheduleNames, invoke_without_command=True, subcommand_metavar="[NAME|new|test]"
)


@schedules.callback()
def _schedules(context: typer.Context, as_json: Json = False) -> None:
    """List the installed schedules; with a NAME, its settings.

    Example: rewarm schedules rewarm
    """
    if context.invoked_subcommand is None:
        _list(as_json)


@schedules.command(cls=Command, hidden=True)
def show(name: str, as_json: Json = False) -> None:
    """Show the settings of a schedule."""
    from rewarm.schedules import find, origin, settings_schema

    kind = find(name)
    schema = settings_schema(kind)
    if as_json:
        print(json.dumps(schema, indent=1))
        return
    plugin = origin(name)
    print(f"{name}  ({plugin.distribution} {plugin.version})\n{_first_line(kind)}\n")
    table = plain_table("setting", "default", "description")
    for setting, field in kind.model_fields.items():
        if setting != "name":
            default = "required" if field.is_required() else _as_text(field.get_default())
            description = " ".join((field.description or "").split())
            choices = schema["properties"][setting].get("enum")
            if choices:
                description += f" One of: {', '.join(choices)}."
            table.add_row(setting, default, description)
    print_table(table)


@schedules.command("new", cls=Command)
def new_schedule(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of the schedule in recipes.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder in which to create rewarm-NAME.")
    ] = Path(),
) -> None:
    """Write a new schedule plug-in: a distribution that installs and passes its tests.

    Example: rewarm schedules new sawtooth --out plugins
    """
    from rewarm.schedules.new_plugin import write_plugin

    output_is_summary()
    files = write_plugin(name, out)
    root = files[0].parent
    print("\n".join(str(path) for path in files))
    print(
        f"\nnext: pip install -e {root} pytest, rewarm schedules test {name}, "
        f"python -m pytest {root}"
    )


@schedules.command("test", cls=Command)
def check_conformance(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An installed schedule.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A=VALUE", help="A setting; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a schedule fulfills the contract of schedules.

    Example: rewarm schedules test rewarm --set peak_lr=3e-4 --set min_lr=3e-5
    """
    from rewarm.recipe.yaml_document import YamlDocument
    from rewarm.testing import conformance

    settings = YamlDocument("", "settings")
    for override in overrides or []:  # as after --set of other commands, or without the section
        settings.apply_override(override.removeprefix("schedule."), f"--set {override}")
    results = conformance(name, settings.data)
    broken = sum(violation is not None for violation in results.values())
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        table = plain_table("promise", "")
        for promise, violation in results.items():
            table.add_row(promise, violation or "kept")
        print_table(table)
    if broken:
        raise ScheduleError(
            f"schedule {name!r} breaks {broken} of {len(results)} promises; fix it, or report it "
            "to its author"
        )


def _list(as_json: bool) -> None:
    from rewarm.schedules import find, installed

    rows: list[dict[str, str]] = []
    for plugin in installed():
        start = time.monotonic()
        try:
            # a hanging import must not hide the other plug-ins
            description = _first_line(find(plugin.name, max_seconds=_IMPORT_TIMEOUT))
        except ScheduleError as error:  # one broken plug-in must not hide the others
            description = f"cannot be used: {error}"
        if (seconds := time.monotonic() - start) > _SLOW_IMPORT:
            description += f" (its import took {seconds:.1f} s)"
        rows.append(
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "help": description,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = plain_table("name", "distribution", "version", "help")
    for row in rows:
        table.add_row(*row.values())
    print_table(table)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _as_text(value: object) -> str:
    return "null" if value is None else str(getattr(value, "written", value))
