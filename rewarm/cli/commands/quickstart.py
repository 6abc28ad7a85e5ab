"""`rewarm quickstart`: everything once on this machine, with a small model and real text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path(
        "rewarm-quickstart"
    ),
) -> None:
    """Try it all on this machine: a small model, real text, no GPU, no download, some minutes."""
    from rewarm.cli.quickstart_steps import run_quickstart

    run_quickstart(out)
