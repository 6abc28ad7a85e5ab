"""`rewarm quickstart`: the whole workflow on this machine, with a small model and real text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.standard_streams import output_is_summary


def quickstart(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for text, shards, recipes and runs.")
    ] = Path("rewarm-quickstart"),
) -> None:
    """Run the whole workflow here in minutes: a small model, real text, no GPU, no download.

    Example: rewarm quickstart --out try
    """
    from rewarm.cli.quickstart_steps import run_quickstart

    output_is_summary()
    run_quickstart(out)
