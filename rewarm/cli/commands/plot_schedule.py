"""`rewarm plot-schedule`: the learning rate before anything is trained, drawn or in numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rewarm.cli.options import Set, load_recipe
from rewarm.cli.terminal_tables import print_table

if TYPE_CHECKING:
    from rewarm.recipe.recipe import Recipe


def plot_schedule(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="RECIPE", help="Recipes to overlay.")
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A schedule without a recipe, with its settings by --set, or as "
            "'{name: wsd, decay: 10%}'; may be repeated.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="How long --schedule runs: 10B; in batches of 2,097,152 unless "
            "--set batch.tokens says otherwise.",
        ),
    ] = None,
    overrides: Set = None,
    zoom: Annotated[
        str,
        typer.Option(
            metavar="FROM:TO",
            show_default=False,
            help="Draw only this part of each run, every step of it: 0:2%, :500, 98%:, 1B:2B.",
        ),
    ] = ":",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE,...",
            help="Print the exact rates at the steps nearest to these places instead: "
            "1,656,1%,240B (step, step, share, tokens).",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORM", help="Print --at as table (if not said), csv or json."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the curves to a .png, .svg, .csv or .json instead of the terminal.",
        ),
    ] = None,
) -> None:
    """Draw the learning rate of recipes, by the function that trains."""
    from rewarm.plots.schedule_figure import save_schedules
    from rewarm.plots.schedule_preview import (
        MOST_POINTS,
        MOST_STEPS,
        compute_curve,
        parse_step_range,
    )
    from rewarm.plots.terminal_plot import draw_schedules

    if at is not None and (out is not None or zoom != ":"):
        raise typer.BadParameter("--at prints values at places; it goes without --out and --zoom")
    if form is not None and at is None:
        raise typer.BadParameter(
            "--format goes with --at; write curves with --out FILE.csv or .json"
        )
    if form not in (None, "table", "csv", "json"):
        raise typer.BadParameter(f"--format {form}: should be table, csv or json")
    runs = _to_draw(files or [], schedule or [], tokens, overrides or [])
    if at is not None:
        _print_values(runs, at, form or "table")
        return
    most = 1000
    if out:
        every = zoom != ":" and out.suffix in (".csv", ".json")
        most = MOST_STEPS if every else MOST_POINTS
    for name, run in runs.items():
        try:
            parse_step_range(zoom, run)
        except ValueError as error:
            where = f"{name}: " if len(runs) > 1 else ""
            raise typer.BadParameter(f"--zoom {zoom}: {where}{error}") from None
    curves = [compute_curve(name, run, most, zoom) for name, run in runs.items()]
    if out:
        save_schedules(curves, out)
        print(f"{out}: {len(curves)} {'curve' if len(curves) == 1 else 'curves'}")
    else:
        console = Console()
        color = console.color_system is not None and not console.no_color
        print(draw_schedules(curves, color=color))


def _to_draw(
    files: list[Path], schedules: list[str], tokens: str | None, overrides: list[str]
) -> dict[str, Recipe]:
    """Returns the recipes by names that tell them apart."""
    from rewarm.checkpoints.lineage import last_lr_of_base
    from rewarm.plots.schedule_preview import recipe_for_schedule

    if not (files or schedules):
        raise typer.BadParameter("name a RECIPE to draw, or --schedule NAME --tokens COUNT")
    if tokens is not None and not schedules:
        raise typer.BadParameter("--tokens goes with --schedule; for a recipe, --set tokens=COUNT")
    stems = [path.stem for path in files]
    names = stems if len({*stems, *schedules}) == len(stems + schedules) else map(str, files)
    runs: dict[str, Recipe] = {}
    drawn = [(name, load_recipe(path, overrides)) for name, path in zip(names, files, strict=True)]
    drawn += [
        (one, recipe_for_schedule(one, tokens, overrides, base_lr=last_lr_of_base))
        for one in schedules
    ]
    for name, run in drawn:
        again = sum(name == other for other, _ in drawn[: len(runs)])
        runs[f"{name} ({again + 1})" if again else name] = run
    return runs


def _print_values(runs: dict[str, Recipe], at: str, form: str) -> None:
    from rewarm.plots.axes import format_rate
    from rewarm.plots.schedule_figure import write_csv
    from rewarm.plots.schedule_preview import (
        RateAtPosition,
        rates_at_positions,
    )

    try:
        values = rates_at_positions(runs, at)
    except ValueError as error:
        raise typer.BadParameter(f"--at {at}: {error}") from None
    if form == "csv":
        write_csv(RateAtPosition._fields, values, sys.stdout)
        return
    if form == "json":
        print(json.dumps([one._asdict() for one in values], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", overflow="fold")
    for column in ("at", "step", "tokens", "progress", "rate"):
        table.add_column(column, justify="right", no_wrap=True)
    above = None
    for one in values:
        name = "" if one.recipe == above else one.recipe
        progress, rate = f"{one.progress:.4%}", format_rate(one.lr, 7)
        table.add_row(name, one.at, f"{one.step:,}", f"{one.tokens:,}", progress, rate)
        above = one.recipe
    print_table(table)
