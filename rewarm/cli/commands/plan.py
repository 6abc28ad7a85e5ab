"""`rewarm plan`: what a recipe, or a study, costs in time, memory and disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewarm.cli.options import Json, RecipeOrStudy, Set, load_recipe_file
from rewarm.cli.standard_streams import print_json

if TYPE_CHECKING:
    from rewarm.cli.planned_losses import PlannedLosses
    from rewarm.estimates.cost import CostEstimate
    from rewarm.estimates.throughput import SpeedOf
    from rewarm.recipe.recipe import Recipe
    from rewarm.study.study_plan import StudyPlan


def plan(
    file: RecipeOrStudy,
    overrides: Set = None,
    gpus: Annotated[
        int,
        typer.Option(
            metavar="N", help="GPUs that share a run; a study's runs are spread over them.", min=1
        ),
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Their type: one that was measured.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the speed here: take ten steps.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Of one GPU for an hour.", min=0)
    ] = None,
    predict: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN_OR_STUDY",
            help="Finished runs, folders of runs, or studies, from which the last losses are "
            "predicted: see `rewarm predict`. May be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a recipe, or a study, costs: tokens, FLOPs, hours, price, memory, disk.

    Example: rewarm plan recipe.yaml --gpu h100 --gpus 8 --price 2.5
    """
    if price is not None and not (gpu or measure):
        raise typer.BadParameter("--price: needs hours; name a --gpu, or --measure")
    speed_of = _speed(gpu, measure=measure)
    study = _study(file, overrides)
    losses = _losses(predict, study or load_recipe_file(file, overrides)) if predict else None
    if measure:
        from rewarm.cli.text_sharding import shard_texts
        from rewarm.study.preflight_study import checkable_recipes

        shard_texts(checkable_recipes(study) if study else [load_recipe_file(file, overrides)])
    on_gpu = True if gpu or gpus > 1 else None
    estimate = _estimate(study or file, overrides, gpus, speed_of, on_gpu=on_gpu)
    if price is not None and estimate.gpu_hours is not None:
        cost = price * estimate.gpu_hours
        estimate = estimate.model_copy(update={"price": price, "cost": cost})
    if as_json:
        from rewarm.cli.seeds_output import seed_notes

        notes = [f"{about}: {text}" for about, text in seed_notes(study, estimate)] if study else []
        content = estimate.model_dump(mode="json") | ({"notes": notes} if study else {})
        for cost in content["costs"]:
            if losses and cost["name"] in losses.runs:
                cost["predicted"] = losses.as_json(cost["name"])
        print_json(json.dumps(content, indent=1))
    else:
        from rewarm.cli.cost_output import print_cost

        print_cost(estimate, gpu, study, losses)


def _speed(gpu: str | None, *, measure: bool) -> SpeedOf | None:
    """Returns what estimates or measures a speed, as the options say."""
    from rewarm.cli.cost_output import speed_by_measuring
    from rewarm.errors import did_you_mean
    from rewarm.estimates.throughput import measured_gpus, speed_on_gpu

    if gpu and measure:
        raise typer.BadParameter("--gpu and --measure: choose one")
    known = measured_gpus()
    alike = [name for name in known if gpu and name[0] == gpu[0].lower()]  # not h100 for a100
    if gpu and gpu not in known:
        raise typer.BadParameter(
            f"--gpu {gpu}: was not measured{did_you_mean(gpu, alike)} (measured: "
            f"{', '.join(known)}); on a machine with such a GPU, use --measure"
        )
    if gpu:
        return speed_on_gpu(gpu)
    return speed_by_measuring() if measure else None


def _study(file: Path, overrides: list[str] | None) -> StudyPlan | None:
    """Returns the study in a file; None if it is a recipe."""
    from rewarm.study.study_file import is_study, load_study

    return load_study(file, overrides) if is_study(file) else None


def _losses(sources: list[Path], planned: StudyPlan | Recipe) -> PlannedLosses:
    """Returns the predicted losses of a recipe's run, or of the arms of a study."""
    from rewarm.cli.planned_losses import predict_planned
    from rewarm.recipe.recipe import Recipe

    if isinstance(planned, Recipe):
        return predict_planned(sources, {str(planned.run_directory): planned})
    arms = {arm: planned.runs_of(arm)[0].recipe for arm in planned.study.arms}
    return predict_planned(sources, arms)


def _estimate(
    source: Path | StudyPlan,
    overrides: list[str] | None,
    gpus: int,
    speed_of: SpeedOf | None,
    *,
    on_gpu: bool | None,
) -> CostEstimate:
    from rewarm.estimates.cost import estimate_recipe_cost, estimate_study_cost

    if isinstance(source, Path):
        recipe = load_recipe_file(source, overrides)
        return estimate_recipe_cost(recipe, gpus=gpus, on_gpu=on_gpu, speed_of=speed_of)
    return estimate_study_cost(source, gpus=gpus, on_gpu=on_gpu, speed_of=speed_of)
