"""Options that several commands share, and how they load a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rewarm.recipe.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
RecipeOrStudy = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe or a study.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="Override a setting; may be repeated. A path in VALUE is relative to the working "
        "directory, one in a file to the folder of that file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume from the run's last checkpoint, if any.")
]
ResumeFrom = Annotated[
    str | None,
    typer.Option(
        "--resume-from",
        metavar="STEP",
        help="Resume from this checkpoint, such as 1000; later ones are renamed, not deleted.",
    ),
]
GpuCount = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="N",
        help="GPUs of this machine to train on: a number, or all (the default).",
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Resume even if changed settings change the result."),
]


def load_recipe_file(path: Path, overrides: list[str] | None) -> Recipe:
    """Returns the recipe in a file, with overrides; looks up the base's last rate if needed."""
    from rewarm.checkpoints.lineage import last_lr_of_base
    from rewarm.recipe import recipe

    return recipe.load_recipe(path, overrides, base_lr=last_lr_of_base)
