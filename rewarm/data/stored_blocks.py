"""The blocks of a shard folder in their stored order: what a validation loss is measured on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rewarm.data.shard_format import Shard, Tokens
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError


class StoredBlocks:
    """A shard folder's blocks in their stored order, each of shape (context + 1,).

    Documents are joined across tars; the incomplete block at the end is dropped. A tar is opened,
    and its sha256 checked, when its first block is read, and stays open.
    """

    def __init__(self, source: ShardSource, *, context: int, tokens: int | None = None) -> None:
        """Reads the index only.

        Args:
            source: of the shards.
            context: tokens in a sequence.
            tokens: use the first so many target tokens; None for all.

        Raises:
            DataError: there is less than one block.
        """
        self.source = source
        self.context = context
        stored = source.index.tokens
        self.count = min(tokens or stored, stored - 1) // context
        self._opened: list[Shard] = []
        if tokens is not None and tokens < context:
            raise DataError(
                f"{source}: a loss is to be measured on {tokens:,} tokens, less than one sequence "
                f"of {context:,}; use at least that many tokens, or a shorter context"
            )
        if self.count <= 0:
            raise DataError(
                f"{source}: too little data to measure a loss on: {stored:,} tokens, and a block "
                f"has context + 1 = {context + 1:,}; hold out more text"
            )

    @property
    def tokens(self) -> int:
        """Target tokens in all blocks."""
        return self.count * self.context

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tokens]:
        """Yields the blocks.

        Raises:
            DataError: a shard is missing or damaged.
        """
        left, context = self.count, self.context
        pending: list[Tokens] = []
        available = 0
        for number in range(len(self.source.index.shards)):
            shard = self._shard(number)
            for document in shard:
                pending.append(document)
                available += len(document)
                if available <= context:
                    continue
                joined = np.concatenate(pending)
                complete = min(left, (available - 1) // context)
                for block in range(complete):
                    yield joined[block * context : (block + 1) * context + 1]
                left -= complete
                if left <= 0:
                    return
                pending = [joined[complete * context :]]
                available = len(pending[0])

    def _shard(self, number: int) -> Shard:
        if number == len(self._opened):
            shard_info = self.source.index.shards[number]
            folder = self.source.fetch_shard(shard_info)
            self._opened.append(Shard(folder, shard_info, self.source.index.dtype))
        return self._opened[number]
