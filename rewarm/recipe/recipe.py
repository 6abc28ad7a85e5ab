"""The recipe: one frozen document that says everything about a run, checked before it starts.

```
recipe.yaml ── document.py ──> data and places ── pydantic ──> Recipe ── properties ──> steps, ...
                                     └── every problem, each at its file:line:column <──┘
```
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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
from rewarm.errors import RecipeError, ScheduleError
from rewarm.model.architecture import Architecture
from rewarm.quantities import Budget, Count
from rewarm.recipe.fields import (
    BatchSettings,
    DataSettings,
    EverySettings,
    GuardSettings,
    KeepSettings,
    LossScaleSettings,
    ModelSettings,
    OptimizerSettings,
    Section,
    Text,
    field_problem,
)
from rewarm.recipe.validation import validate_document
from rewarm.recipe.yaml_document import YamlDocument, write_yaml
from rewarm.schedules import Schedule

_FP8_TILE = 16
"""What GPUs want the sides of an 8-bit matrix to be multiples of."""

BaseRateLookup = Callable[[ModelSettings], float]
"""Says the last rate of a model's base, or raises ValueError where that is not known."""


def _context(info: ValidationInfo) -> dict[str, Any]:
    """Returns what spans and rates are resolved against, as far as it is known by then."""
    tokens, batch, model = (info.data.get(name) for name in ("tokens", "batch", "model"))
    known: dict[str, Any] = {"budget": None, "base_lr": None}
    if tokens is not None and batch is not None:
        known["budget"] = Budget(tokens // batch.tokens, batch.tokens)
    if model is not None and model.base is not None:
        known["base_lr"] = lambda: (info.context or {}).get("base_lr", base_lr_in_recipe)(model)
    return known


def base_lr_in_recipe(model: ModelSettings) -> float:
    """Returns `model.base_lr`.

    Raises:
        ValueError: it is not given.
    """
    if model.base_lr is None:
        raise ValueError(f"the last rate of {model.base} is not known; give it as model.base_lr")
    return model.base_lr


class Recipe(Section):
    """A whole run."""

    # `tokens` and `batch` stand before `data` and `schedule`, whose spans they measure.
    run: Text
    """The run directory: recipe, metrics and checkpoints go there."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 17
    """Decides the order of the data and new weights."""
    tokens: Count
    """The budget: tokens to train on. Steps follow from it."""
    model: ModelSettings
    batch: BatchSettings
    data: SerializeAsAny[DataSettings]
    schedule: SerializeAsAny[Schedule]
    optimizer: OptimizerSettings = OptimizerSettings()
    precision: Literal["bf16", "fp16", "fp32", "fp8"] = "bf16"
    """`bf16`, `fp16`: autocast, with master weights and moments in fp32; fp16 with `loss_scale`.
    `fp8`: as bf16, with the layers' products in 8 bits, on a Hopper GPU or later.
    `fp32`: everything in fp32."""
    loss_scale: LossScaleSettings = LossScaleSettings()
    tf32: bool = False
    """With `precision: fp32` on an NVIDIA GPU: round what is multiplied to TF32, with 10 bits
    behind the point in place of 23; faster by far."""
    deterministic: bool = False
    """On a GPU, use only operations that give the same bits each time, so that a resumed run ends
    as one that was not interrupted, bit for bit; slower, since attention's fastest way back adds
    in whatever order it gets to. A CPU does so in any case."""
    compile: bool = True
    """Compile each layer with torch.compile on a GPU; a CPU runs eagerly."""
    kernels: Literal["auto", "plain"] = "auto"
    """`auto`: own Triton kernels on a GPU where Triton works, else, and on a CPU, plain PyTorch.
    `plain`: plain PyTorch everywhere. They compute the same, to rounding."""
    memory: Literal["fast", "lean"] = "fast"
    """`lean`: compute the MLP, norms and logits again on the way back instead of keeping them, so
    that more sequences, or a larger model, fit; `check` says what that saves."""
    every: EverySettings = EverySettings()
    keep: KeepSettings = KeepSettings()
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint cannot be written (a full disk): say so and train on, or stop.
    The last checkpoint of a run has to be written."""
    guard: GuardSettings = GuardSettings()

    @field_validator("data", mode="plain", json_schema_input_type=DataSettings)
    @classmethod
    def _placed_data(cls, value: Any, info: ValidationInfo) -> DataSettings:
        if isinstance(value, DataSettings):
            value = value.model_dump(mode="json", by_alias=True)
        return DataSettings.model_validate(value, context=_context(info))

    @field_validator("schedule", mode="plain", json_schema_input_type=dict[str, Any])
    @classmethod
    def _known_schedule(cls, value: Any, info: ValidationInfo) -> Schedule:
        return schedules.read(value, _context(info))

    @model_validator(mode="after")
    def _adds_up(self) -> Recipe:
        problems = []
        batch, context = self.batch, self.data.context
        unit = (batch.microbatch or 1) * context
        if batch.tokens % unit:
            what = (
                f"microbatches: {batch.microbatch} sequences × {context:,} tokens = {unit:,}"
                if batch.microbatch
                else f"sequences of {context:,} tokens"
            )
            nearest = max(1, round(batch.tokens / unit)) * unit
            problems.append(
                field_problem(
                    ("batch", "tokens"),
                    f"{batch.tokens:,} is not a whole number of {what}; the nearest that fits is "
                    f"{nearest:,}",
                    batch.tokens,
                )
            )
        if self.tf32 and self.precision != "fp32":
            problems.append(
                field_problem(
                    ("tf32",),
                    f"is how products are made with precision: fp32, and this run's is "
                    f"{self.precision}; take it away, or set precision: fp32",
                    True,
                )
            )
        if self.precision == "fp8" and context % _FP8_TILE:
            problems.append(
                field_problem(
                    ("data", "context"),
                    f"{context:,} is not a multiple of {_FP8_TILE}, as a product in fp8 needs; "
                    f"the nearest is {max(1, round(context / _FP8_TILE)) * _FP8_TILE:,}",
                    context,
                )
            )
        if self.tokens < batch.tokens:
            problems.append(
                field_problem(
                    ("tokens",),
                    f"a budget of {self.tokens:,} tokens is less than one batch of "
                    f"{batch.tokens:,}",
                    self.tokens,
                )
            )
        if self.model.shape and context > self.model.shape.positions:
            problems.append(
                field_problem(
                    ("data", "context"),
                    f"{context:,} is longer than the model's "
                    f"{self.model.shape.positions:,} positions",
                    context,
                )
            )
        for section, what in (("optimizer", "moments"), ("data", "place in the data")):
            if getattr(self, section).carry and (self.model.base is None or self.model.fresh):
                problems.append(
                    field_problem(
                        (section, "carry"),
                        f"there is nothing to carry ({what}): the run starts from new weights; "
                        "take carry away, or name a rewarm checkpoint as model.base",
                        True,
                    )
                )
        weights = self.weights.values()
        for first in sorted({first for pieces in weights for first, _ in pieces}):
            if not any([w for start, w in pieces if start <= first][-1] for pieces in weights):
                problems.append(
                    field_problem(
                        ("data", "train"),
                        f"no corpus has a weight from step {first // self.sequences + 1:,} on",
                        0,
                    )
                )
        if not problems:
            try:
                schedules.check_rates(self.schedule, 1 / self.steps)
            except ScheduleError as error:
                problems.append(field_problem(("schedule",), str(error), self.schedule.name))
        if problems:
            raise ValidationError.from_exception_data("Recipe", problems)
        return self

    def insist_on_widths(self, shape: Architecture) -> None:
        """Makes sure that a model's products can be made in the recipe's precision.

        Raises:
            RecipeError: they cannot, in fp8.
        """
        for name in ("hidden", "inner"):
            width = getattr(shape, name)
            if self.precision == "fp8" and width % _FP8_TILE:
                raise RecipeError(
                    [
                        f"precision: fp8: the model's {name} width of {width:,} is not a multiple "
                        f"of {_FP8_TILE}, as a product in fp8 needs; set precision: bf16"
                    ]
                )

    @property
    def steps(self) -> int:
        """Optimiser updates of the run: the whole batches in the budget."""
        return self.tokens // self.batch.tokens

    @property
    def microbatch(self) -> int:
        """Sequences that one GPU runs at once, in a recipe that says so, or was settled."""
        assert self.batch.microbatch is not None
        return self.batch.microbatch

    @property
    def accumulation(self) -> int:
        """Microbatches that one process adds up in a step, as `microbatch`."""
        return self.sequences // self.microbatch

    @property
    def sequences(self) -> int:
        """Blocks in one batch."""
        return self.batch.tokens // self.data.context

    @property
    def weights(self) -> dict[str, list[tuple[int, float]]]:
        """Each corpus's weight from each block of the stream on; it changes between steps."""
        return {
            name: [
                (math.ceil(piece.start * self.steps - 1e-9) * self.sequences, piece.weight)
                for piece in one.weight
            ]
            for name, one in self.data.train.items()
        }

    def progress(self, step: int) -> float:
        """Returns the part of the run that is done after `step`, in (0, 1]."""
        return step / self.steps

    def lr(self, step: int) -> float:
        """Returns the learning rate that `step` (counted from 1) is taken with."""
        return schedules.rate(self.schedule, self.progress(step))

    @cached_property
    def before_decay(self) -> int:
        """The last step before the rate falls for good: from there a run can branch un-annealed.

        Behind it the rate only falls, or holds at its end. A rate that never falls has none, and
        this is the last step.
        """
        step, rate = self.steps, self.lr(self.steps)
        while step > 1 and self.lr(step - 1) == rate:
            step -= 1
        if step == 1 or self.lr(step - 1) < rate:
            return self.steps
        while step > 1 and (before := self.lr(step - 1)) > rate:
            step, rate = step - 1, before
        return step

    @property
    def branches(self) -> bool:
        """Whether a decay follows a plateau, as in WSD: others will want to branch from its end."""
        step = self.before_decay
        return 1 < step < self.steps and self.lr(step - 1) == self.lr(step)

    @cached_property
    def saves(self) -> list[int]:
        """The steps behind which a checkpoint is written, in order."""
        due = range(self.every.save, self.steps, self.every.save) if self.every.save else ()
        branch = [self.before_decay] if self.branches else []
        return sorted({*due, *branch, self.steps})

    def document(self) -> dict[str, Any]:
        """Returns the recipe as plain data, every default spelled out, spans as written."""
        document: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return document

    def to_yaml(self) -> str:
        """Returns the recipe as YAML, every default spelled out; `load` reads it back equal."""
        return write_yaml(self.document())


def load_recipe(
    path: Path, overrides: list[str] | None = None, *, base_lr: BaseRateLookup | None = None
) -> Recipe:
    """Returns the recipe in a YAML file, with `a.b=value` overrides applied.

    Args:
        path: the file.
        overrides: settings to change.
        base_lr: says the last rate of a base; without it only `model.base_lr` is known.

    Raises:
        RecipeError: everything that is wrong with it, each line located.
    """
    document = YamlDocument.load(path)
    for override in overrides or []:
        document.set(override)
    return validate_recipe(document, base_lr=base_lr)


def validate_recipe(document: YamlDocument, *, base_lr: BaseRateLookup | None = None) -> Recipe:
    """Returns the recipe in a parsed document; `base_lr` as for `load`.

    Raises:
        RecipeError: everything that is wrong with it, each line located.
    """
    return validate_document(document, Recipe, {"base_lr": base_lr or base_lr_in_recipe})


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe, with the settings of every schedule that works."""
    whole = Recipe.model_json_schema()
    choices = []
    for one in schedules.installed():
        try:
            kind = schedules.find(one.name).model_json_schema(ref_template="#/$defs/{model}")
        except ScheduleError:
            continue
        whole["$defs"] |= kind.pop("$defs", {})
        kind["required"] = ["name", *kind.get("required", [])]
        whole["$defs"][f"schedule-{one.name}"] = kind
        choices.append({"$ref": f"#/$defs/schedule-{one.name}"})
    whole["properties"]["schedule"] = {"oneOf": choices, "title": "Schedule"}
    for section in whole["$defs"].values():
        for setting in section.get("properties", {}).values():
            if setting.get("format") == "schedule":  # one inside another, as in rewarm-sequence
                for key in ("type", "additionalProperties", "format"):
                    setting.pop(key, None)
                setting["$ref"] = "#/properties/schedule"
    return whole
