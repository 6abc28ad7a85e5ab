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
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval
from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from rewarm.checkpoints.lineage import last_lr_of_base, lineage_corpora
from rewarm.errors import RecipeError, did_you_mean
from rewarm.paths import short_path
from rewarm.quantities import parse_count
from rewarm.recipe.fields import ModelSettings, Name, Section, Text
from rewarm.recipe.path_settings import RECIPE_PATHS, STUDY_PATHS, resolve_paths
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.validation import validate_document
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.runs.held_out import held_out_warnings
from rewarm.runs.validation_roles import (
    Corpora,
    SetRole,
    merge_roles,
    resolve_roles,
    with_roles,
)
from rewarm.study.claims import Claim, parse_claim

Seed = Annotated[int, Strict(), Interval(ge=0, lt=2**63)]


def _check_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("each seed should be listed once")
    return seeds


Arm = Annotated[
    dict[str, Any],
    BeforeValidator(
        lambda changes: {} if changes is None else changes,
        json_schema_input_type=dict[str, Any] | None,
    ),
]
"""What an arm changes in the recipe: values by dotted setting, `schedule.peak_lr: 4e-3`."""


class Study(Section):
    """The content of a study file."""

    study: Text
    """The folder of all runs. Like every path in a study, also those that arms set, it is relative
    to the folder of the study file."""
    recipe: Text
    """The file of the recipe that the arms change. Paths in it are relative to its own folder."""
    bases: dict[Name, Text] = Field(default_factory=dict)
    """Recipes of base models to train first, by name; arms start from `STUDY/bases/NAME`."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    """What each arm changes in the recipe: values by dotted setting, `schedule.peak_lr: 4e-3`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_check_distinct)] = (17,)
    """Each arm runs once with each seed, which sets newly initialized weights and data order."""
    order: Literal["by-seed", "by-arm"] = "by-seed"
    """`by-seed`: all arms with the first seed, then with the second. `by-arm`: the first arm with
    all seeds, then the second."""
    reference: str | None = None
    """The arm that other arms are compared with on the same batches; by default the first."""
    control: str | None = None
    """An arm that trains on the old data for the same number of tokens; other arms are compared
    with it too."""
    claims: dict[Text, Text] = Field(default_factory=dict)
    """What is expected, by name: `final(downstream, high) < final(downstream, rewarm)`."""

    @model_validator(mode="after")
    def _check_named_arms(self) -> Study:
        for setting in ("reference", "control"):
            arm = getattr(self, setting)
            if arm is not None and arm not in self.arms:
                hint = did_you_mean(arm, list(self.arms)) or f" (arms: {', '.join(self.arms)})"
                raise ValueError(f"{setting}: no arm named {arm!r}{hint}")
        for arm in ("results.json", *(["bases"] if self.bases else [])):
            if arm in self.arms:
                raise ValueError(
                    f"arms.{arm}: the study needs STUDY/{arm} itself; give the arm another name"
                )
        return self


class StudyRun(NamedTuple):
    """One run of a study."""

    arm: str
    """The name of its arm; empty for a base."""
    seed: int
    recipe: Recipe
    needs_base: str | None
    """The name of the base of this study that the run starts from, if any."""

    @property
    def name(self) -> str:
        """`ARM/SEED`, or `NAME` for a base."""
        return f"{self.arm}/{self.seed}" if self.arm else self.directory.name

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.recipe.run_directory


class StudyPlan(NamedTuple):
    """A study, and its runs in the order in which they start."""

    study: Study
    bases: dict[str, Recipe]
    runs: list[StudyRun]
    """The runs of the arms, without the bases."""
    claims: dict[str, Claim]

    @property
    def reference(self) -> str:
        """The arm that other arms are compared with."""
        return self.study.reference or next(iter(self.study.arms))

    def runs_of(self, arm: str) -> list[StudyRun]:
        """Returns an arm's runs, sorted by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)


def study_roles(plan: StudyPlan) -> dict[str, SetRole]:
    """Returns the role of each validation set in a study, as far as it is known before training."""
    return _merged_roles(plan.runs, plan.bases)


def held_out_warnings_of_study(plan: StudyPlan) -> list[str]:
    """Returns which upstream validation sets the bases may have been trained on, one line each."""
    roles = study_roles(plan)
    runs = {run.arm: run for run in plan.runs}.values()
    lines = (
        warning
        for run in runs
        for warning in held_out_warnings(
            with_roles(run.recipe, {name: roles[name] for name in run.recipe.data.validation}),
            _lineage(run.recipe, run.needs_base, plan.bases),
        )
    )
    return list(dict.fromkeys(lines))


def _merged_roles(runs: list[StudyRun], bases: dict[str, Recipe]) -> dict[str, SetRole]:
    roles_of: dict[str, list[SetRole]] = {}
    lineages: dict[str, list[Corpora]] = {}
    for run in {run.arm: run for run in runs}.values():
        key = f"{run.needs_base} {run.recipe.model!r}"
        if key not in lineages:
            lineages[key] = _lineage(run.recipe, run.needs_base, bases)
        for name, role in resolve_roles(run.recipe, lineages[key]).items():
            roles_of.setdefault(name, []).append(role)
    merged = {name: merge_roles(name, (role.role for role in roles_of[name])) for name in roles_of}
    return {
        name: next(role for role in roles if role.role == merged[name])
        for name, roles in roles_of.items()
    }


def _lineage(recipe: Recipe, needs_base: str | None, bases: dict[str, Recipe]) -> list[Corpora]:
    """Returns what the models were trained on that a run's weights descend from."""
    if recipe.model.base is None or recipe.model.fresh:
        return []
    if needs_base:
        base = bases[needs_base]
        corpora = {name: corpus.shards for name, corpus in base.data.train.items()}
        return [*_lineage(base, None, bases), corpora]
    return [*lineage_corpora(recipe.model)]


