"""`rewarm check`: what a recipe, or a study, will do, without doing it."""

from __future__ import annotations

from rewarm.cli.options import Json, RecipeFile, Set, load_recipe


def check(recipe: RecipeFile, overrides: Set = None, as_json: Json = False) -> None:
    """Print what a recipe, or a study, will do, as arithmetic, without doing it."""
    from rewarm.estimates.run_plan import plan_as_text, plan_run
    from rewarm.study.study_file import is_study, load_study

    if is_study(recipe):
        from rewarm.cli.study_output import print_study_plan

        print_study_plan(load_study(recipe, overrides))
        return
    found, problem = plan_run(load_recipe(recipe, overrides))
    print(found.model_dump_json(indent=1) if as_json else plan_as_text(found))
    if problem:
        problem.args = ("\n".join(found.problems),)
        raise problem
