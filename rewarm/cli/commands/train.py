"""`rewarm train`: runs a recipe."""

from __future__ import annotations

import math
import os
import sys
from typing import Annotated

import typer

from rewarm.cli.launcher import count_processes, launch
from rewarm.cli.options import (
    AcceptChanges,
    GpuCount,
    RecipeFile,
    Resume,
    ResumeFrom,
    Set,
    load_recipe_file,
)
from rewarm.cli.process_setup import STARTED, STARTED_VARIABLE
from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.worker_process import (
    check_launch_variables,
    check_launcher_decides,
    is_first,
    is_worker,
)


def train_command(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Set = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    accept_changes: AcceptChanges = False,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="3h55m", help="Save and exit within this wall-clock time, with exit code 75."
        ),
    ] = None,
    gpus: GpuCount = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Start again from the last checkpoint, so many times, if a process is killed.",
        ),
    ] = 0,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST",
            help="Write a trace of these steps, such as 10:20, which ui.perfetto.dev opens.",
        ),
    ] = None,
) -> None:
    """Train a model as a recipe says; continue an interrupted run with --resume.

    Example: rewarm train recipe.yaml --set run=runs/longer --set tokens=1B
    """
    from rewarm.cli.text_sharding import shard_texts
    from rewarm.quantities import parse_duration
    from rewarm.recipe.gpu_sharing import shard_size_on
    from rewarm.recipe.profiled_steps import check_profiled_steps, parse_profiled_steps
    from rewarm.runs.resolve_run import resolve

    try:
        deadline = STARTED + parse_duration(time_limit) if time_limit else math.inf
    except ValueError as error:
        raise typer.BadParameter(f"--time-limit {time_limit}: {error}") from None
    try:
        profiled_steps = parse_profiled_steps(profile) if profile else None
    except ValueError as error:
        raise typer.BadParameter(f"--profile {profile}: {error}") from None
    loaded = load_recipe_file(
        recipe, overrides
    )  # a mistake in it is reported before torch is imported
    check_profiled_steps(profiled_steps, loaded.steps)
    output_is_summary()

    def check() -> None:
        resolve(
            loaded, resume=resume, resume_from=resume_from, accept_changes=accept_changes
        ).raise_problems()

    if is_worker():
        check_launch_variables()
        if STARTED_VARIABLE not in os.environ:
            check_launcher_decides(gpus, max_restarts)
            shard_texts([loaded], check=check, deadline=deadline)
    else:
        processes = count_processes(gpus)
        shard_size_on(loaded, processes)  # a mistake is reported before any process starts
        shard_texts([loaded], check=check, deadline=deadline)
        if processes > 1 or max_restarts:
            raise typer.Exit(launch(context.obj, sys.argv[1:], processes, max_restarts))
    from rewarm.training.loop import train

    checkpoint = train(
        loaded,
        resume=resume,
        resume_from=resume_from,
        accept_changes=accept_changes,
        deadline=deadline,
        profile=profiled_steps,
    )
    if is_first():
        print(checkpoint)
