"""The recipe: one frozen document that describes a whole run, validated before the run starts.

```
recipe.yaml -> YamlDocument (data, source locations) -> pydantic -> Recipe -> steps, lr(step), ...
                                                           |
                                   RecipeError: every problem, each with its file:line:column
```
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rewarm import schedules
from rewarm.errors import RecipeError
from rewarm.model.architecture import Architecture
from rewarm.paths import short_path
from rewarm.quantities import Count
from rewarm.recipe.best_setting import best_problems
from rewarm.recipe.corpus_weights import steps_before, unread_corpus_problems, weight_problems
from rewarm.recipe.data_settings import DataSettings
from rewarm.recipe.fields import Section, Text
from rewarm.recipe.measurement_settings import SampleSettings, TaskSettings
from rewarm.recipe.model_settings import ModelSettings
from rewarm.recipe.path_settings import RECIPE_PATHS, resolve_paths
from rewarm.recipe.periodic_work import EverySettings
from rewarm.recipe.resolution import (
    BaseRateLookup,
    base_lr_in_recipe,
    resolution_context,
    resolve_spans,
)
from rewarm.recipe.settings_together import (
    FP8_TILE,
    batch_problems,
    budget_problems,
    carry_problems,
    position_problems,
    precision_problems,
    rate_problems,
    task_interval_problems,
)
from rewarm.recipe.tracker_settings import Trackers, tracker_problems
from rewarm.recipe.training_settings import (
    BatchSettings,
    GuardSettings,
    KeepSettings,
    LossScaleSettings,
    OptimizerSettings,
    ParallelSettings,
)
from rewarm.recipe.validation import validate_document
from rewarm.recipe.yaml_document import YamlDocument, write_yaml
from rewarm.schedules import Schedule


class Recipe(Section):
    """A training run: model, data, schedule, budget and everything else that determines it."""

    # Order matters: `tokens` and `batch` are needed to resolve spans in `data` and `schedule`.
    run: Text
    """Run directory, where the resolved recipe, metrics and checkpoints are written. Like every
    path in a recipe, it is relative to the folder of the file that it is written in."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 17
    """Seed of the data order and of newly initialized weights."""
    tokens: Count
    """Number of tokens to train on (the budget); the number of steps is tokens // batch.tokens."""
    model: ModelSettings
    batch: BatchSettings
    data: SerializeAsAny[DataSettings]
    schedule: SerializeAsAny[Schedule]
    optimizer: OptimizerSettings = OptimizerSettings()
    precision: Literal["bf16", "fp16", "fp32", "fp8"] = "bf16"
    """`bf16`, `fp16`: autocast, with master weights and Adam moments in fp32; fp16 uses
    `loss_scale`. `fp8`: like bf16, with the linear layers' matmuls in fp8; needs a Hopper GPU or
    later. `fp32`: everything in fp32."""
    loss_scale: LossScaleSettings = LossScaleSettings()
    tf32: bool = False
    """With `precision: fp32` on an NVIDIA GPU, round the operands of matmuls to TF32 (10 mantissa
    bits instead of 23). Much faster, less exact."""
    deterministic: bool = False
    """On a GPU, use deterministic operations only, so that a resumed run ends bit for bit like an
    uninterrupted one. Slower: the fastest backward pass of attention sums in no fixed order. Runs
    on a CPU are always deterministic."""
    compile: bool = True
    """Compile each layer with torch.compile on a GPU. Has no effect on a CPU."""
    kernels: Literal["auto", "plain"] = "auto"
    """`auto`: rewarm's Triton kernels on a GPU where Triton works, plain PyTorch elsewhere.
    `plain`: plain PyTorch everywhere. Results are equal up to rounding."""
    memory: Literal["fast", "lean"] = "fast"
    """`fast`: keep all activations. `lean`: recompute those of the MLPs, norms and logits in the
    backward pass, so that a larger model or microbatch fits; `check` shows the memory saved."""
    parallel: ParallelSettings = ParallelSettings()
    every: SerializeAsAny[EverySettings] = EverySettings()
    tasks: TaskSettings = TaskSettings()
    sample: SampleSettings = SampleSettings()
    keep: KeepSettings = KeepSettings()
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint cannot be written, for example because the disk is full: report
    it and continue training, or stop. Failing to write the last checkpoint is always an error."""
    guard: GuardSettings = GuardSettings()
    trackers: Trackers = Field(default_factory=dict)
    """Programs that metrics are sent to, each with its settings: `{tensorboard: {}}`."""

    @field_validator("data", mode="plain", json_schema_input_type=DataSettings)
    @classmethod
    def _resolve_data(cls, value: Any, info: ValidationInfo) -> DataSettings:
        return resolve_spans(DataSettings, value, info)

    @field_validator("every", mode="plain", json_schema_input_type=EverySettings)
    @classmethod
    def _resolve_every(cls, value: Any, info: ValidationInfo) -> EverySettings:
        return resolve_spans(EverySettings, value, info)

    @field_validator("schedule", mode="plain", json_schema_input_type=dict[str, Any])
    @classmethod
    def _resolve_schedule(cls, value: Any, info: ValidationInfo) -> Schedule:
        return schedules.read(value, resolution_context(info))

    @model_validator(mode="after")
    def _check_settings_together(self) -> Recipe:
        data, steps = self.data, self.steps
        problems = [
            *batch_problems(self.batch, data.context),
            *precision_problems(self.precision, tf32=self.tf32, context=data.context),
            *budget_problems(self.tokens, self.batch),
            *position_problems(self.model, data.context),
            *carry_problems(self.model, self.optimizer, data),
            *weight_problems(data.train, steps),
            *task_interval_problems(self.every, self.tasks),
            *best_problems(self.keep, data.validation, self.every, steps),
        ]
        if not problems:  # shares of the run are known
            problems = list(
                unread_corpus_problems(data.train, steps, self.sequences_per_step, data.context)
            )
        if not problems:  # only a valid recipe has a meaningful number of steps
            problems = list(rate_problems(self.schedule, steps))
        if problems:
            raise ValidationError.from_exception_data("Recipe", problems)
        return self

    def check_fp8_widths(self, architecture: Architecture) -> None:
        """Checks that the widths of a model's matrices allow fp8 matmuls, if the recipe uses fp8.

        Raises:
            RecipeError: a width is not a multiple of 16, and `precision` is fp8.
        """
        for name in ("hidden", "inner"):
            width = getattr(architecture, name)
            if self.precision == "fp8" and width % FP8_TILE:
                problem = (
                    f"precision: fp8: the model's {name} width of {width:,} should be a multiple "
                    f"of {FP8_TILE} for fp8 matmuls; try precision: bf16"
                )
                raise RecipeError([problem])

    @property
    def run_directory(self) -> Path:
        """The run directory, relative to the working directory where it is inside that."""
        return Path(short_path(self.run))

    @property
    def steps(self) -> int:
        """Number of optimizer updates: whole batches that fit into the budget."""
        return self.tokens // self.batch.tokens

    @property
    def microbatch(self) -> int:
        """Sequences that one GPU runs at once, in a recipe whose `auto` has been resolved."""
        assert self.batch.microbatch is not None
        return self.batch.microbatch

    def with_microbatch(self, microbatch: int) -> Recipe:
        """Returns the recipe with a number for `microbatch: auto`."""
        batch = self.batch.model_copy(update={"microbatch": microbatch})
        return self.model_copy(update={"batch": batch})

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps: microbatches per optimizer update on one GPU."""
        return self.sequences_per_step // self.microbatch

    @property
    def sequences_per_step(self) -> int:
        """Sequences (blocks of the data stream) in one batch."""
        return self.batch.tokens // self.data.context

    @property
    def corpus_weights(self) -> dict[str, list[tuple[int, float]]]:
        """The (first block, weight) pieces of each corpus; each piece starts with a whole step."""
        return {
            name: [
                (steps_before(piece, self.steps) * self.sequences_per_step, piece.weight)
                for piece in corpus.weight
            ]
            for name, corpus in self.data.train.items()
        }

    def progress(self, step: int) -> float:
        """Returns the fraction of the run that is done after `step`, in (0, 1]."""
        return step / self.steps

    def lr(self, step: int) -> float:
        """Returns the learning rate of `step`, counted from 1."""
        return schedules.rate(self.schedule, self.progress(step))

    @cached_property
    def step_before_decay(self) -> int:
        """The last step before the final decay: a run that branches here is not annealed.

        After it the learning rate only falls, or stays at its final value. It is the last step if
        the schedule does not end with a decay.
        """
        return schedules.step_before_decay(self.schedule, self.steps)

    @property
    def has_plateau_before_decay(self) -> bool:
        """Whether the final decay follows a constant rate, as in WSD; runs often branch there."""
        return schedules.is_constant_before(self.schedule, self.steps, self.step_before_decay)

    @property
    def branch_step(self) -> int | None:
        """The step at the end of a plateau before the final decay, where a checkpoint is saved."""
        return self.step_before_decay if self.has_plateau_before_decay else None

    @property
    def periodic_saves(self) -> range:
        """The steps before the last one after which a checkpoint is written (`every.save`)."""
        every = self.every.save
        return range(every, self.steps, every) if every else range(0)

    @property
    def checkpoint_count(self) -> int:
        """Number of checkpoints that are written: periodic, at the branch step, after the last."""
        branches = self.branch_step is not None and self.branch_step not in self.periodic_saves
        return len(self.periodic_saves) + branches + 1

    def document(self) -> dict[str, Any]:
        """Returns the recipe as plain data, with every default, and spans as they were written."""
        plain: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return plain

    def to_yaml(self) -> str:
        """Returns the recipe as YAML with every default; `load_recipe` reads it back equal."""
        return write_yaml(self.document())


