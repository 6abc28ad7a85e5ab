"""A study file: a recipe, arms that change its settings, and seeds; one run per arm and seed.

```yaml
study: runs/mini                       # the folder of all runs: runs/mini/ARM/SEED
recipe: rewarm.yaml                    # paths are relative to the folder of this file
bases: {upstream: upstream.yaml}       # trained first: runs/mini/bases/upstream
arms:
  rewarm:                              # the recipe unchanged
  constant: {schedule: {name: constant, lr: base}}
  high: {schedule.peak_lr: 4e-3, schedule.min_lr: 4e-4}
seeds: [17, 18, 19]
claims:
  higher rates adapt more: final(downstream, high) < final(downstream, rewarm)
```
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from rewarm import exit_codes
from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.errors import RecipeError
from rewarm.paths import short_path
from rewarm.quantities import parse_count
from rewarm.recipe.model_settings import ModelSettings
from rewarm.recipe.path_settings import RECIPE_PATHS, STUDY_PATHS, resolve_paths
from rewarm.recipe.recipe import Recipe, load_recipe_document, validate_recipe
from rewarm.recipe.validation import source_order, validate_document
from rewarm.recipe.yaml_document import KeyPath, YamlDocument
from rewarm.study.claims import Claim, parse_claim
from rewarm.study.study_plan import (
    Study,
    StudyPlan,
    StudyRun,
    merged_roles,
)


def is_study(path: Path) -> bool:
    """Returns whether a file is a study rather than a recipe.

    Raises:
        RecipeError: it cannot be read.
    """
    return YamlDocument.load(path).is_study


def load_study(path: Path, overrides: list[str] | None = None) -> StudyPlan:
    """Returns the study in a YAML file, with the recipe of every run validated.

    Raises:
        RecipeError: every problem of the study and of its arms, with file and line.
    """
    document = YamlDocument.load(path)
    if not document.is_study and not document.data.keys().isdisjoint(Recipe.model_fields):
        raise RecipeError(
            [
                f"{path}: this is a recipe, and a study is expected here (it has `arms`); run it "
                f"with `rewarm train {path}`"
            ]
        )
    problems = _Problems()
    for assignment in overrides or []:
        with problems.collected():
            _apply_override(document, assignment)
    for problem in resolve_paths(document, STUDY_PATHS):
        problems.add(problem)
    study = _valid_part(document, problems)
    if study is None:
        raise problems.error()
    bases = _load_bases(document, study, problems)
    runs = _load_runs(document, study, bases, problems)
    claims = _parse_claims(document, study, bases, runs, problems)
    if problems:
        raise problems.error()
    return StudyPlan(study, bases, runs, claims)


def _apply_override(document: YamlDocument, assignment: str) -> None:
    """Changes a setting of a study, or of one of its arms.

    Names may contain dots, and so does a setting of an arm, such as `schedule.peak_lr`, which is
    one key. It replaces what the arm says of it, and of what is inside it.
    """
    path = assignment.partition("=")[0]
    section, _, rest = path.partition(".")
    if section in Recipe.model_fields and section not in Study.model_fields:
        raise RecipeError(
            [
                f"--set {assignment}: {section} is a setting of the recipe, and this is a study; "
                f"for one of its arms write --set arms.NAME.{assignment}, for all of them change "
                f"{document.data.get('recipe', 'the recipe')}"
            ]
        )
    names = document.data.get(section)
    if not rest or section not in ("arms", "bases", "claims") or not isinstance(names, dict):
        document.apply_override(assignment)
        return
    known = [str(name) for name in names if f"{rest}.".startswith(f"{name}.")]
    if section != "arms":
        document.apply_override(assignment, keys=(section, max(known, key=len, default=rest)))
        return
    arm = max(known, key=len, default=rest.partition(".")[0])
    setting = rest[len(arm) + 1 :]
    if isinstance(settings := names.get(arm), dict):
        for name in [name for name in settings if f"{name}.".startswith(f"{setting}.")]:
            del settings[name]
    document.apply_override(assignment, keys=("arms", arm, setting) if setting else ("arms", arm))


class _Problems:
    """The problems of a study and of its arms, each once: arms share those of their recipe."""

    def __init__(self) -> None:
        self._exit_codes: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._exit_codes)

    def add(self, problem: str, exit_code: int = exit_codes.BAD_RECIPE) -> None:
        """Adds a problem: a line with its location."""
        self._exit_codes.setdefault(problem, exit_code)

    @contextmanager
    def collected(self, source: str = "") -> Iterator[None]:
        """Adds the problems of a RecipeError raised inside, preceded by `source`."""
        try:
            yield
        except RecipeError as error:
            for problem in error.problems:
                self.add(source + problem, error.exit_code)

    def error(self) -> RecipeError:
        """Returns all of them as one error."""
        lines = sorted(self._exit_codes, key=source_order)
        return RecipeError(lines, min(self._exit_codes.values()))


def validate_study(document: YamlDocument) -> Study:
    """Returns the study in a parsed document, with absolute paths.

    Raises:
        RecipeError: every problem, one line each with its source location.
    """
    return validate_document(document, Study, {}, resolve_paths(document, STUDY_PATHS))


def _valid_part(document: YamlDocument, problems: _Problems) -> Study | None:
    """Returns the study without its invalid settings, so that its arms are checked all the same.

    Adds the problems of the invalid ones to `problems`. None if the runs depend on one of them.
    """
    rest = copy(document)
    rest.data = deepcopy(document.data)
    while True:
        with problems.collected():
            return validate_document(rest, Study, {})
        if not _remove_invalid(rest.data):
            return None


def _remove_invalid(data: dict[str, Any]) -> bool:
    """Removes the invalid settings of a study; returns False if it has none that it can lack."""
    try:
        Study.model_validate(data)
    except ValidationError as error:
        paths = [problem["loc"] for problem in error.errors(include_url=False)]
    else:
        return False
    for section, *inner in paths:
        if inner and section in ("arms", "bases", "claims"):
            data[section].pop(inner[0], None)
        elif section not in ("study", "recipe", "arms"):
            data.pop(str(section), None)
        else:
            return False
    return bool(data["arms"])


def _load_bases(document: YamlDocument, study: Study, problems: _Problems) -> dict[str, Recipe]:
    """Returns the recipes of the valid bases; adds the problems of the others to `problems`."""
    source = document.source_location(("study",))
    bases: dict[str, Recipe] = {}
    for name, file in study.bases.items():
        base_document = _load_recipe_of(document, ("bases", name), file, problems)
        if base_document is None:
            continue
        base_document.set_value(("run",), str(_base_directory(study, name)), source)
        path_problems = resolve_paths(base_document, RECIPE_PATHS)
        with problems.collected():
            bases[name] = validate_recipe(
                base_document, base_lr=last_lr_of_base, problems=path_problems
            )
    return bases


def _load_recipe_of(
    document: YamlDocument, setting: KeyPath, file: str, problems: _Problems
) -> YamlDocument | None:
    """Returns the recipe file that a setting of a study names; None if it cannot be read."""
    source = f"{document.source_location(setting)}: {'.'.join(map(str, setting))}: "
    with problems.collected(source):
        return load_recipe_document(Path(short_path(file)))
    return None


def _load_runs(
    document: YamlDocument, study: Study, bases: dict[str, Recipe], problems: _Problems
) -> list[StudyRun]:
    """Returns the valid runs of the arms; adds the problems of the others to `problems`."""
    runs = []
    planned = [str(_base_directory(study, name)) for name in study.bases]
    for arm, seed in _arms_and_seeds(study):
        arm_document = _load_recipe_of(document, ("recipe",), study.recipe, problems)
        if arm_document is None:
            return []
        arm_document.set_value(("seed",), seed, document.source_location(("seeds",)))
        _change_settings(arm_document, document, study, arm, problems)
        directory = Path(study.study) / arm / str(seed)
        arm_document.set_value(("run",), str(directory), document.source_location(("study",)))
        path_problems = resolve_paths(arm_document, RECIPE_PATHS, planned=planned)
        with problems.collected():
            recipe = validate_recipe(
                arm_document,
                base_lr=lambda model: _base_lr(model, study, bases),
                problems=path_problems,
            )
            study_base = _study_base(recipe.model, study, bases)
            runs.append(StudyRun(arm, seed, recipe, study_base[0] if study_base else None))
    return runs


def _change_settings(
    arm_document: YamlDocument,
    document: YamlDocument,
    study: Study,
    arm: str,
    problems: _Problems,
) -> None:
    """Changes the settings of a recipe that an arm of a study changes."""
    for setting, value in study.arms[arm].items():
        source = f"{document.source_location(('arms', arm, setting))}: arms.{arm}"
        folder = document.folder_of(("arms", arm, setting))
        with problems.collected():
            arm_document.set_value(tuple(setting.split(".")), deepcopy(value), source, folder)


def _parse_claims(
    document: YamlDocument,
    study: Study,
    bases: dict[str, Recipe],
    runs: list[StudyRun],
    problems: _Problems,
) -> dict[str, Claim]:
    """Returns the valid claims; adds the problems of the others to `problems`.

    Without a valid run it is not known what the runs measure, and no claim is read.
    """
    if not runs:
        return {}
    arms = list(study.arms)
    roles = merged_roles(runs, bases)
    validation_sets = sorted({*roles, *(role.role for role in roles.values() if role.role)})
    tokens = {run.arm: run.recipe.steps * run.recipe.batch.tokens for run in runs}
    run_tokens = dict.fromkeys(arms, next(iter(tokens.values()))) | tokens  # also of invalid arms
    claims: dict[str, Claim] = {}
    for name, text in study.claims.items():
        try:
            claims[name] = parse_claim(
                text, arms=arms, validation_sets=validation_sets, run_tokens=run_tokens
            )
        except ValueError as error:
            source = document.source_location(("claims", name))
            problems.add(f"{source}: claims.{name}: {error}")
    return claims


def _arms_and_seeds(study: Study) -> list[tuple[str, int]]:
    if study.order == "by-arm":
        return [(arm, seed) for arm in study.arms for seed in study.seeds]
    return [(arm, seed) for seed in study.seeds for arm in study.arms]


def _base_directory(study: Study, name: str) -> Path:
    return Path(study.study) / "bases" / name


def _study_base(
    model: ModelSettings, study: Study, bases: dict[str, Recipe]
) -> tuple[str, str] | None:
    """Returns the study's base that a model starts from, and the checkpoint of that base's run."""
    if model.base is None:
        return None
    directory, _, checkpoint = model.base.partition("@")
    for name in bases:
        if os.path.normpath(directory) == os.path.normpath(_base_directory(study, name)):
            return name, checkpoint or "last"
    return None


def _base_lr(model: ModelSettings, study: Study, bases: dict[str, Recipe]) -> float:
    """Returns the last learning rate of a model's base, even if it is not trained yet."""
    study_base = _study_base(model, study, bases)
    if study_base is None:
        return last_lr_of_base(model)
    base, checkpoint = bases[study_base[0]], study_base[1]
    if checkpoint in ("last", "ema"):
        return base.lr(base.steps)
    if checkpoint == "before-decay":
        return base.lr(base.step_before_decay)
    try:
        return base.lr(min(parse_count(checkpoint), base.steps))
    except ValueError:
        raise ValueError(
            f"{short_path(str(model.base))}: not a checkpoint reference; expected a step, such as "
            "@40000, @last, @before-decay or @ema; with @best, write rates as numbers"
        ) from None
