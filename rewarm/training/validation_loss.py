"""Loss and perplexity on named validation sets; forgetting is a difference between two."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from rewarm.checkpoints.find_checkpoint import locate_base
from rewarm.checkpoints.load_weights import load_model
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.data.corpus import blocks_in_stored_order
from rewarm.data.shard_source import ShardSource
from rewarm.data.tokenizer import check_model_matches_shards
from rewarm.errors import DataError
from rewarm.model.neox import NeoX
from rewarm.quantities import perplexity
from rewarm.recipe.recipe import Recipe
from rewarm.training.device_setup import autocast, find_device


class SetLoss(NamedTuple):
    """The loss of one set."""

    loss: float
    """Mean cross-entropy per target token, in nats."""
    tokens: int
    """Target tokens measured."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


@torch.no_grad()
def measure_loss(
    model: NeoX,
    place: ShardSource,
    *,
    context: int,
    microbatch: int,
    tokens: int | None = None,
    precision: str = "fp32",
    separator: int | None = None,
) -> SetLoss:
    """Returns the model's loss on shards, in their stored order.

    Args:
        model: on the device to use.
        place: where the shards are.
        context: tokens in a sequence.
        microbatch: sequences at once.
        tokens: measure on the first so many; None for all.
        precision: of the forward pass; sums are in double precision.
        separator: the end-of-text token, if documents should not see each other.

    Raises:
        DataError: the folder is missing or damaged, or holds less than one block.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    counted = 0
    blocks = blocks_in_stored_order(place, context=context, tokens=tokens)
    while rows := list(islice(blocks, microbatch)):
        block = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
        inputs, targets = block[:, :-1], block[:, 1:]
        if len(rows) < microbatch:
            # A compiled layer has one shape: fill up, with targets that do not count.
            missing = microbatch - len(rows)
            inputs = torch.nn.functional.pad(inputs, (0, 0, 0, missing))
            targets = torch.nn.functional.pad(targets, (0, 0, 0, missing), value=-100)
        with autocast(precision, device):
            total += model.loss(inputs, targets, separator=separator, reduction="sum")
        counted += len(rows) * context
    if not counted:
        raise DataError(
            f"{place}: too little data to measure on: not one block of context + 1 = "
            f"{context + 1:,} tokens"
        )
    return SetLoss(float(total) / counted, counted)


def measure_validation_sets(
    model: NeoX, recipe: Recipe, separator: int | None = None
) -> dict[str, SetLoss]:
    """Returns the loss of every validation set of a recipe, by name."""
    return {
        name: measure_loss(
            model,
            ShardSource(said.shards, cache_bytes=recipe.data.cache),
            context=recipe.data.context,
            microbatch=recipe.microbatch,
            tokens=said.tokens,
            precision=recipe.precision,
            separator=separator,
        )
        for name, said in recipe.data.validation.items()
    }


def measure_checkpoint(
    name: str,
    sets: dict[str, ShardSource],
    *,
    context: int | None,
    microbatch: int,
    tokens: int | None,
    precision: str,
) -> dict[str, SetLoss]:
    """Returns the loss of a checkpoint, a run's last checkpoint, or any NeoX base, on named sets.

    Raises:
        CheckpointError: it cannot be found or loaded, or its tokenizer is not the shards'.
        DataError: a shard folder cannot be read.
    """
    base = locate_base(name)
    if base.kind == "rewarm checkpoint":
        verify_checkpoint(base.directory)
    context = context or base.architecture.positions
    for place in sets.values():
        facts = place.index.tokenizer
        check_model_matches_shards(base.architecture, base.directory, facts, str(place), context)
    model, _ = load_model(base.architecture, base.directory)
    model.to(find_device())
    return {
        on: measure_loss(
            model,
            place,
            context=context,
            microbatch=microbatch,
            tokens=tokens,
            precision=precision,
        )
        for on, place in sets.items()
    }
