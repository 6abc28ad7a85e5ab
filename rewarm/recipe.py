"""The recipe: one frozen document that says everything about a run, checked before it starts.

```
recipe.yaml ── document.py ──> data and places ── pydantic ──> Recipe ── properties ──> steps, ...
                                     └── every problem, each at its file:line:column <──┘
```
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rewarm import schedules
from rewarm.architecture import PRESETS, Architecture
from rewarm.document import Document, Location, write
from rewarm.errors import RecipeError, ScheduleError, did_you_mean
from rewarm.quantities import Budget, Count, Share, Span, parse_count, parse_share
from rewarm.schedules import Schedule

Steps = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def _problem(location: Location, message: str, found: object) -> InitErrorDetails:
    kind = PydanticCustomError("recipe", message)
    return InitErrorDetails(type=kind, loc=location, input=found)


Kind = TypeVar("Kind", bound="Section")


class Section(BaseModel):
    """A frozen part of a recipe that knows its settings and refuses others."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


class Model(Section):
    """The weights that the run starts from: exactly one of base, preset and architecture."""

    base: Text | None = None
    """A Hugging Face name, a NeoX model directory, a rewarm checkpoint, a run (its last one), or a
    place in a run: RUN@40000, RUN@last, RUN@before-decay; or a checkpoint folder of the GPT-NeoX
    library."""
    revision: Text | None = None
    """Branch, tag or commit of a Hugging Face `base`, such as step143000."""
    preset: str | None = None
    """A Pythia shape with new weights: pythia-14m ... pythia-12b."""
    architecture: Architecture | None = None
    """A shape spelled out, with new weights."""
    base_lr: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    """The rate of the base's last update, where its lineage does not say: the schedule's `base` and
    `5x base` are of this one."""
    fresh: bool = False
    """Keep the shape of `base` but draw new weights: the from-scratch baseline."""

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        given = [n for n in ("base", "preset", "architecture") if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"should have exactly one of base, preset, architecture; has {found}")
        if self.preset is not None and self.preset not in PRESETS:
            names = list(PRESETS)
            raise ValidationError.from_exception_data(
                "Model",
                [
                    _problem(
                        ("preset",),
                        f"no preset named {self.preset!r}"
                        f"{did_you_mean(self.preset, names)} (presets: {', '.join(names)})",
                        self.preset,
                    )
                ],
            )
        if self.base is None and (self.revision or self.fresh or self.base_lr is not None):
            raise ValueError(
                "revision, fresh and base_lr say something about a base, and there is none"
            )
        return self

    @property
    def shape(self) -> Architecture | None:
        """The architecture, where the recipe alone says it; a base has to be looked at."""
        return PRESETS[self.preset] if self.preset else self.architecture


SCHEMES = ("http", "https", "s3", "gs", "hf")


def _readable(said: str) -> str:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", said)
    if scheme and scheme[1] not in SCHEMES:
        raise ValueError(
            f"{scheme[1]}: is not read (nothing here runs a command); name a folder, or an "
            f"address with {', '.join(f'{one}://' for one in SCHEMES)}"
        )
    if "::" in said or said.startswith("!"):
        raise ValueError("should be a folder or one plain address")
    return said


Shards = Annotated[Text, AfterValidator(_readable)]


class WeightFrom(Section):
    """A corpus's weight from a place in the run on."""

    start: Annotated[Span, Field(alias="from", ge=0, lt=1)]
    """Where in the run it begins: a share of the run, or tokens, or steps."""
    weight: Annotated[Share, Field(ge=0, allow_inf_nan=False)]
    """Share of every batch from there on, relative to the other corpora's weights."""


def _pieces(written: Any) -> Any:
    if isinstance(written, list | tuple):
        return written
    weight = parse_share(written)
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError("should be above 0; leave a corpus out to give it no weight")
    return [{"from": 0, "weight": written}]


def _in_order(pieces: tuple[WeightFrom, ...]) -> tuple[WeightFrom, ...]:
    starts = [float(piece.start) for piece in pieces]
    if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError("should begin with `from: 0`, and each place should be behind the last")
    return pieces


def _as_written(pieces: tuple[WeightFrom, ...]) -> Any:
    if len(pieces) == 1:
        return pieces[0].weight
    return [piece.model_dump(mode="json", by_alias=True) for piece in pieces]


Weight = Annotated[
    tuple[WeightFrom, ...],
    BeforeValidator(_pieces, json_schema_input_type=Share | list[WeightFrom]),
    AfterValidator(_in_order),
    PlainSerializer(_as_written),
]


