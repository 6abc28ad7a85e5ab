"""A study: one recipe, arms that each change something in it, and seeds; one run for each pair.

```yaml
study: runs/mini                       # every run goes below it: runs/mini/ARM/SEED
recipe: rewarm.yaml                    # beside this file
bases: {upstream: upstream.yaml}       # trained first: runs/mini/bases/upstream
arms:
  rewarm:                              # the recipe as it is
  constant: {schedule: {name: constant, lr: base}}
  high: {schedule.peak_lr: 4e-3, schedule.min_lr: 4e-4}
seeds: [17, 18, 19]
claims:
  higher rates adapt more: final(downstream, high) < final(downstream, rewarm)
```
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.errors import RecipeError, did_you_mean
from rewarm.quantities import parse_count
from rewarm.recipe import recipe
from rewarm.recipe.fields import ModelSettings, Name, Section, Text
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.validation import validate_document
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.study import claims

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("each seed should stand there once")
    return seeds


Arm = Annotated[
    dict[str, Any],
    BeforeValidator(
        lambda said: {} if said is None else said, json_schema_input_type=dict[str, Any] | None
    ),
]
"""What an arm changes in the recipe: values by their places, `schedule.peak_lr: 4e-3`."""


class Study(Section):
    """The document."""

    study: Text
    """The folder that all runs go to."""
    recipe: Text
    """The recipe that the arms change, a file; relative to the study's."""
    bases: dict[Name, Text] = Field(default_factory=dict)
    """Recipes of models to train first, by name; arms start from `STUDY/bases/NAME`."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    """What each arm changes in the recipe: settings by their places, `schedule.peak_lr: 4e-3`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)] = (17,)
    """Every arm is run with each: other new weights and another order of the data."""
    order: Literal["by-seed", "by-arm"] = "by-seed"
    """`by-seed`: all arms with the first seed, then with the second. `by-arm`: all seeds of the
    first arm, then of the second."""
    reference: str | None = None
    """The arm that others are compared with on the same batches; without it the first."""
    control: str | None = None
    """An arm that trains on the old data for as many tokens: forgetting is told beside it."""
    claims: dict[Text, Text] = Field(default_factory=dict)
    """What is expected, in words: `final(downstream, high) < final(downstream, rewarm)`."""

    @model_validator(mode="after")
    def _names_arms(self) -> Study:
        for what in ("reference", "control"):
            named = getattr(self, what)
            if named is not None and named not in self.arms:
                near = did_you_mean(named, list(self.arms)) or f" (arms: {', '.join(self.arms)})"
                raise ValueError(f"{what}: no arm named {named!r}{near}")
        return self


class StudyRun(NamedTuple):
    """One run of a study."""

    arm: str
    seed: int
    recipe: Recipe
    needs: str | None
    """The base of the study that it starts from, if any."""

    @property
    def name(self) -> str:
        """`ARM/SEED`, or `bases/NAME`."""
        return f"{self.arm}/{self.seed}" if self.arm else Path(self.recipe.run).name

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.recipe.run)


class StudyPlan(NamedTuple):
    """A study, and its runs in the order in which they are to be done."""

    study: Study
    bases: dict[str, Recipe]
    jobs: list[StudyRun]
    claims: dict[str, claims.Claim]

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return self.study.reference or next(iter(self.study.arms))

    def of(self, arm: str) -> list[StudyRun]:
        """Returns an arm's runs, by seed."""
        return sorted((job for job in self.jobs if job.arm == arm), key=lambda job: job.seed)


def is_study(path: Path) -> bool:
    """Returns whether a file is a study rather than a recipe.

    Raises:
        RecipeError: it cannot be read.
    """
    return "arms" in YamlDocument.load(path).data


def load_study(path: Path, overrides: list[str] | None = None) -> StudyPlan:
    """Returns the study in a YAML file, every arm of it checked.

    Raises:
        RecipeError: everything that is wrong with it or with one of its arms, each line located.
    """
    document = YamlDocument.load(path)
    for override in overrides or []:
        document.set(override)
    study = validate_document(document, Study, {})
    problems: dict[str, None] = {}
    root = Path(study.study)
    trained: dict[str, Recipe] = {}
    for name, file in study.bases.items():
        base = YamlDocument.load(path.parent / file)
        base.put(("run",), str(root / "bases" / name), document.where(("study",)))
        try:
            trained[name] = recipe.validate_recipe(base, base_lr=last_lr_of_base)
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
    jobs = []
    for arm, seed in _in_order(study):
        changed = YamlDocument.load(path.parent / study.recipe)
        changed.put(("seed",), seed, document.where(("seeds",)))
        for setting, value in study.arms[arm].items():
            place = document.where(("arms", arm, setting))
            changed.put(tuple(setting.split(".")), value, f"{place}: arms.{arm}")
        changed.put(("run",), str(root / arm / str(seed)), document.where(("study",)))
        try:
            made = recipe.validate_recipe(
                changed, base_lr=lambda model: _base_lr(model, root, trained)
            )
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        needs = _needed(made.model, root, trained)
        jobs.append(StudyRun(arm, seed, made, needs[0] if needs else None))
    asked: dict[str, claims.Claim] = {}
    sets = sorted({name for job in jobs for name in job.recipe.data.validation})
    for said, text in study.claims.items():
        try:
            asked[said] = claims.parse_claim(text, arms=list(study.arms), sets=sets)
        except ValueError as error:
            where = document.where(("claims", said))
            problems[f"{where}: claims.{said}: {error}"] = None
    if problems:
        raise RecipeError(list(problems))
    return StudyPlan(study, trained, jobs, asked)


def _in_order(study: Study) -> list[tuple[str, int]]:
    if study.order == "by-arm":
        return [(arm, seed) for arm in study.arms for seed in study.seeds]
    return [(arm, seed) for seed in study.seeds for arm in study.arms]


def _needed(model: ModelSettings, root: Path, trained: dict[str, Recipe]) -> tuple[str, str] | None:
    """Returns which base of the study a model starts from, and the place in its run."""
    if model.base is None:
        return None
    directory, _, place = model.base.partition("@")
    for name in trained:
        if os.path.normpath(directory) == os.path.normpath(root / "bases" / name):
            return name, place or "last"
    return None


def _base_lr(model: ModelSettings, root: Path, trained: dict[str, Recipe]) -> float:
    """Returns the last rate of a model's base, which may be still to be trained."""
    needed = _needed(model, root, trained)
    if needed is None:
        return last_lr_of_base(model)
    base, place = trained[needed[0]], needed[1]
    if place == "last":
        return base.lr(base.steps)
    step = base.before_decay if place == "before-decay" else parse_count(place)
    return base.lr(min(step, base.steps))
