"""The sections of a recipe: each setting's type, bounds, default and help."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rewarm.errors import did_you_mean
from rewarm.model.architecture import PRESETS, Activation, Architecture
from rewarm.quantities import Count, Share, Span, parse_share
from rewarm.recipe.yaml_document import KeyPath
from rewarm.remote_storage import URL_SCHEMES

# A shared type holds no Field: pydantic 2.9 to 2.11.4 keep the default of one use for all others.
Steps = Count
PositiveFloat = Annotated[float, Strict(), Gt(0), AllowInfNan(False)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

Role = Literal["upstream", "downstream"]
"""Whether a validation set holds what the base model was trained on, or what is new to it."""


def field_problem(key_path: KeyPath, message: str, value: object) -> InitErrorDetails:
    """Returns the problem of one setting, for pydantic to raise together with others."""
    error = PydanticCustomError("recipe", message)
    return InitErrorDetails(type=error, loc=key_path, input=value)


class Section(BaseModel):
    """A frozen group of settings; any other setting is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


class ModelSettings(Section):
    """The model that the run starts from: exactly one of base, preset and architecture."""

    base: Text | None = None
    """Base model to continue from: a Hugging Face model name, a NeoX model directory, a GPT-NeoX
    library checkpoint, a rewarm checkpoint, or a run directory RUN (its last checkpoint; another
    one as RUN@40000, RUN@last or RUN@before-decay). A path is relative to the folder of this file;
    ./OWNER/NAME is always a path, OWNER/NAME a model name unless that folder exists."""
    revision: Text | None = None
    """Branch, tag or commit of a base model from Hugging Face, such as step143000."""
    preset: str | None = None
    """Train newly initialized weights of a Pythia size: pythia-14m ... pythia-12b."""
    architecture: Architecture | None = None
    """Train newly initialized weights of this architecture."""
    base_lr: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    """The last learning rate of the base model, if its lineage does not record it. Rates such as
    `base` and `5x base` are multiples of it."""
    fresh: bool = False
    """Use the architecture of the base model with newly initialized weights (the from-scratch
    baseline)."""

    activation: Activation | None = None
    """The non-linearity of a base or a preset, if not its own, by Hugging Face's names: `gelu` is
    exact, `gelu_pytorch_tanh` the approximation with which GPT-NeoX trained Pythia. It is written
    to each checkpoint's config.json."""

    @model_validator(mode="after")
    def _check_one_source(self) -> ModelSettings:
        sources = [n for n in ("base", "preset", "architecture") if getattr(self, n) is not None]
        if len(sources) != 1:
            source_names = " and ".join(sources) or "none of them"
            raise ValueError(
                f"should have exactly one of base, preset, architecture; got {source_names}"
            )
        if self.preset is not None and self.preset not in PRESETS:
            names = list(PRESETS)
            message = (
                f"no preset named {self.preset!r}{did_you_mean(self.preset, names)} "
                f"(presets: {', '.join(names)})"
            )
            problem = field_problem(("preset",), message, self.preset)
            raise ValidationError.from_exception_data("Model", [problem])
        if self.base is None and (self.revision or self.fresh or self.base_lr is not None):
            raise ValueError("revision, fresh and base_lr need a base; set base, or remove them")
        if self.architecture is not None and self.activation is not None:
            raise ValueError("activation is for a base or a preset; set architecture.activation")
        return self

    def with_own_activation(self, architecture: Architecture) -> Architecture:
        """Returns the architecture of the base or preset, with `activation` if that is set."""
        if self.activation is None:
            return architecture
        return architecture.model_copy(update={"activation": self.activation})

    @property
    def explicit_architecture(self) -> Architecture | None:
        """The architecture in the recipe; None for a base model, whose files contain it."""
        return self.with_own_activation(PRESETS[self.preset]) if self.preset else self.architecture


def _check_plain_source(source: str) -> str:
    """Returns a source unchanged; refuses commands (`pipe:`, `!`) and chained URLs (`a::b`)."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", source)
    if scheme and scheme[1] not in URL_SCHEMES:
        schemes = ", ".join(f"{name}://" for name in URL_SCHEMES)
        raise ValueError(
            f"should be a folder or a URL with {schemes}; {scheme[1]}: is not supported, "
            "and commands are never run"
        )
    if "::" in source or source.startswith("!"):
        raise ValueError("should be a folder or one plain URL")
    return source


Shards = Annotated[Text, AfterValidator(_check_plain_source)]


class Percentage(float):
    """A share that was written as a percentage: those of one batch have to make 100%."""


def _keep_percentage(written: Any, validate: ValidatorFunctionWrapHandler) -> float:
    share: float = validate(written)
    is_percentage = isinstance(written, Percentage) or str(written).rstrip().endswith("%")
    return Percentage(share) if is_percentage else share


class WeightFrom(Section):
    """A corpus's weight from a point in the run onward."""

    start: Annotated[Span, Field(alias="from", ge=0, lt=1)]
    """Point in the run at which this weight starts: a share of the run (30%), tokens or steps."""
    weight: Annotated[Share, Field(ge=0, allow_inf_nan=False), WrapValidator(_keep_percentage)]
    """Share of every batch from there on: percentages that make 100%, or numbers that are relative
    to each other."""


