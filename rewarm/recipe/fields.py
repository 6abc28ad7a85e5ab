"""The sections of a recipe: what each setting is, what it may be, and its help."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rewarm.errors import did_you_mean
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.quantities import Count, Share, Span, parse_count, parse_share
from rewarm.recipe.yaml_document import Location

Steps = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def field_problem(location: Location, message: str, found: object) -> InitErrorDetails:
    """Returns a fault at a place in a section, for pydantic to raise with others."""
    kind = PydanticCustomError("recipe", message)
    return InitErrorDetails(type=kind, loc=location, input=found)


class Section(BaseModel):
    """A frozen part of a recipe that knows its settings and refuses others."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


class ModelSettings(Section):
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
    def _one_start(self) -> ModelSettings:
        given = [n for n in ("base", "preset", "architecture") if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"should have exactly one of base, preset, architecture; has {found}")
        if self.preset is not None and self.preset not in PRESETS:
            names = list(PRESETS)
            raise ValidationError.from_exception_data(
                "Model",
                [
                    field_problem(
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


URL_SCHEMES = ("http", "https", "s3", "gs", "hf")


def _readable(said: str) -> str:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", said)
    if scheme and scheme[1] not in URL_SCHEMES:
        raise ValueError(
            f"{scheme[1]}: is not read (nothing here runs a command); name a folder, or an "
            f"address with {', '.join(f'{one}://' for one in URL_SCHEMES)}"
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


class DataSettings(Section):
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


class BatchSettings(Section):
    """How many tokens one step takes, and how they fit on a GPU."""

    tokens: Count
    """Tokens of one optimiser update, over all GPUs: a multiple of microbatch × context."""
    microbatch: Microbatch
    """Sequences that one GPU runs at once; or `auto`, for as many as fit: what is found (None until
    then) is written into the run's own recipe, and a resume goes on with it."""


class OptimizerSettings(Section):
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


PowerOfTwo = Annotated[Count, Field(le=2**32), AfterValidator(_power_of_two)]


class LossScaleSettings(Section):
    """How `precision: fp16` keeps small gradients from becoming 0.

    The loss is multiplied by a scale, and the gradient divided by it again. A gradient that
    overflowed is not applied. The defaults are Pythia's.
    """

    initial: PowerOfTwo = 4096
    """The first scale, a power of 2."""
    window: Annotated[int, Field(strict=True, gt=0, le=2**24)] = 1000
    """Steps without an overflow after which the scale is doubled."""
    hysteresis: Annotated[int, Field(strict=True, gt=0, le=2**24)] = 2
    """The overflow that halves the scale, counted since it was last doubled; each one after it
    halves it too."""
    minimum: PowerOfTwo = 1
    """The smallest scale; an overflow at it counts as a gradient that is not finite (`guard`)."""

    @model_validator(mode="after")
    def _in_order(self) -> LossScaleSettings:
        if self.initial < self.minimum:
            raise ValueError(f"initial {self.initial:,} is below the minimum of {self.minimum:,}")
        return self


class GuardSettings(Section):
    """What happens when the loss does what it should not."""

    patience: Annotated[int, Field(strict=True, gt=0)] = 3
    """Steps in a row whose loss or gradient is not finite, after which the run stops. No such step
    is ever applied."""
    on_spike: Literal["warn", "stop", "skip"] = "warn"
    """What to do about a loss far above those before it: say so, stop the run, or not apply the
    step. While the rate is raised, a rise is expected: it is measured as the stability gap."""
    spike: Positive = 6.0
    """How far is far: a robust z-score, against the median of the last 64 losses."""


class KeepSettings(Section):
    """Which checkpoints stay.

    The newest, the one that a branch would start from, and any that was given a name of its own
    always do.
    """

    last: Annotated[int, Field(strict=True, gt=0)] | None = None
    """The newest so many; null for all."""
    every: Steps | None = None
    """Also those of every so many steps."""


class EverySettings(Section):
    """How often, in steps. The last step is always logged, evaluated and saved."""

    log: Steps = 10
    """Steps between lines of metrics."""
    evaluate: Steps | None = 500
    """Steps between evaluations; null for before the first step and at the end only."""
    save: Steps | None = 1000
    """Steps between checkpoints; null for at the end only."""
