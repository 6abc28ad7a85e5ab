"""Checks before a study starts that every one of its runs can start."""

from __future__ import annotations

from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.errors import RewarmError
from rewarm.recipe.gpu_sharing import shard_size_on
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.saved_recipe import is_saved_recipe
from rewarm.runs.model_origin import Problem, collect_errors
from rewarm.runs.preconditions import foreign_file, in_use
from rewarm.runs.resolve_run import preflight
from rewarm.study.job import recipe_file_of
from rewarm.study.stale_runs import check_started_from_base, is_complete
from rewarm.study.study_plan import StudyPlan, StudyRun

_MOST_NAMES = 4
"""Runs of a problem that are all named."""


def check_study(plan: StudyPlan, *, gpus: int = 0) -> None:
    """Checks that every run of a study can start, first its bases.

    Args:
        plan: the study.
        gpus: that share each run; 0 for not known, or none.

    Raises:
        RewarmError: all problems in one message, one line per problem, each with the runs that
            have it; the exit code is that of the first problem.
    """
    runs_by_problem: dict[str, dict[str, None]] = {}
    first_problem: Problem | None = None
    for name, (recipe, checkable) in _recipes(plan).items():
        for problem in _problems(recipe, checkable, gpus):
            if str(problem) == str(in_use(recipe.run_directory)):  # another worker of this study
                continue
            first_problem = first_problem or problem
            runs_by_problem.setdefault(str(problem), {})[name] = None  # twice if both sets have it
    if first_problem:
        total = len(plan.bases) + len(plan.runs)
        lines = [f"{_names(list(runs), total)}: {text}" for text, runs in runs_by_problem.items()]
        first_problem.args = ("\n".join(lines),)
        raise first_problem


def _names(runs: list[str], total: int) -> str:
    """Returns the names of runs: all of a few, the first two of many."""
    if len(runs) <= _MOST_NAMES:
        return ", ".join(runs)
    if len(runs) == total:
        return f"all {total:,} runs"
    return f"{', '.join(runs[:2])} and {len(runs) - 2:,} more of {total:,} runs"


def _problems(recipe: Recipe, checkable: Recipe, gpus: int) -> list[Problem]:
    """Returns what prevents a run from starting or continuing; nothing if it is complete.

    A stale run is a problem: its results do not belong to this study. `checkable` is the recipe
    with what can be checked now in the place of a base that is not there.
    """
    try:
        if is_complete(recipe):
            return []
    except RewarmError as error:
        return [error]
    problems = preflight(checkable, resume=True)
    if not problems:
        with collect_errors(problems):
            check_started_from_base(checkable)
    file = recipe_file_of(recipe.run_directory)
    if file.exists() and not is_saved_recipe(file):
        problems.append(foreign_file(file, "name another folder as `study`"))
    if gpus:
        with collect_errors(problems):
            shard_size_on(recipe, gpus)
    return problems


def checkable_recipes(plan: StudyPlan) -> list[Recipe]:
    """Returns the recipe of each run; the model of a base that is not trained yet replaces it."""
    return [checkable for _, checkable in _recipes(plan).values()]


def _recipes(plan: StudyPlan) -> dict[str, tuple[Recipe, Recipe]]:
    """Returns the recipe of each run, and the one to check, by the run's name."""
    recipes = {f"bases/{name}": (recipe, recipe) for name, recipe in plan.bases.items()}
    return recipes | {run.name: (run.recipe, _checkable_recipe(plan, run)) for run in plan.runs}


def _checkable_recipe(plan: StudyPlan, run: StudyRun) -> Recipe:
    """Returns a run's recipe; a base that is not trained yet is replaced by that base's model."""
    if run.needs_base is None or list_checkpoints(plan.bases[run.needs_base].run_directory):
        return run.recipe
    model = plan.bases[run.needs_base].model
    optimizer = run.recipe.optimizer.model_copy(update={"carry": False})
    data = run.recipe.data.model_copy(update={"carry": False})
    updates = {"model": model, "optimizer": optimizer, "data": data}
    return run.recipe.model_copy(update=updates)
