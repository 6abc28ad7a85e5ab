"""`rewarm compare`: runs every arm of a study with every seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.options import Json, Set
from rewarm.cli.standard_streams import output_is_summary


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
    from rewarm.cli.study_output import check_and_run_study
    from rewarm.study.study_file import load_study

    output_is_summary()
    check_and_run_study(load_study(study, overrides), workers, as_json=as_json)
