"""`rewarm compare`: runs every arm of a study with every seed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.options import Json, Set
from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.terminal_tables import print_notes


def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file, in YAML.")],
    overrides: Set = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Maximum number of runs at once; each gets an equal number of the visible GPUs.",
            min=1,
            max=64,
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Run every arm of a study with every seed, and print the results.

    Example: rewarm compare study.yaml --workers 2
    """
    from rewarm.cli.study_output import run_and_print_study
    from rewarm.cli.text_sharding import shard_texts
    from rewarm.paths import short_path
    from rewarm.study.preflight_study import check_study, checkable_recipes
    from rewarm.study.study_file import load_study
    from rewarm.study.worker_gpus import divide_gpus, visible_gpus
    from rewarm.study.worker_threads import fix_threads

    output_is_summary()
    plan = load_study(study, overrides)
    worker_gpus = divide_gpus(visible_gpus(), workers)
    check_study(plan, gpus=worker_gpus.per_worker)
    if shard_texts(checkable_recipes(plan)):
        check_study(plan, gpus=worker_gpus.per_worker)
    threads = None
    if worker_gpus.per_worker:
        line = f"GPUs      {worker_gpus.as_text()}"
    else:
        threads, note = fix_threads(Path(short_path(plan.study.study)), workers)
        line = f"threads   {note}"
    with suppress(OSError):  # a closed terminal must not end the study
        print_notes([line], indent=10, stderr=True)
    run_and_print_study(plan, worker_gpus, threads=threads, as_json=as_json)
