"""`rewarm probe`: short runs that show which schedule and replay to train with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewarm.cli.options import RecipeFile, Set, load_recipe_file
from rewarm.cli.standard_streams import output_is_summary

if TYPE_CHECKING:
    from rewarm.predict.arms import StudiedArms
    from rewarm.predict.probe_target import ProbeTarget
    from rewarm.recipe.recipe import Recipe
    from rewarm.study.study_plan import StudyPlan

_MOST_HOURS = 24 * 365


def probe(
    recipe: RecipeFile,
    hours: Annotated[
        float, typer.Option(metavar="H", help="The time for all arms, on this machine.")
    ] = 1.0,
    overrides: Set = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONSTRAINT",
            help="What the recommended recipe has to keep, as in rewarm predict --search: "
            "'upstream rise <= 0.03'; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the probe; by default RUN-probe."),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Measure the speed and print the arms, no more.")
    ] = False,
) -> None:
    """Train short arms, predict a recipe from them, and recommend a better one.

    Example: rewarm probe recipe.yaml --hours 1 --keep "upstream rise <= 0.1"
    """
    from rewarm.cli.study_output import check_and_run_study, print_study_plan
    from rewarm.predict.constraints import parse_constraint
    from rewarm.predict.probe_study import STUDY_FILE, check_new_folder, check_same_target
    from rewarm.study.study_file import load_study

    output_is_summary()
    if not 0 < hours <= _MOST_HOURS:
        raise typer.BadParameter(
            f"--hours {hours:g}: should be above 0 and at most {_MOST_HOURS:,}, such as 1 or 0.5"
        )
    loaded = load_recipe_file(recipe, overrides)
    folder = out or loaded.run_directory.with_name(f"{loaded.run_directory.name}-probe")
    study_file = folder / STUDY_FILE
    is_planned = study_file.exists()
    if is_planned:
        check_same_target(loaded, folder)
    else:
        check_new_folder(folder)  # before anything is measured
    target = _target(loaded, folder)
    for constraint in keep or []:
        parse_constraint(constraint, target.arms)  # before hours of training
    if is_planned:
        print(f"planned   {study_file}: its arms, whatever --hours is")
    else:
        _plan(loaded, target, hours, folder, write=not plan_only)
    if plan_only:
        if is_planned:
            print_study_plan(load_study(study_file))
        return
    study = load_study(study_file)
    check_and_run_study(study, 1, as_json=False)
    print()
    _recommend(recipe, overrides or [], target, read_study_arms(study), folder, keep or [])


def _target(recipe: Recipe, folder: Path) -> ProbeTarget:
    """Returns a recipe as the target of a probe, after checks of everything that it refers to."""
    from rewarm.cli.text_sharding import shard_texts
    from rewarm.predict.probe_plan import check_length
    from rewarm.predict.probe_target import check_base, probe_target
    from rewarm.runs.resolve_run import resolve

    check_base(recipe)
    check_length(recipe)
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


def read_study_arms(study: StudyPlan) -> StudiedArms:
    """Returns the arms of a study, without those in its folder that it no longer has.

    Raises:
        CheckpointError: they are too few, a run is not finished, or they do not compare.
    """
    from rewarm.cli.prediction_inputs import read_arms
    from rewarm.paths import short_path

    return read_arms([Path(short_path(str(run.directory))) for run in study.runs])


def _recommend(
    recipe_file: Path,
    overrides: list[str],
    target: ProbeTarget,
    arms: StudiedArms,
    folder: Path,
    keep: list[str],
) -> None:
    """Prints what is predicted for the recipe, and the search for a better one, which it writes.

    Raises:
        RewarmError: as `rewarm predict --search`.
    """
    from rewarm.cli.prediction_inputs import checked_recipe
    from rewarm.cli.prediction_output import curve_table, final_table
    from rewarm.cli.recipe_search import SearchOptions, search_recipe
    from rewarm.cli.terminal_tables import print_result_table
    from rewarm.predict.prediction import fit_arms
    from rewarm.predict.probe_study import RECOMMENDED_FILE

    recommended = folder / RECOMMENDED_FILE
    recommended.unlink(missing_ok=True)  # that of an earlier call may not keep these constraints
    name = str(recipe_file)
    recipe = checked_recipe(arms, name, load_recipe_file(recipe_file, overrides))
    fitted = fit_arms(arms)
    prediction = fitted.predict(name, recipe, arms.replay_share(recipe))
    print_result_table(final_table([prediction]), names=2)
    print()
    print_result_table(curve_table(prediction))
    print()
    if target.replay and not arms.replay_share(recipe):  # a search varies what the recipe replays
        overrides = [*overrides, f"data.train={json.dumps(target.train(target.replay))}"]
        print(f"The search starts from the recipe with {target.replay:.0%} of replay.\n")
    options = SearchOptions(keep, [], None, recommended, overwrite=True)
    search_recipe(fitted, recipe_file, overrides, options, out=None, as_json=False)
