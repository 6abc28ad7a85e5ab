"""Checks before a study starts that every one of its runs can start."""

from __future__ import annotations

from pathlib import Path

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.errors import RewarmError
from rewarm.recipe.recipe import Recipe
from rewarm.runs.preconditions import in_use
from rewarm.runs.resolve_run import Problem, preflight
from rewarm.study.runner import is_complete
from rewarm.study.study_file import StudyPlan, StudyRun


def check_study(plan: StudyPlan) -> None:
    """Makes sure that every run of a study can start, its bases first.

    Raises:
        RewarmError: all problems in one message, a line each with the runs that have it; with the
            exit code of the first.
    """
    runs_by_problem: dict[str, list[str]] = {}
    first: Problem | None = None
    for name, recipe in _recipes(plan).items():
        for problem in _problems(recipe):
            if str(problem) == str(in_use(Path(recipe.run))):  # another worker of this study
                continue
            first = first or problem
            runs_by_problem.setdefault(str(problem), []).append(name)
    if first:
        lines = [f"{', '.join(runs)}: {text}" for text, runs in runs_by_problem.items()]
        first.args = ("\n".join(lines),)
        raise first


def _problems(recipe: Recipe) -> list[Problem]:
    """Returns what prevents a run of a study from starting or continuing; of a complete one, none.

    A complete run of another recipe is a problem: its results are not this study's.
    """
    try:
        if is_complete(recipe):
            return []
    except RewarmError as error:
        return [error]
    return preflight(recipe, resume=True)


def _recipes(plan: StudyPlan) -> dict[str, Recipe]:
    """Returns the recipes of all runs by name, as far as they can be checked by now."""
    recipes = {f"bases/{name}": recipe for name, recipe in plan.bases.items()}
    return recipes | {run.name: _as_far_as_known(plan, run) for run in plan.runs}


def _as_far_as_known(plan: StudyPlan, run: StudyRun) -> Recipe:
    """Returns a run's recipe; a base that is still to be trained is replaced by its own model."""
    if run.needs_base is None or last_checkpoint(Path(plan.bases[run.needs_base].run)):
        return run.recipe
    model = plan.bases[run.needs_base].model
    optimizer = run.recipe.optimizer.model_copy(update={"carry": False})
    data = run.recipe.data.model_copy(update={"carry": False})
    changed = {"model": model, "optimizer": optimizer, "data": data}
    return run.recipe.model_copy(update=changed)
