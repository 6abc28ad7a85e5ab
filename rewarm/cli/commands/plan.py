"""`rewarm plan`: what a recipe, or a study, costs in time, memory and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.options import Json, Set, load_recipe


def plan(
    file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or a study, in YAML.")],
    overrides: Set = None,
    gpus: Annotated[
        int, typer.Option(metavar="N", help="GPUs; a study's runs are spread over them.", min=1)
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Their kind: one that was measured.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take ten steps on this machine, and go by those.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Of one GPU for an hour.", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a recipe, or a study, takes: tokens, FLOPs, hours, cost, memory, disk."""
    from rewarm.cli.cost_output import measured_speed, print_cost
    from rewarm.errors import did_you_mean
    from rewarm.estimates.cost import estimate_recipe_cost, estimate_study_cost
    from rewarm.estimates.throughput import measured_gpus, speed_on_gpu
    from rewarm.study.study_file import is_study, load_study

    if gpu and measure:
        raise typer.BadParameter("--gpu and --measure: the speed is that of one or the other")
    if price is not None and not (gpu or measure):
        raise typer.BadParameter("--price: hours are needed for it; name a --gpu, or --measure")
    known = measured_gpus()
    if gpu and gpu not in known:
        raise typer.BadParameter(
            f"--gpu {gpu}: nothing was measured on it{did_you_mean(gpu, known)} (measured: "
            f"{', '.join(known)}); on such a machine, --measure"
        )
    speed_of = speed_on_gpu(gpu) if gpu else measured_speed() if measure else None
    on_gpu = True if gpu else None
    if is_study(file):
        arms = load_study(file, overrides)
        bill = estimate_study_cost(arms, gpus=gpus, on_gpu=on_gpu, speed_of=speed_of)
    else:
        recipe = load_recipe(file, overrides)
        bill = estimate_recipe_cost(recipe, gpus=gpus, on_gpu=on_gpu, speed_of=speed_of)
    if price is not None and bill.gpu_hours is not None:
        bill = bill.model_copy(update={"price": price, "cost": price * bill.gpu_hours})
    if as_json:
        print(bill.model_dump_json(indent=1))
        return
    print_cost(bill, gpu)
