"""`rewarm verify-resume`: proves exact resume on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.options import RecipeFile, Set, load_recipe
from rewarm.errors import CheckpointError


def verify_resume(
    recipe: RecipeFile,
    overrides: Set = None,
    steps: Annotated[int, typer.Option(help="Steps to run, interrupted half-way.", min=2)] = 40,
) -> None:
    """Prove on this machine that an interrupted run ends, bit for bit, as one that was not."""
    import tempfile

    checked = load_recipe(recipe, overrides)
    from rewarm.training.device_setup import find_device
    from rewarm.training.verify_resume import verify_resume as differences

    how = " with deterministic: true" if find_device().type == "cuda" else ""
    with tempfile.TemporaryDirectory(prefix="rewarm-verify-resume-") as work:
        differ = differences(checked, steps, Path(work))
    if differ:
        raise CheckpointError("the resumed run differs:\n  " + "\n  ".join(differ))
    print(
        f"{min(steps, checked.steps)} steps, straight and interrupted: weights, moments, stream "
        f"and metrics are the same, bit for bit{how}"
    )