def load_recipe(
    path: Path, overrides: list[str] | None = None, *, base_lr: BaseRateLookup | None = None
) -> Recipe:
    """Returns the recipe in a YAML file, with `a.b=value` overrides applied.

    Args:
        path: the file.
        overrides: settings to change.
        base_lr: looks up a base model's last learning rate; by default it is `model.base_lr`.

    Raises:
        RecipeError: every problem, one line each with its source location.
    """
    document = load_recipe_document(path)
    problems = document.apply_overrides(overrides or [])
    problems += [*resolve_paths(document, RECIPE_PATHS), *tracker_problems(document)]
    return validate_recipe(document, base_lr=base_lr, problems=problems)


def load_recipe_document(path: Path) -> YamlDocument:
    """Returns the document in a file that should be a recipe.

    Raises:
        RecipeError: it cannot be read, or is a study.
    """
    document = YamlDocument.load(path)
    if document.is_study:
        recipe = document.data.get("recipe")
        names_one = isinstance(recipe, str) and document.folder / recipe
        own = f", or name its recipe, {names_one}" if names_one else ""
        raise RecipeError(
            [
                f"{path}: this is a study, and a recipe is expected here; run all its arms with "
                f"`rewarm compare {path}`{own}"
            ]
        )
    return document


def validate_recipe(
    document: YamlDocument,
    *,
    base_lr: BaseRateLookup | None = None,
    problems: Sequence[str] = (),
) -> Recipe:
    """Returns the recipe in a parsed document; its paths stay as they are.

    Args:
        document: the document.
        base_lr: as for `load_recipe`.
        problems: the problems of its paths, from `resolve_paths`.

    Raises:
        RecipeError: every problem, one line each with its source location.
    """
    context = {"base_lr": base_lr or base_lr_in_recipe}
    return validate_document(document, Recipe, context, problems)
