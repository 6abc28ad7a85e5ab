"""`rewarm predict`: the losses of runs that were never made, from runs that were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewarm.cli.options import Json, Set, load_recipe_file
from rewarm.cli.prediction_inputs import checked_recipe, read_arms
from rewarm.cli.recipe_search import SearchOptions, check_new_file, search_recipe
from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.terminal_tables import print_notes, print_result_table

if TYPE_CHECKING:
    from rewarm.predict.arms import StudiedArms
    from rewarm.predict.prediction import FittedArms, Prediction
    from rewarm.recipe.recipe import Recipe


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_STUDY... [RECIPE...]",
            help="Finished runs, folders of runs, or studies to learn from; then recipes to "
            "predict.",
        ),
    ],
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Predict a schedule without a recipe: a name, with its settings by --set, or "
            "'{name: wsd, peak_lr: 1e-3, decay: 10%}'; all else is as in the first run. May be "
            "repeated.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="The tokens of --schedule (those of the first run), or the most of --search (the "
            "recipe's own).",
        ),
    ] = None,
    replay: Annotated[
        str,
        typer.Option(metavar="SHARE", help="The share of old data of --schedule, such as 5%."),
    ] = "0",
    overrides: Set = None,
    search: Annotated[
        bool,
        typer.Option("--search", help="Search for the best recipe, starting from RECIPE."),
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONSTRAINT",
            help="What --search has to keep: 'upstream rise <= 0.03', 'downstream fall >= 0.5', "
            "'upstream <= 3.2', in nats; may be repeated.",
        ),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=VALUES",
            help="What --search tries for peak, minimum, warmup, decay, length or replay: "
            "peak=5e-4:2e-3, replay=0,5%, decay=cosine; may be repeated.",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the recipe that --search recommends."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let --write replace a file.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a figure: .png, .svg, .pdf; or a .html page."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Predict beyond the limits of docs/predict.md, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict both losses of a schedule before training it, from a few finished runs.

    Example: rewarm predict runs/probes recipe.yaml --out predicted.png
    """
    from rewarm.predict.prediction import fit_arms

    output_is_summary()
    _check_out(out)
    sources, recipe_files = _split(paths)
    schedules = schedule or []
    if not (recipe_files or schedules):
        raise typer.BadParameter("give a RECIPE to predict, or --schedule NAME")
    share = _parse_replay(replay, schedules)
    if tokens is not None and not (schedules or search):
        raise typer.BadParameter(
            "--tokens needs --schedule or --search; for a recipe, use --set tokens=COUNT"
        )
    options = SearchOptions(keep or [], ranges or [], tokens, write, overwrite)
    _check_search(options, len(recipe_files), schedules, is_search=search, force=force)
    arms = read_arms(sources)
    targets = {
        str(path): checked_recipe(arms, str(path), load_recipe_file(path, overrides))
        for path in recipe_files
    }
    if search:
        fitted = fit_arms(arms)
        search_recipe(fitted, recipe_files[0], overrides or [], options, out=out, as_json=as_json)
        return
    runs = [(name, recipe, arms.replay_share(recipe)) for name, recipe in targets.items()]
    for text in schedules:
        runs.append((text, _recipe_with(arms.recipe, text, tokens, overrides or []), share))
    if not force:
        _refuse_beyond_limits(arms, runs)
    fitted = fit_arms(arms)
    predictions = [fitted.predict(*run) for run in runs]
    if as_json:
        from rewarm.cli import prediction_output

        print(json.dumps(prediction_output.predictions_as_json(fitted, predictions), indent=1))
    else:
        _print(fitted, predictions)
    if out is not None:  # last: what was computed is not lost if the file cannot be written
        _save(fitted, predictions, out)
        if not as_json:
            from rewarm.table_cells import plural

            print(f"{out}: {plural(len(predictions), 'run')}")


def _check_out(out: Path | None) -> None:
    from rewarm.report.prediction_page import PREDICTION_FORMATS

    if out is not None and out.suffix.removeprefix(".").lower() not in PREDICTION_FORMATS:
        raise typer.BadParameter(f"--out {out}: should end with .{', .'.join(PREDICTION_FORMATS)}")


