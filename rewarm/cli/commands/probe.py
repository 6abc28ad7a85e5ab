"""`rewarm probe`: short runs that show which schedule and replay to train with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewarm.cli.options import RecipeFile, Set, load_recipe_file
from rewarm.cli.standard_streams import output_is_summary

if TYPE_CHECKING:
    from rewarm.predict.probe_target import ProbeTarget
    from rewarm.recipe.recipe import Recipe


def probe(
    recipe: RecipeFile,
    hours: Annotated[
        float, typer.Option(metavar="H", help="The time for all arms, on this machine.")
    ] = 1.0,
    overrides: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the probe; by default RUN-probe."),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Measure the speed and print the arms only.")
    ] = False,
) -> None:
    """Find out how to re-warm: train short arms, predict the recipe, recommend a better one.

    Example: rewarm probe recipe.yaml --hours 1
    """
    from rewarm.cli.study_output import check_and_run_study, print_study_plan
    from rewarm.predict.probe_study import STUDY_FILE, check_same_target
    from rewarm.study.study_file import load_study

    output_is_summary()
    if not (math.isfinite(hours) and hours > 0):
        raise typer.BadParameter(f"--hours {hours:g}: should be a time above 0, such as 1 or 0.5")
    loaded = load_recipe_file(recipe, overrides)
    folder = out or loaded.run_directory.with_name(f"{loaded.run_directory.name}-probe")
    target = _target(loaded, folder)
    study_file = folder / STUDY_FILE
    if study_file.exists():
        check_same_target(loaded, folder)
        print(f"probe     {study_file}, planned before: --hours is not used again")
    else:
        _plan(loaded, target, hours, folder, write=not plan_only)
    if plan_only:
        if study_file.exists():
            print_study_plan(load_study(study_file))
        return
    check_and_run_study(load_study(study_file), 1, as_json=False)


def _target(recipe: Recipe, folder: Path) -> ProbeTarget:
    """Returns a recipe as the target of a probe, after checks of everything that it refers to."""
    from rewarm.cli.text_sharding import shard_texts
    from rewarm.predict.probe_target import check_base, probe_target
    from rewarm.runs.resolve_run import resolve

    check_base(recipe)
    # In a directory of its own: whether the recipe has been trained does not matter.
    own = recipe.model_copy(update={"run": str(folder.absolute() / "target")})
    shard_texts([own])
    resolved = resolve(own)
    resolved.raise_problems()
    return probe_target(resolved)


def _plan(recipe: Recipe, target: ProbeTarget, hours: float, folder: Path, *, write: bool) -> None:
    """Plans the arms, prints them, and writes the files of the probe."""
    from rewarm.cli.probe_output import measure_costs, print_probe_plan
    from rewarm.predict.probe_plan import plan_probes, shortest_arm
    from rewarm.predict.probe_study import arm_recipe, write_probe_study

    shortest = shortest_arm(recipe.steps)
    costs = measure_costs(arm_recipe(target, shortest, folder))
    plan = plan_probes(recipe.steps, costs, hours, target.replay)
    print_probe_plan(target, plan, costs, hours)
    if write:
        write_probe_study(recipe, target, plan, folder)
