"""The sections of a recipe on training: batch, optimizer, loss scale, guard, saving, GPUs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    model_validator,
)

from rewarm.quantities import Count
from rewarm.recipe.fields import PositiveFloat, Section, Steps


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


class EmaSettings(Section):
    """An exponential moving average of the weights, in fp32. It does not change training."""

    decay: Annotated[float, Field(strict=True, gt=0, lt=1)]
    """The share that the average keeps at each step: with 0.999 half of it is of the last 693
    steps."""


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
    z_loss: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    """Coefficient of the z-loss, z_loss · log(Z)² averaged over the tokens, which is minimized
    beside the cross-entropy and keeps the logits from growing (PaLM: 1e-4); 0 for none."""
    ema: EmaSettings | None = None
    """Keep an exponential moving average of the weights, which is evaluated beside them and saved
    in each checkpoint (RUN@ema); null for none."""
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


_SUM_OF_NAMES = r"^[A-Za-z0-9][A-Za-z0-9_.-]*( *\+ *[A-Za-z0-9][A-Za-z0-9_.-]*)*$"


class KeepSettings(Section):
    """Which checkpoints to keep when older ones are deleted.

    The newest checkpoint, the one at the end of a plateau before the final decay, and renamed ones
    are always kept.
    """

    last: Annotated[int, Field(strict=True, gt=0)] | None = None
    """Number of newest checkpoints to keep; null for all."""
    every: Steps | None = None
    """Also keep checkpoints whose step is a multiple of this number of steps."""
    best: Annotated[str, StringConstraints(pattern=_SUM_OF_NAMES)] | None = None
    """Also keep the checkpoint with the lowest loss on this validation set, or sum of losses, such
    as upstream+downstream. Checkpoints of steps that were evaluated are compared; RUN@best is it.
    null for none."""

    @property
    def best_sets(self) -> tuple[str, ...]:
        """The validation sets whose losses are added up to find the best checkpoint."""
        return tuple(name.strip() for name in self.best.split("+")) if self.best else ()


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