def _check_search(
    options: SearchOptions, recipes: int, schedules: list[str], *, is_search: bool, force: bool
) -> None:
    given = {
        "--keep": options.keep,
        "--range": options.ranges,
        "--write": options.write,
        "--overwrite": options.overwrite,
    }
    if not is_search:
        for name, value in given.items():
            if value:
                raise typer.BadParameter(f"{name} needs --search")
        return
    if schedules or recipes != 1:
        raise typer.BadParameter("--search starts from one RECIPE; name it after the runs")
    if force:
        raise typer.BadParameter("--force: a search stays within the limits of docs/predict.md")
    if options.overwrite and options.write is None:
        raise typer.BadParameter("--overwrite needs --write FILE")
    if options.write is not None:
        check_new_file(options.write, overwrite=options.overwrite)


def _split(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Returns the runs and studies among paths, and the recipes: files that are no study."""
    from rewarm.study.study_file import is_study

    recipes = [
        path
        for path in paths
        if (path.is_file() and not is_study(path))
        or (path.suffix in (".yaml", ".yml") and not path.exists())
    ]
    sources = [path for path in paths if path not in recipes]
    if not sources:
        raise typer.BadParameter(
            f"{paths[0]}: a recipe to predict; name the runs to learn from before it"
        )
    return sources, recipes


def _parse_replay(text: str, schedules: list[str]) -> float:
    from rewarm.quantities import parse_share

    try:
        share = parse_share(text)
    except ValueError as error:
        raise typer.BadParameter(f"--replay {text}: {error}") from None
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"--replay {text}: should be from 0 to 100%")
    if share and not schedules:
        raise typer.BadParameter("--replay needs --schedule; a recipe states its own in data.train")
    return share


def _recipe_with(recipe: Recipe, schedule: str, tokens: str | None, overrides: list[str]) -> Recipe:
    """Returns the recipe of the first run with another schedule and length."""
    from rewarm.checkpoints.lineage import last_lr_of_base
    from rewarm.recipe.recipe import validate_recipe
    from rewarm.recipe.yaml_document import YamlDocument

    option = f"--schedule {schedule}"
    document = YamlDocument(recipe.to_yaml(), "--schedule")
    text = schedule if schedule.lstrip().startswith("{") else f"{{name: {schedule}}}"
    document.apply_override(f"schedule={text}", option)
    if tokens is not None:
        document.apply_override(f"tokens={tokens}", f"--tokens {tokens}")
    for override in overrides:
        document.apply_override(override)
    return validate_recipe(document, base_lr=last_lr_of_base)


def _refuse_beyond_limits(arms: StudiedArms, runs: list[tuple[str, Recipe, float]]) -> None:
    from rewarm.errors import RecipeError
    from rewarm.predict.reach import reach_of

    refusals = [
        f"{name}: {refusal}"
        for name, recipe, replay in runs
        for refusal in reach_of(arms, arms.curve(recipe, [recipe.steps]), replay).refusals
    ]
    if refusals:
        raise RecipeError(
            [*refusals, "train an arm that is nearer, or predict all the same with --force"]
        )


def _save(fitted: FittedArms, predictions: list[Prediction], out: Path) -> None:
    from rewarm.cli import prediction_output
    from rewarm.plots.prediction_figure import draw_predictions
    from rewarm.report.prediction_page import save_prediction

    save_prediction(
        out,
        lambda: draw_predictions(fitted.arms, predictions),
        title=f"Predicted losses of {', '.join(prediction.name for prediction in predictions)}",
        notes=[*prediction_output.fit_notes(fitted), *prediction_output.reach_notes(predictions)],
        tables=[
            prediction_output.final_table(predictions),
            *map(prediction_output.curve_table, predictions),
            prediction_output.accuracy_table(fitted)._replace(
                caption=prediction_output.ERRORS_NOTE
            ),
        ],
    )


def _print(fitted: FittedArms, predictions: list[Prediction]) -> None:
    from rewarm.cli import prediction_output

    print_notes(prediction_output.fit_notes(fitted))
    print()
    print_result_table(prediction_output.final_table(predictions), names=2)
    print()
    print_notes(prediction_output.reach_notes(predictions))
    for prediction in predictions:
        print()
        print_result_table(prediction_output.curve_table(prediction))
    print()
    print_result_table(prediction_output.accuracy_table(fitted))
    print_notes([prediction_output.ERRORS_NOTE])