def is_study(path: Path) -> bool:
    """Returns whether a file is a study rather than a recipe.

    Raises:
        RecipeError: it cannot be read.
    """
    return "arms" in YamlDocument.load(path).data


def load_study(path: Path, overrides: list[str] | None = None) -> StudyPlan:
    """Returns the study in a YAML file, with the recipe of every run validated.

    Raises:
        RecipeError: every problem of the study and of its arms, with file and line.
    """
    document = YamlDocument.load(path)
    for override in overrides or []:
        document.apply_override(override)
    study = validate_study(document)
    problems: dict[str, None] = {}  # an ordered set: arms share the problems of their recipe
    bases = _load_bases(document, study, problems)
    runs = _load_runs(document, study, bases, problems)
    claims = _parse_claims(document, study, bases, runs, problems)
    if problems:
        raise RecipeError(list(problems))
    return StudyPlan(study, bases, runs, claims)


def validate_study(document: YamlDocument) -> Study:
    """Returns the study in a parsed document, with absolute paths.

    Raises:
        RecipeError: every problem, one line each with its source location.
    """
    return validate_document(document, Study, {}, resolve_paths(document, STUDY_PATHS))


def _load_bases(
    document: YamlDocument, study: Study, problems: dict[str, None]
) -> dict[str, Recipe]:
    """Returns the recipes of the valid bases; adds the problems of the others to `problems`."""
    source = document.source_location(("study",))
    bases: dict[str, Recipe] = {}
    for name, file in study.bases.items():
        base_document = YamlDocument.load(Path(short_path(file)))
        base_document.set_value(("run",), str(_base_directory(study, name)), source)
        path_problems = resolve_paths(base_document, RECIPE_PATHS)
        try:
            bases[name] = validate_recipe(
                base_document, base_lr=last_lr_of_base, problems=path_problems
            )
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
    return bases


def _load_runs(
    document: YamlDocument,
    study: Study,
    bases: dict[str, Recipe],
    problems: dict[str, None],
) -> list[StudyRun]:
    """Returns the valid runs of the arms; adds the problems of the others to `problems`."""
    runs = []
    planned = [str(_base_directory(study, name)) for name in study.bases]
    for arm, seed in _arms_and_seeds(study):
        arm_document = YamlDocument.load(Path(short_path(study.recipe)))
        arm_document.set_value(("seed",), seed, document.source_location(("seeds",)))
        for setting, value in study.arms[arm].items():
            source = f"{document.source_location(('arms', arm, setting))}: arms.{arm}"
            folder = document.folder_of(("arms", arm, setting))
            arm_document.set_value(tuple(setting.split(".")), deepcopy(value), source, folder)
        directory = Path(study.study) / arm / str(seed)
        arm_document.set_value(("run",), str(directory), document.source_location(("study",)))
        path_problems = resolve_paths(arm_document, RECIPE_PATHS, planned=planned)
        try:
            recipe = validate_recipe(
                arm_document,
                base_lr=lambda model: _base_lr(model, study, bases),
                problems=path_problems,
            )
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        study_base = _study_base(recipe.model, study, bases)
        runs.append(StudyRun(arm, seed, recipe, study_base[0] if study_base else None))
    return runs


def _parse_claims(
    document: YamlDocument,
    study: Study,
    bases: dict[str, Recipe],
    runs: list[StudyRun],
    problems: dict[str, None],
) -> dict[str, Claim]:
    """Returns the valid claims; adds the problems of the others to `problems`."""
    arms = list(study.arms)
    roles = _merged_roles(runs, bases)
    validation_sets = sorted({*roles, *(role.role for role in roles.values() if role.role)})
    run_tokens = {run.arm: run.recipe.steps * run.recipe.batch.tokens for run in runs}
    claims: dict[str, Claim] = {}
    for name, text in study.claims.items():
        try:
            claims[name] = parse_claim(
                text, arms=arms, validation_sets=validation_sets, run_tokens=run_tokens
            )
        except ValueError as error:
            source = document.source_location(("claims", name))
            problems[f"{source}: claims.{name}: {error}"] = None
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
    if checkpoint == "last":
        return base.lr(base.steps)
    step = base.step_before_decay if checkpoint == "before-decay" else parse_count(checkpoint)
    return base.lr(min(step, base.steps))
