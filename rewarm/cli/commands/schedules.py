"""`rewarm schedules`: what is installed, the settings of one, and an author's `new` and `test`."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rewarm.cli.terminal_tables import plain_table, print_table
from rewarm.errors import ScheduleError

_LONG = 1.0  # seconds that an import may take without being remarked on
_TOO_LONG = 10.0

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


class _Shelf(TyperGroup):
    """Takes what is none of its commands for the name of a schedule to show."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["show", *args])


schedules = typer.Typer(cls=_Shelf, invoke_without_command=True, subcommand_metavar="[NAME]")


@schedules.callback()
def _schedules(context: typer.Context, as_json: Json = False) -> None:
    """List the installed schedules; with a NAME, its settings."""
    if context.invoked_subcommand is None:
        _list(as_json)


@schedules.command(hidden=True)
def show(name: str, as_json: Json = False) -> None:
    """Show the settings of a schedule."""
    from rewarm.schedules import find, origin

    kind = find(name)
    schema = kind.model_json_schema()
    if as_json:
        print(json.dumps(schema, indent=1))
        return
    plugin = origin(name)
    print(f"{name}  ({plugin.distribution} {plugin.version})\n{_first_line(kind)}\n")
    table = plain_table("setting", "default", "what it is")
    for setting, field in kind.model_fields.items():
        if setting != "name":
            default = "required" if field.is_required() else _plain(field.get_default())
            said = " ".join((field.description or "").split())
            choices = schema["properties"][setting].get("enum")
            table.add_row(
                setting, default, said + (f" One of: {', '.join(choices)}." if choices else "")
            )
    print_table(table)


@schedules.command()
def new(
    name: Annotated[str, typer.Argument(help="What recipes will call it.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where rewarm-NAME is written.")
    ] = Path(),
) -> None:
    """Write the beginnings of a schedule: a distribution that installs and passes its test."""
    from rewarm.schedules.new_plugin import write_plugin

    files = write_plugin(name, out)
    root = files[0].parent
    print("\n".join(str(path) for path in files))
    print(f"\nnext: pip install -e {root}, rewarm schedules test {name}, pytest {root}")


@schedules.command("test")
def conform(
    name: str,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A=VALUE", help="A setting; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold a schedule to what every schedule promises."""
    from rewarm.recipe.yaml_document import YamlDocument
    from rewarm.testing import conformance

    settings = YamlDocument("", "settings")
    for override in overrides or []:
        settings.apply_override(override)
    found = conformance(name, settings.data)
    broken = sum(how is not None for how in found.values())
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        table = plain_table("promise", "")
        for what, how in found.items():
            table.add_row(what, how or "kept")
        print_table(table)
    if broken:
        raise ScheduleError(
            f"schedule {name!r} breaks {broken} of {len(found)} promises; mend it, or tell its "
            "author"
        )


def _list(as_json: bool) -> None:
    from rewarm.schedules import find, installed

    rows: list[dict[str, str]] = []
    for one in installed():
        began = time.monotonic()
        try:
            with _limit(_TOO_LONG):
                said = _first_line(find(one.name))
        except ScheduleError as error:  # one broken plug-in must not hide the others
            said = f"cannot be used: {error}"
        if (took := time.monotonic() - began) > _LONG:
            said += f" (its import took {took:.1f} s)"
        rows.append(
            {
                "name": one.name,
                "distribution": one.distribution,
                "version": one.version,
                "help": said,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = plain_table("name", "distribution", "version", "help")
    for row in rows:
        table.add_row(*row.values())
    print_table(table)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Breaks off what takes longer: an import that hangs must not hide the other plug-ins."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"not imported within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, too_long)
    left = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, handler)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _plain(value: object) -> str:
    return "null" if value is None else str(getattr(value, "written", value))
