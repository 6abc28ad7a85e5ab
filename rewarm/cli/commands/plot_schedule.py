"""`rewarm plot-schedule`: the learning rate of recipes, as a plot or as numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rewarm.cli.options import Set, load_recipe_file
from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.terminal_tables import print_table

if TYPE_CHECKING:
    from rewarm.plots.schedule_preview import Curve, RateAtPosition
    from rewarm.recipe.recipe import Recipe

_WHOLE_RUN = ":"
_TERMINAL_POINTS = 1000


def plot_schedule(
    recipe_files: Annotated[
        list[Path] | None, typer.Argument(metavar="RECIPE", help="Recipes to draw in one plot.")
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Draw a schedule without a recipe: a name, with its settings by --set, or "
            "'{name: wsd, decay: 10%}'; may be repeated.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="The token budget for --schedule: 10B. Batches have 2,097,152 tokens unless "
            "--set batch.tokens changes it.",
        ),
    ] = None,
    overrides: Set = None,
    zoom: Annotated[
        str,
        typer.Option(
            metavar="FROM:TO",
            show_default=False,
            help="Draw only this part of each run, at every step: 0:2%, :500, 98%:, 1B:2B.",
        ),
    ] = _WHOLE_RUN,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION,...",
            help="Print the exact learning rates at the steps nearest to these positions instead: "
            "1,656,1%,240B (step, step, share of the run, tokens).",
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="Print --at as table (default), csv or json."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the curves to a .png, .svg, .pdf, .csv or .json file instead of the "
            "terminal; in a folder, to schedule.png.",
        ),
    ] = None,
) -> None:
    """Draw the learning rate of recipes, computed by the function that training uses.

    Example: rewarm plot-schedule recipe.yaml other.yaml --zoom 0:2%
    """
    _check_options(zoom, at, file_format, out)
    if out is not None and (out.is_dir() or not out.suffix):
        out = out / "schedule.png"
    recipes = _load_recipes(recipe_files or [], schedule or [], tokens, overrides or [])
    if at is not None:
        _print_rates(recipes, at, file_format or "table")
        return
    curves = _compute_curves(recipes, zoom, out)
    if out is not None:
        _save_curves(curves, out)
    else:
        _draw_in_terminal(curves)


def _check_options(zoom: str, at: str | None, file_format: str | None, out: Path | None) -> None:
    if at is not None and (out is not None or zoom != _WHOLE_RUN):
        raise typer.BadParameter("--at prints rates; it cannot be used with --out or --zoom")
    if file_format is not None and at is None:
        raise typer.BadParameter(
            "--format needs --at; write curves with --out FILE.csv or --out FILE.json"
        )
    if file_format not in (None, "table", "csv", "json"):
        raise typer.BadParameter(f"--format {file_format}: should be table, csv or json")


def _load_recipes(
    files: list[Path], schedules: list[str], tokens: str | None, overrides: list[str]
) -> dict[str, Recipe]:
    """Returns the recipes by unique name: the stem of the file, its path, or the schedule."""
    from rewarm.checkpoints.lineage import last_lr_of_base
    from rewarm.plots.schedule_preview import recipe_for_schedule

    if not (files or schedules):
        raise typer.BadParameter("give a RECIPE to draw, or --schedule NAME --tokens COUNT")
    if tokens is not None and not schedules:
        raise typer.BadParameter("--tokens needs --schedule; for a recipe, use --set tokens=COUNT")
    stems = [path.stem for path in files]
    names = stems if len({*stems, *schedules}) == len(stems + schedules) else map(str, files)
    named = [
        (name, load_recipe_file(path, overrides)) for name, path in zip(names, files, strict=True)
    ]
    named += [
        (text, recipe_for_schedule(text, tokens, overrides, base_lr=last_lr_of_base))
        for text in schedules
    ]
    recipes: dict[str, Recipe] = {}
    for i, (name, recipe) in enumerate(named):
        namesakes = sum(name == other for other, _ in named[:i])
        recipes[f"{name} ({namesakes + 1})" if namesakes else name] = recipe
    return recipes


def _compute_curves(recipes: dict[str, Recipe], zoom: str, out: Path | None) -> list[Curve]:
    from rewarm.plots.schedule_preview import (
        MAX_POINTS,
        MAX_SUMMED_STEPS,
        compute_curve,
        parse_step_range,
    )

    for name, recipe in recipes.items():
        try:
            parse_step_range(zoom, recipe)
        except ValueError as error:
            prefix = f"{name}: " if len(recipes) > 1 else ""
            raise typer.BadParameter(f"--zoom {zoom}: {prefix}{error}") from None
    if out is None:
        max_points = _TERMINAL_POINTS
    elif zoom != _WHOLE_RUN and out.suffix in (".csv", ".json"):
        max_points = MAX_SUMMED_STEPS
    else:
        max_points = MAX_POINTS
    return [compute_curve(name, recipe, max_points, zoom) for name, recipe in recipes.items()]


def _save_curves(curves: list[Curve], out: Path) -> None:
    from rewarm.plots.schedule_figure import save_schedules
    from rewarm.table_cells import plural

    output_is_summary()
    save_schedules(curves, out)
    print(f"{out}: {plural(len(curves), 'curve')}")


def _draw_in_terminal(curves: list[Curve]) -> None:
    from rewarm.plots.terminal_plot import draw_schedules

    console = Console()
    color = console.color_system is not None and not console.no_color
    print(draw_schedules(curves, color=color))


def _print_rates(recipes: dict[str, Recipe], positions: str, file_format: str) -> None:
    """Prints the learning rates at positions as a table, as CSV or as JSON."""
    from rewarm.plots.schedule_figure import write_csv
    from rewarm.plots.schedule_preview import RateAtPosition, rates_at_positions

    try:
        rates = rates_at_positions(recipes, positions)
    except ValueError as error:
        raise typer.BadParameter(f"--at {positions}: {error}") from None
    if file_format == "csv":
        write_csv(RateAtPosition._fields, rates, sys.stdout)
    elif file_format == "json":
        print(json.dumps([rate._asdict() for rate in rates], indent=1))
    else:
        print_table(_rates_table(rates))


def _rates_table(rates: list[RateAtPosition]) -> Table:
    from rewarm.plots.axes import format_rate

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", overflow="fold")
    for column in ("at", "step", "tokens", "progress", "rate"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for rate in rates:
        table.add_row(
            "" if rate.recipe == previous else rate.recipe,
            rate.at,
            f"{rate.step:,}",
            f"{rate.tokens:,}",
            f"{rate.progress:.4%}",
            format_rate(rate.lr, 7),
        )
        previous = rate.recipe
    return table
