"""`rewarm verify-resume`: proves exact resume on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.launcher import count_processes
from rewarm.cli.options import GpuCount, RecipeFile, Set, load_recipe_file
from rewarm.cli.terminal_tables import print_notes
from rewarm.errors import CheckpointError


def verify_resume_command(
    recipe: RecipeFile,
    overrides: Set = None,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Steps to run, interrupted half-way.", min=2)
    ] = 40,
    gpus: GpuCount = None,
) -> None:
    """Prove on this machine that an interrupted run ends, bit for bit, as an uninterrupted one.

    Example: rewarm verify-resume recipe.yaml --steps 20
    """
    import tempfile

    loaded = load_recipe_file(recipe, overrides)
    from rewarm.cli.text_sharding import shard_texts

    shard_texts([loaded])
    from rewarm.training.device_setup import find_device
    from rewarm.training.verify_resume import verify_resume

    with tempfile.TemporaryDirectory(prefix="rewarm-verify-resume-") as work:
        differences = verify_resume(loaded, steps, Path(work), count_processes(gpus))
    if differences:
        raise CheckpointError("the resumed run differs:\n  " + "\n  ".join(differences))
    deterministic = " with deterministic: true" if find_device().type == "cuda" else ""
    print_notes(
        [
            f"{min(steps, loaded.steps)} steps, uninterrupted and interrupted: weights, optimizer "
            f"state, data and metrics are the same, bit for bit{deterministic}"
        ]
    )
