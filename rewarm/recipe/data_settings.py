"""The section `data` of a recipe: the corpora that a run reads, and how."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from rewarm.quantities import Count, Share, Span, parse_share
from rewarm.recipe.fields import Name, PositiveFloat, Role, Section, Text
from rewarm.remote_storage import URL_SCHEMES


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
    (https://, s3://, gs://, hf://). A path is relative to the folder of this file. Or text: a file
    or a folder that `rewarm shard` reads, or hf://datasets/OWNER/NAME, which is sharded into
    ~/.cache/rewarm before training."""
    field: Text = "text"
    """Of text: the JSON field or table column that holds it."""
    split: Text | None = None
    """Of a folder of text that holds several splits: the one to read."""
    weight: Weight = (WeightFrom.model_validate({"from": 0, "weight": 1.0}),)
    """Share of every batch: percentages that make 100%, or numbers that are relative to each other.
    A list of {from: SPAN, weight: SHARE} changes the weight during the run."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """`shuffled`: in a random order that the seed determines. `sequential`: documents and
    shards in their stored order."""


class ValidationSet(Section):
    """A corpus to evaluate on, in its stored order."""

    shards: Shards
    """A folder of shards, some of its shards, a URL, or text, as for a training corpus."""
    field: Text = "text"
    """Of text: the JSON field or table column that holds it."""
    split: Text | None = None
    """Of a folder of text that holds several splits: the one to read."""
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
    validation: dict[Name, ValidationSet] = Field({})
    """Corpora to evaluate on, by name. Metrics and reports show their losses under these names."""