class TrainSet(Section):
    """A corpus to train on."""

    shards: Shards
    """A folder that `rewarm shard` wrote, some tars of one (data/x/{00000..00003}.tar), or the
    address of one elsewhere (https://, s3://, gs://, hf://)."""
    weight: Weight = (WeightFrom.model_validate({"from": 0, "weight": 1.0}),)
    """Share of every batch, relative to the other corpora's weights; or a list of
    {from: SPAN, weight: SHARE}, for weights that change on the way."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """`sequential` reads documents and shards as they are stored."""


class ValidationSet(Section):
    """A corpus to measure on, in its stored order."""

    shards: Shards
    """As for a corpus to train on."""
    tokens: Count | None = None
    """Measure on the first so many tokens; null for all."""


class Data(Section):
    """What the model reads: named corpora, mixed block by block."""

    context: Annotated[Count, Field(le=1_048_576)] = 2048
    """Tokens in a sequence."""
    lanes: Annotated[int, Field(strict=True, gt=0)] = 16
    """Shards of one corpus that are read side by side; blocks are shuffled across them."""
    documents: Literal["attend-across", "separate"] = "attend-across"
    """Whether a token sees the documents before its own in the same sequence (as in GPT-NeoX)."""
    max_epochs: Positive | None = 4.0
    """How often a corpus may be gone through; more is an error, null allows any number."""
    verify: bool = True
    """Check the sha256 of each shard when it is first opened."""
    workers: Annotated[int, Field(strict=True, ge=0, le=64)] = 1
    """Threads that read ahead of the step; their number changes nothing that is read."""
    cache: Count = 64_000_000_000
    """Bytes that shards fetched from elsewhere may take up in ~/.cache/rewarm."""
    carry: bool = False
    """Go on in each corpus where the base stopped in it, instead of at its beginning; the base must
    be a rewarm checkpoint with the same seed, context, lanes and corpora."""
    train: Annotated[dict[Name, TrainSet], Field(min_length=1)]
    """Corpora to train on, by name. Replay is one more corpus with a weight."""
    validation: dict[Name, ValidationSet] = {}
    """Corpora to measure on, by name; their losses come back under these names."""


def _or_auto(microbatch: Any) -> Any:
    if microbatch is None:
        raise ValueError("should be a number of sequences, or auto")
    return None if microbatch == "auto" else microbatch


Microbatch = Annotated[
    Annotated[int, Field(strict=True, gt=0)] | None,
    BeforeValidator(_or_auto, json_schema_input_type=Annotated[int, Field(gt=0)] | Literal["auto"]),
    PlainSerializer(lambda microbatch: microbatch or "auto"),
]


class Batch(Section):
    """How many tokens one step takes, and how they fit on a GPU."""

    tokens: Count
    """Tokens of one optimiser update, over all GPUs: a multiple of microbatch × context."""
    microbatch: Microbatch
    """Sequences that one GPU runs at once; or `auto`, for as many as fit: what is found (None until
    then) is written into the run's own recipe, and a resume goes on with it."""


class Optimizer(Section):
    """AdamW. It has no learning rate of its own: that is the schedule's alone."""

    betas: tuple[
        Annotated[float, Field(strict=True, ge=0, lt=1)],
        Annotated[float, Field(strict=True, ge=0, lt=1)],
    ] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.1
    """Decoupled weight decay, on matrices only."""
    clip: Positive | None = 1.0
    """The gradient's greatest norm; null for no clipping."""
    carry: bool = False
    """Go on with the base's Adam moments instead of new ones; the base must have them."""


def _power_of_two(scale: int) -> int:
    if scale.bit_count() != 1:
        raise ValueError("should be a power of 2, so that scaling rounds nothing")
    return scale


Scale = Annotated[Count, Field(le=2**32), AfterValidator(_power_of_two)]


class LossScale(Section):
    """How `precision: fp16` keeps small gradients from becoming 0.

    The loss is multiplied by a scale, and the gradient divided by it again. A gradient that
    overflowed is not applied. The defaults are Pythia's.
    """

    initial: Scale = 4096
    """The first scale, a power of 2."""
    window: Annotated[int, Field(strict=True, gt=0, le=2**24)] = 1000
    """Steps without an overflow after which the scale is doubled."""
    hysteresis: Annotated[int, Field(strict=True, gt=0, le=2**24)] = 2
    """The overflow that halves the scale, counted since it was last doubled; each one after it
    halves it too."""
    minimum: Scale = 1
    """The smallest scale; an overflow at it counts as a gradient that is not finite (`guard`)."""

    @model_validator(mode="after")
    def _in_order(self) -> LossScale:
        if self.initial < self.minimum:
            raise ValueError(f"initial {self.initial:,} is below the minimum of {self.minimum:,}")
        return self