def _as_pieces(written: Any) -> Any:
    if isinstance(written, list | tuple):
        return written
    weight = parse_share(written)
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError("should be above 0; to give a corpus no weight, remove it")
    return [{"from": 0, "weight": written}]


def _check_pieces_in_order(pieces: tuple[WeightFrom, ...]) -> tuple[WeightFrom, ...]:
    starts = [float(piece.start) for piece in pieces]
    if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(
            "should start with `from: 0`, and each `from` should be above the one before"
        )
    return pieces


def _as_written(pieces: tuple[WeightFrom, ...]) -> Any:
    if len(pieces) == 1:
        return pieces[0].weight
    return [piece.model_dump(mode="json", by_alias=True) for piece in pieces]


Weight = Annotated[
    tuple[WeightFrom, ...],
    BeforeValidator(_as_pieces, json_schema_input_type=Share | list[WeightFrom]),
    AfterValidator(_check_pieces_in_order),
    PlainSerializer(_as_written),
]


class TrainSet(Section):
    """A corpus to train on."""

    shards: Shards
    """A folder that `rewarm shard` wrote, some of its shards (data/x/{00000..00003}.tar), or a URL
    (https://, s3://, gs://, hf://). A path is relative to the folder of this file."""
    weight: Weight = (WeightFrom.model_validate({"from": 0, "weight": 1.0}),)
    """Share of every batch: percentages that make 100%, or numbers that are relative to each other.
    A list of {from: SPAN, weight: SHARE} changes the weight during the run."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """`shuffled`: in a random order that the seed determines. `sequential`: documents and
    shards in their stored order."""


class ValidationSet(Section):
    """A corpus to evaluate on, in its stored order."""

    shards: Shards
    """A folder of shards, some of its shards, or a URL, as for a training corpus."""
    tokens: Count | None = None
    """Number of tokens to evaluate on, from the start of the corpus; null for all."""
    role: Role | None = None
    """`upstream` for text that the base was trained on, whose loss measures forgetting;
    `downstream` for new text, whose loss measures adaptation. null: from the corpora in the base's
    lineage, else by the names `upstream` and `downstream`; `check` shows it."""


class DataSettings(Section):
    """Training and validation data: named corpora, mixed block by block."""

    context: Annotated[Count, Field(le=1_048_576)] = 2048
    """Tokens per sequence."""
    lanes: Annotated[int, Field(strict=True, gt=0)] = 16
    """Shards of one corpus that are read in parallel; blocks are shuffled across them."""
    documents: Literal["attend-across", "separate"] = "attend-across"
    """`attend-across`: tokens attend to earlier documents in the same sequence, as in GPT-NeoX.
    `separate`: tokens attend to their own document only."""
    max_epochs: PositiveFloat | None = 4.0
    """Maximum number of passes over a corpus; a recipe that needs more is an error. null for no
    limit."""
    verify: bool = True
    """Check the sha256 of each shard when it is first opened, and if its file changes."""
    workers: Annotated[int, Field(strict=True, ge=0, le=64)] = 1
    """Threads that read batches ahead of training. Does not change the batches."""
    cache: Count = 64_000_000_000
    """Maximum bytes of downloaded shards kept in ~/.cache/rewarm."""
    carry: bool = False
    """Continue each corpus from the base model's data position instead of from its start. The base
    must be a rewarm checkpoint with the same seed, context, lanes and corpora."""
    train: Annotated[dict[Name, TrainSet], Field(min_length=1)]
    """Corpora to train on, by name. For replay, add the upstream corpus with a weight."""
    validation: dict[Name, ValidationSet] = {}
    """Corpora to evaluate on, by name. Metrics and reports show their losses under these names."""


def _microbatch_or_auto(written: Any) -> Any:
    if written == "auto":
        return None
    if written is None or isinstance(written, str):
        raise ValueError("should be a number of sequences, or auto")
    return written


Microbatch = Annotated[
    Annotated[int, Strict(), Gt(0)] | None,
    BeforeValidator(
        _microbatch_or_auto,
        json_schema_input_type=Annotated[int, Gt(0)] | Literal["auto"],
    ),
    PlainSerializer(lambda microbatch: microbatch or "auto"),
]
"""Sequences that one GPU runs at once; None stands for `auto`."""


class BatchSettings(Section):
    """Tokens per optimizer update, and how they are split into microbatches."""

    tokens: Count
    """Tokens of one optimizer update, over all GPUs: a multiple of microbatch × context."""
    microbatch: Microbatch = Field("auto", validate_default=True)
    """Sequences that one GPU runs at once. `auto` is the largest number that fits in a GPU's
    memory, and at most 2,048 tokens on a CPU; it is written to the run's recipe, and used again
    when the run is resumed."""


def _check_two_numbers(written: Any) -> Any:
    if not (isinstance(written, list | tuple) and len(written) == 2):
        raise ValueError("should be a list of two numbers, such as [0.9, 0.95]")
    return written


class OptimizerSettings(Section):
    """AdamW. The learning rate is set by the schedule only."""

    betas: Annotated[
        tuple[
            Annotated[float, Field(strict=True, ge=0, lt=1)],
            Annotated[float, Field(strict=True, ge=0, lt=1)],
        ],
        BeforeValidator(_check_two_numbers),
    ] = (0.9, 0.95)
    """Exponential decay rates of the first and second Adam moments."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator of the update for numerical stability."""
    weight_decay: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.1
    """Decoupled weight decay, applied to matrices only."""
    clip: PositiveFloat | None = 1.0
    """Maximum gradient norm; null for no clipping."""
    carry: bool = False
    """Continue with the base model's optimizer state instead of a new one. It must have one."""


