"""`rewarm check`: what a recipe, or a study, will do, and what prevents it, without doing it."""

from __future__ import annotations

from typing import Annotated

import typer

from rewarm.cli.options import (
    AcceptChanges,
    Json,
    RecipeOrStudy,
    Resume,
    ResumeFrom,
    Set,
    load_recipe_file,
)
from rewarm.cli.standard_streams import print_json


def check(
    recipe: RecipeOrStudy,
    overrides: Set = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    accept_changes: AcceptChanges = False,
    gpus: Annotated[
        int, typer.Option(metavar="N", help="GPUs that share the run of a recipe.", min=1)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Print what a recipe, or a study, will do, and refuse what training would refuse.

    Example: rewarm check recipe.yaml --set tokens=1B --gpus 8
    """
    from rewarm.study.study_file import is_study

    if is_study(recipe):
        if gpus > 1:
            raise typer.BadParameter("--gpus: is for a recipe; for a study see rewarm plan --gpus")
        from rewarm.cli.study_output import print_study_plan
        from rewarm.cli.text_sharding import print_unsharded
        from rewarm.study.preflight_study import check_study, checkable_recipes
        from rewarm.study.study_file import load_study

        study = load_study(recipe, overrides)
        print_study_plan(study)
        print_unsharded(checkable_recipes(study))
        check_study(study)
        return
    from rewarm.cli.terminal_tables import print_notes
    from rewarm.estimates.run_plan import plan_as_text, plan_run
    from rewarm.runs.resolve_run import resolve

    resolved = resolve(
        load_recipe_file(recipe, overrides),
        resume=resume,
        resume_from=resume_from,
        accept_changes=accept_changes,
    )
    plan = plan_run(resolved, on_gpu=True if gpus > 1 else None, gpus=gpus)
    if as_json:
        print_json(plan.model_dump_json(indent=1, by_alias=True))
    else:
        print_notes(plan_as_text(plan).splitlines(), indent=12)
    resolved.raise_problems()
