"""What a study is: its settings, its runs, and what role each validation set has in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from rewarm.checkpoints.lineage import lineage_corpora
from rewarm.errors import did_you_mean
from rewarm.recipe.fields import Name, Section, Text, field_problem
from rewarm.recipe.recipe import Recipe
from rewarm.runs.held_out import held_out_warnings
from rewarm.runs.validation_roles import (
    Corpora,
    SetRole,
    merge_roles,
    resolve_roles,
    with_roles,
)
from rewarm.study.claims import Claim

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
        problems = []
        for setting in ("reference", "control"):
            arm = getattr(self, setting)
            if arm is not None and arm not in self.arms:
                hint = did_you_mean(arm, list(self.arms)) or f" (arms: {', '.join(self.arms)})"
                problems.append(field_problem((setting,), f"no arm named {arm!r}{hint}", arm))
        for arm in ("results.json", *(["bases"] if self.bases else [])):
            if arm in self.arms:
                message = f"the study needs STUDY/{arm} itself; give the arm another name"
                problems.append(field_problem(("arms", arm), message, arm))
        if problems:
            raise ValidationError.from_exception_data("Study", problems)
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
    return merged_roles(plan.runs, plan.bases)


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


def merged_roles(runs: list[StudyRun], bases: dict[str, Recipe]) -> dict[str, SetRole]:
    """Returns the role of each validation set in some runs, given the recipes of their bases."""
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
