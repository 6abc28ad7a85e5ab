"""Loss and perplexity on named validation sets; forgetting is the difference between two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from rewarm.data.batch_loader import TokenBlocks
from rewarm.data.prefetch import prefetch
from rewarm.data.stored_blocks import StoredBlocks, TextBytes
from rewarm.model.neox import NeoX
from rewarm.quantities import perplexity
from rewarm.training.device_setup import autocast
from rewarm.training.padding import padded
from rewarm.training.processes import ALONE, Processes


class SetLoss(NamedTuple):
    """The loss on one validation set."""

    loss: float
    """Mean cross-entropy per target token, in nats."""
    tokens: int
    """Target tokens measured."""
    text_bytes: TextBytes | None = None
    """Bytes of text that these tokens stand for; None if they are not known."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """The loss in bits per byte of text, which does not depend on the tokenizer.

        The loss of end-of-text tokens counts, and they have no bytes.
        """
        if self.text_bytes is None or not self.text_bytes.size:
            return None
        return self.loss * self.tokens / self.text_bytes.size / math.log(2)


@torch.no_grad()
def measure_loss(
    model: NeoX,
    blocks: StoredBlocks,
    *,
    microbatch: int,
    precision: str = "fp32",
    separator_id: int | None = None,
    wait: Callable[[Future[Any]], Any] = Future.result,
    processes: Processes = ALONE,
) -> SetLoss:
    """Returns the model's loss on blocks of shape (context + 1,), in their stored order.

    Args:
        model: on the device to use.
        blocks: what to measure on.
        microbatch: sequences at once.
        precision: of the forward pass; sums are in double precision.
        separator_id: the end-of-text token, where documents must not attend to each other.
        wait: returns the result of a future, here the next microbatch; an error that it raises
            ends the measurement.
        processes: that share the blocks.

    Raises:
        DataError: a shard is missing or damaged.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    try:
        for rows in prefetch(_microbatches(blocks, microbatch, processes), depth=2, wait=wait):
            tokens = torch.from_numpy(rows).to(device)
            inputs, targets = padded(tokens, microbatch)  # a compiled layer has one shape
            with autocast(precision, device):
                total += model.loss(inputs, targets, separator_id=separator_id, reduction="sum")
    finally:  # also if a stop ends it: what follows saves the divided weights
        processes.free_whole_weights(model)
    loss = float(processes.sum(total)) / blocks.tokens
    return SetLoss(loss, blocks.tokens, blocks.text_bytes)


def _microbatches(
    blocks: StoredBlocks, microbatch: int, processes: Processes
) -> Iterator[TokenBlocks]:
    """Yields the microbatches of this process: as many as of every other, the last may be empty."""
    rest = iter(blocks)
    while rows := list(islice(rest, microbatch * processes.size)):
        own = rows[processes.rank * microbatch :][:microbatch]
        yield np.reshape(own, (len(own), blocks.context + 1)).astype(np.int64)


def measure_losses(
    model: NeoX,
    sets: dict[str, StoredBlocks],
    *,
    microbatch: int,
    precision: str,
    separator_id: int | None = None,
    wait: Callable[[Future[Any]], Any] = Future.result,
    processes: Processes = ALONE,
) -> dict[str, SetLoss]:
    """Returns the loss on each validation set, by name; arguments as for `measure_loss`."""
    return {
        name: measure_loss(
            model,
            blocks,
            microbatch=microbatch,
            precision=precision,
            separator_id=separator_id,
            wait=wait,
            processes=processes,
        )
        for name, blocks in sets.items()
    }
