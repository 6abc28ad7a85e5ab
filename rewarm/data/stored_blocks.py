"""Reads the blocks of a shard folder in their stored order, to measure a validation loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from rewarm.data.sample_layout import Tokens, check_in_vocabulary
from rewarm.data.shard_format import Shard
from rewarm.data.shard_source import ShardSource
from rewarm.data.text_bytes import byte_lengths_of_shards
from rewarm.errors import DataError

_KEPT_BYTES = 64_000_000
"""The most that a validation set takes up in memory; a larger one is read at each evaluation."""


class TextBytes(NamedTuple):
    """How many bytes of UTF-8 a text has."""

    size: float
    is_counted: bool
    """Whether these are the bytes of exactly these tokens, and not a mean."""


class StoredBlocks:
    """The blocks of a shard folder in their stored order, each of shape (context + 1,).

    Documents are joined across shards; the incomplete block at the end is dropped. A shard is
    opened, and its sha256 checked, when its first block is read, and stays open. Up to
    `_KEPT_BYTES` of tokens are kept in memory once they were read.
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
        self._kept: Tokens | None = None
        self._counted_bytes: int | None = None
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

    @property
    def text_bytes(self) -> TextBytes | None:
        """The bytes of text of all target tokens; None if they are not known.

        Counted while the blocks are first read, for a byte-level tokenizer. Otherwise as many as so
        many tokens have on average in the shards that hold them. End-of-text has no bytes.
        """
        if self._counted_bytes is not None:
            return TextBytes(self._counted_bytes, is_counted=True)
        shards = self.source.index.shards[: self.most_open_shards]
        known = [shard.text_bytes for shard in shards if shard.text_bytes is not None]
        if len(known) < len(shards):
            return None
        share = self.tokens / sum(shard.tokens for shard in shards)
        return TextBytes(sum(known) * share, is_counted=False)

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
        context = self.context
        if self._kept is not None:
            for shard in self._opened_shards:
                shard.check_unchanged()
            for number in range(self.block_count):
                yield self._kept[number * context : (number + 1) * context + 1]
            return
        lengths = byte_lengths_of_shards(self.source) if self._counted_bytes is None else None
        dtype, counted_bytes = np.dtype(self.source.index.dtype), 0
        is_kept = (self.tokens + 1) * dtype.itemsize <= _KEPT_BYTES
        kept = np.empty(self.tokens + 1 if is_kept else 0, dtype)
        for number, block in enumerate(self._read_blocks()):
            if lengths is not None:
                counted_bytes += int(lengths[block[1:]].sum())
            if is_kept:
                kept[number * context : (number + 1) * context + 1] = block
            if number == self.block_count - 1:
                self._kept = kept if is_kept else None
                self._counted_bytes = self._counted_bytes if lengths is None else counted_bytes
            yield block

    def _read_blocks(self) -> Iterator[Tokens]:
        """Yields the blocks, from the shards."""
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