def _check_power_of_two(scale: int) -> int:
    if scale.bit_count() != 1:
        raise ValueError("should be a power of 2, so that scaling is exact")
    return scale


PowerOfTwo = Annotated[Count, Le(2**32), AfterValidator(_check_power_of_two)]


class LossScaleSettings(Section):
    """Dynamic loss scaling for `precision: fp16`, which keeps small gradients from underflowing.

    The loss is multiplied by the scale and the gradient divided by it. A step whose gradient
    overflowed is not applied. The defaults are Pythia's.
    """

    initial: PowerOfTwo = 4096
    """Initial scale, a power of 2."""
    window: Annotated[int, Field(strict=True, gt=0, le=2**24)] = 1000
    """Steps without an overflow after which the scale is doubled."""
    hysteresis: Annotated[int, Field(strict=True, gt=0, le=2**24)] = 2
    """Number of overflows since the scale was last doubled at which it is halved; each further
    overflow halves it again."""
    minimum: PowerOfTwo = 1
    """Smallest scale, a power of 2. An overflow at this scale counts as a gradient that is not
    finite (see `guard`)."""

    @model_validator(mode="after")
    def _check_initial_above_minimum(self) -> LossScaleSettings:
        if self.initial < self.minimum:
            raise ValueError(
                f"initial should be at least the minimum of {self.minimum:,}, got {self.initial:,}"
            )
        return self


class GuardSettings(Section):
    """What to do when the loss spikes, or loss or gradient are not finite."""

    patience: Annotated[int, Field(strict=True, gt=0)] = 3
    """Stop the run after this many steps in a row whose loss or gradient is not finite. Such steps
    are never applied."""
    on_spike: Literal["warn", "stop", "skip"] = "warn"
    """What to do when the loss is far above recent losses: warn, stop the run, or skip the update.
    While the learning rate rises, a higher loss is expected and is measured as the stability
    gap."""
    spike: PositiveFloat = 6.0
    """Threshold of a spike: a robust z-score relative to the median of the last 64 losses."""


class KeepSettings(Section):
    """Which checkpoints to keep when older ones are deleted.

    The newest checkpoint, the one at the end of a plateau before the final decay, and renamed ones
    are always kept.
    """

    last: Annotated[int, Field(strict=True, gt=0)] | None = None
    """Number of newest checkpoints to keep; null for all."""
    every: Steps | None = None
    """Also keep checkpoints whose step is a multiple of this number of steps."""


def _check_shard_size(written: Any) -> Any:
    if written != "all" and (type(written) is not int or written < 1):
        raise ValueError("should be a number of GPUs, 1 or more, or all")
    return written


ShardSize = Annotated[
    int | Literal["all"],
    BeforeValidator(
        _check_shard_size, json_schema_input_type=Annotated[int, Gt(0)] | Literal["all"]
    ),
]


class ParallelSettings(Section):
    """How several GPUs share a run. Its results do not depend on it, up to rounding."""

    shard: ShardSize = 1
    """GPUs among which weights, gradients and optimizer state are divided: `1` keeps all of them on
    every GPU (data parallel), `all` divides them among all GPUs (FSDP2), and a number N among
    groups of N, of which each has a copy (HSDP)."""
    timeout_minutes: PositiveFloat = 10.0
    """Minutes that GPUs wait for one that does not answer, before the run ends with its name."""

    def shard_size(self, processes: int) -> int:
        """Returns among how many processes of a run its weights are divided.

        Raises:
            ValueError: `shard` does not divide the number of processes.
        """
        if self.shard == "all":
            return processes
        if processes % self.shard:
            choices = [n for n in range(1, processes + 1) if processes % n == 0]
            raise ValueError(
                f"parallel.shard: {self.shard} does not divide {processes} GPUs; try one of "
                f"{', '.join(map(str, choices))}, or all"
            )
        return self.shard