class Guard(Section):
    """What happens when the loss does what it should not."""

    patience: Annotated[int, Field(strict=True, gt=0)] = 3
    """Steps in a row whose loss or gradient is not finite, after which the run stops. No such step
    is ever applied."""
    on_spike: Literal["warn", "stop", "skip"] = "warn"
    """What to do about a loss far above those before it: say so, stop the run, or not apply the
    step. While the rate is raised, a rise is expected: it is measured as the stability gap."""
    spike: Positive = 6.0
    """How far is far: a robust z-score, against the median of the last 64 losses."""


class Keep(Section):
    """Which checkpoints stay.

    The newest, the one that a branch would start from, and any that was given a name of its own
    always do.
    """

    last: Annotated[int, Field(strict=True, gt=0)] | None = None
    """The newest so many; null for all."""
    every: Steps | None = None
    """Also those of every so many steps."""


class Every(Section):
    """How often, in steps. The last step is always logged, evaluated and saved."""

    log: Steps = 10
    """Steps between lines of metrics."""
    evaluate: Steps | None = 500
    """Steps between evaluations; null for before the first step and at the end only."""
    save: Steps | None = 1000
    """Steps between checkpoints; null for at the end only."""


BaseRate = Callable[[Model], float]
"""Says the last rate of a model's base, or raises ValueError where that is not known."""


