"""Reads the blocks of a shard folder in their stored order, to measure a validation loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from rewarm.data.sample_layout import Tokens, check_in_vocabulary
from rewarm.data.shard_format import Shard
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError


class StoredBlocks:
    """The blocks of a shard folder in their stored order, each of shape (context + 1,).

    Documents are joined across shards; the incomplete block at the end is dropped. A shard is
    opened, and its sha256 checked, when its first block is read, and stays open.
    """

    def __init__(self, source: ShardSource, *, context: int, tokens: int | None = None) -> None:
        """Reads the index only.

        Args:
            source: the shards to read.
            context: tokens in a sequence.
            tokens: maximum number of target tokens to use, from the first on; None for all.

        Raises:
            DataError: the shards, or `tokens`, are less than one block.
        """
        self.source = source
        self.context = context
        stored_tokens = source.index.tokens
        self.block_count = min(tokens or stored_tokens, stored_tokens - 1) // context
        self._opened_shards: list[Shard] = []
        if tokens is not None and tokens < context:
            raise DataError(
                f"{source}: cannot measure a loss on {tokens:,} tokens, less than one sequence of "
                f"{context:,}; use at least that many tokens, or a shorter context"
            )
        if self.block_count <= 0:
            raise DataError(
                f"{source}: too little data to measure a loss on: {stored_tokens:,} tokens, and a "
                f"block has context + 1 = {context + 1:,}; hold out more text"
            )

    @property
    def tokens(self) -> int:
        """Number of target tokens in all blocks."""
        return self.block_count * self.context

    @property
    def most_open_shards(self) -> int:
        """The most shards that are open at once: all that hold a token of the blocks."""
        shards = self.source.index.shards
        tokens_before = accumulate((shard.tokens for shard in shards[:-1]), initial=0)
        return sum(tokens <= self.tokens for tokens in tokens_before)

    def digest(self) -> str:
        """Returns a digest of what is measured: of the shards that are read, and how far."""
        index = self.source.index
        shards = [shard.sha256 for shard in index.shards[: self.most_open_shards]]
        parts = [index.tokenizer.digest, index.dtype, self.context, self.tokens, *shards]
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def __len__(self) -> int:
        return self.block_count

    def __iter__(self) -> Iterator[Tokens]:
        """Yields the blocks.

        Raises:
            DataError: a shard is missing or damaged, or holds a token outside the vocabulary.
        """
        remaining_blocks, context = self.block_count, self.context
        pending: list[Tokens] = []
        pending_tokens = 0
        for shard_number in range(len(self.source.index.shards)):
            for tokens in self._tokens_of_shard(shard_number):
                pending.append(tokens)
                pending_tokens += len(tokens)
                if pending_tokens <= context:
                    continue
                joined = np.concatenate(pending)
                complete_blocks = min(remaining_blocks, (pending_tokens - 1) // context)
                for i in range(complete_blocks):
                    yield joined[i * context : (i + 1) * context + 1]
                remaining_blocks -= complete_blocks
                if remaining_blocks <= 0:
                    return
                pending = [joined[complete_blocks * context :]]
                pending_tokens = len(pending[0])

    def _tokens_of_shard(self, shard_number: int) -> Iterator[Tokens]:
        """Yields the tokens of a shard, many at a time, after checking them."""
        index, first = self.source.index, 0
        location = f"{self.source}: {index.shards[shard_number].name}"
        for tokens in self._shard(shard_number).joined_documents():
            check_in_vocabulary(tokens, index.tokenizer.vocabulary, location, first=first)
            first += len(tokens)
            yield tokens

    def _shard(self, shard_number: int) -> Shard:
        """Returns a shard, which is opened at the first call; call it in ascending order first."""
        if shard_number == len(self._opened_shards):
            self._opened_shards.append(self.source.open_shard(shard_number))
        return self._opened_shards[shard_number]
