"""`rewarm doctor`: what a bug report needs about this machine, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.options import Json


def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where runs are written: its disk is measured.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Print versions, devices, limits and speeds of this machine, and what is wrong with it.

    Example: rewarm doctor runs
    """
    from rewarm.diagnostics import report

    results = []
    for result in report.examine_machine(folder):
        results.append(result)
        if not as_json:
            print(report.result_as_text(result), end="\n\n", flush=True)
    if as_json:
        print(json.dumps(report.as_json(results), indent=1))
    else:
        print(report.problems_as_text(report.all_problems(results)))