def _context(info: ValidationInfo) -> dict[str, Any]:
    """Returns what spans and rates are resolved against, as far as it is known by then."""
    tokens, batch, model = (info.data.get(name) for name in ("tokens", "batch", "model"))
    known: dict[str, Any] = {"budget": None, "base_lr": None}
    if tokens is not None and batch is not None:
        known["budget"] = Budget(tokens // batch.tokens, batch.tokens)
    if model is not None and model.base is not None:
        known["base_lr"] = lambda: (info.context or {}).get("base_lr", given_base_lr)(model)
    return known


def given_base_lr(model: Model) -> float:
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
    model: Model
    batch: Batch
    data: SerializeAsAny[Data]
    schedule: SerializeAsAny[Schedule]
    optimizer: Optimizer = Optimizer()
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16`, `fp16`: autocast, with master weights and moments in fp32; fp16 with `loss_scale`.
    `fp32`: everything in fp32."""
    loss_scale: LossScale = LossScale()
    tf32: bool = False
    """With `precision: fp32` on an NVIDIA GPU: round what is multiplied to TF32, with 10 bits
    behind the point in place of 23; faster by far."""
    compile: bool = True
    """Compile each layer with torch.compile on a GPU; a CPU runs eagerly."""
    kernels: Literal["auto", "plain"] = "auto"
    """`auto`: own Triton kernels on a GPU where Triton works, else, and on a CPU, plain PyTorch.
    `plain`: plain PyTorch everywhere. They compute the same, to rounding."""
    every: Every = Every()
    keep: Keep = Keep()
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint cannot be written (a full disk): say so and train on, or stop.
    The last checkpoint of a run has to be written."""
    guard: Guard = Guard()

    @field_validator("data", mode="plain", json_schema_input_type=Data)
    @classmethod
    def _placed_data(cls, value: Any, info: ValidationInfo) -> Data:
        if isinstance(value, Data):
            value = value.model_dump(mode="json", by_alias=True)
        return Data.model_validate(value, context=_context(info))

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
                _problem(
                    ("batch", "tokens"),
                    f"{batch.tokens:,} is not a whole number of {what}; the nearest that fits is "
                    f"{nearest:,}",
                    batch.tokens,
                )
            )
        if self.tf32 and self.precision != "fp32":
            problems.append(
                _problem(
                    ("tf32",),
                    f"is how products are made with precision: fp32, and this run's is "
                    f"{self.precision}; take it away, or set precision: fp32",
                    True,
                )
            )
        if self.tokens < batch.tokens:
            problems.append(
                _problem(
                    ("tokens",),
                    f"a budget of {self.tokens:,} tokens is less than one batch of "
                    f"{batch.tokens:,}",
                    self.tokens,
                )
            )
        if self.model.shape and context > self.model.shape.positions:
            problems.append(
                _problem(
                    ("data", "context"),
                    f"{context:,} is longer than the model's "
                    f"{self.model.shape.positions:,} positions",
                    context,
                )
            )
        for section, what in (("optimizer", "moments"), ("data", "place in the data")):
            if getattr(self, section).carry and (self.model.base is None or self.model.fresh):
                problems.append(
                    _problem(
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
                    _problem(
                        ("data", "train"),
                        f"no corpus has a weight from step {first // self.sequences + 1:,} on",
                        0,
                    )
                )
        if not problems:
            try:
                schedules.insist_on_rates(self.schedule, 1 / self.steps)
            except ScheduleError as error:
                problems.append(_problem(("schedule",), str(error), self.schedule.name))
        if problems:
            raise ValidationError.from_exception_data("Recipe", problems)
        return self

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
        step = self.steps
        while step > 1 and self.lr(step - 1) == self.lr(step):
            step -= 1
        if step == 1 or self.lr(step - 1) < self.lr(step):
            return self.steps
        while step > 1 and self.lr(step - 1) > self.lr(step):
            step -= 1
        return step

    @property
    def branches(self) -> bool:
        """Whether a decay follows a plateau, as in WSD: others will want to branch from its end."""
        step = self.before_decay
        return 1 < step < self.steps and self.lr(step - 1) == self.lr(step)

    def document(self) -> dict[str, Any]:
        """Returns the recipe as plain data, every default spelled out, spans as written."""
        document: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return document

    def to_yaml(self) -> str:
        """Returns the recipe as YAML, every default spelled out; `load` reads it back equal."""
        return write(self.document())


def load(
    path: Path, overrides: list[str] | None = None, *, base_lr: BaseRate | None = None
) -> Recipe:
    """Returns the recipe in a YAML file, with `a.b=value` overrides applied.

    Args:
        path: the file.
        overrides: settings to change.
        base_lr: says the last rate of a base; without it only `model.base_lr` is known.

    Raises:
        RecipeError: everything that is wrong with it, each line located.
    """
    document = Document.load(path)
    for override in overrides or []:
        document.set(override)
    return validate(document, base_lr=base_lr)


def validate(document: Document, *, base_lr: BaseRate | None = None) -> Recipe:
    """Returns the recipe in a parsed document; `base_lr` as for `load`.

    Raises:
        RecipeError: everything that is wrong with it, each line located.
    """
    return read(document, Recipe, {"base_lr": base_lr or given_base_lr})


def read(document: Document, kind: type[Kind], context: dict[str, Any]) -> Kind:
    """Returns the recipe, or the like, in a parsed document.

    Raises:
        RecipeError: everything that is wrong with it, each line located.
    """
    try:
        return kind.model_validate(document.data, context=context)
    except ValidationError as error:
        problems = {_letter(document, one, kind): None for one in error.errors(include_url=False)}
        raise RecipeError(sorted(problems, key=_by_place)) from None


def _by_place(problem: str) -> tuple[str, int, int]:
    place = re.match(r"(.+?):(\d+):(\d+): ", problem)
    return (place[1], int(place[2]), int(place[3])) if place else (problem, 0, 0)


def _letter(document: Document, error: ErrorDetails, kind: type[Section]) -> str:
    """Returns one line about one problem: place, path, what was found, what was wanted."""
    location, found = error["loc"], error["input"]
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "missing":
        message = "required, but missing"
    elif error["type"] == "extra_forbidden":
        known = _settings(kind, document.data, location[:-1])
        near = did_you_mean(str(location[-1]), known)
        there = f" (there are: {', '.join(known)})" if known else ""
        message = f"no such setting{near or there}"
    elif error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = f"should be settings (`key: value` lines), got {_shown(found)}"
    elif error["type"] == "string_pattern_mismatch" and location[-1:] == ("[key]",):
        message = "a corpus's name should be letters, digits, '.', '_' and '-'"
    elif error["type"] != "recipe" and not isinstance(found, dict):
        message = f"{message} (got {_shown(found)})"
    location = tuple(part for part in location if part != "[key]")
    return f"{document.where(location)}: {'.'.join(map(str, location)) or 'recipe'}: {message}"


def _shown(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _settings(model: Any, data: Any, location: Location) -> list[str]:
    """Returns the names of the settings that a section has, found by walking the models."""
    for part in location:
        fields = getattr(model, "model_fields", {})
        # Not a field: an entry of a mapping or a list, dict[Name, Section] → Section.
        entries = [None, *(one for one in get_args(model) if one is not ...)]
        inner = fields[part].annotation if part in fields else entries[-1]
        if get_origin(inner) in (Union, UnionType):  # Section | None → Section
            inner = get_args(inner)[0]
        data = data[part]
        model = schedules.find(data["name"]) if inner is Schedule else inner
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def schema() -> dict[str, Any]:
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
