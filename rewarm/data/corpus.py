"""Opens the shards of a corpus and reads its blocks in the order defined by block_order.py."""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from rewarm.data.block_order import BlockAddress, BlockOrder, Permutation, ShuffleWindow
from rewarm.data.sample_layout import Positions, Tokens, check_in_vocabulary
from rewarm.data.shard_format import Shard, ShardIndex
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError
from rewarm.files import FileStamp

_SHORT_DOCUMENT = 128  # mean tokens; a joined shard takes 2 or 4 bytes per token
_DOCUMENTS_AT_ONCE = 16_384


class Corpus:
    """An infinite, shuffled sequence of token blocks; `corpus.block(n)` returns the n-th.

    `n` counts from zero and continues over epochs. Several threads may read from one corpus.
    """

    def __init__(
        self,
        name: str,
        source: ShardSource,
        *,
        context: int,
        seed: int,
        lanes: int,
        order: Literal["shuffled", "sequential"] = "shuffled",
        skip: int = 0,
        verify: bool = True,
    ) -> None:
        """Computes the order; a shard is opened when its first block is read.

        Args:
            name: name of the corpus; together with `seed`, it seeds the shuffles.
            source: the corpus's shards.
            context: tokens in a sequence.
            seed: seed of the shuffles.
            lanes: number of shards whose blocks are shuffled together (one shuffle window).
            order: `sequential` reads shards, documents and blocks in their stored order.
            skip: number of blocks to leave out; block 0 is the first one after them.
            verify: check each shard's sha256 when it is first opened, and if its file changes.

        Raises:
            DataError: no shard holds a whole block.
        """
        self.name = name
        self.source = source
        self.index = source.index
        self._context = context
        self._skip = skip
        self._verify = verify
        self._verified: dict[int, FileStamp] = {}
        self._order = BlockOrder(
            seed=seed,
            corpus=name,
            shard_blocks=self.index.shard_blocks(context),
            lanes=lanes,
            order=order,
        )
        self.blocks_per_epoch = self._order.blocks_per_epoch
        if not self.blocks_per_epoch:
            largest = max(shard.tokens for shard in self.index.shards)
            raise DataError(
                f"{source}: too little data for corpus {name!r}: its largest shard has "
                f"{largest:,} tokens, and a block takes context + 1 = {context + 1:,}"
            )
        # The current window, and the previous one, which other threads may still read from.
        self._windows: deque[_OpenWindow] = deque(maxlen=2)
        self._lock = threading.Lock()

    @property
    def most_open_shards(self) -> int:
        """The most shards that are open at once: those of two windows."""
        return 2 * min(self._order.lanes, len(self.index.shards))

    def block(self, block_index: int) -> Tokens:
        """Returns a block of the infinite sequence by its zero-based index, shape (context + 1,).

        Raises:
            DataError: its shard is missing or damaged, or holds a token outside the vocabulary.
        """
        with self._lock:  # so that each shard is opened once
            window, address = self._locate(block_index)
            if address.shard not in window.opened_shards:
                window.opened_shards[address.shard] = self._open(address.shard, window.order.epoch)
            shard = window.opened_shards[address.shard]
        tokens = shard.block(address.block, self._context)
        name = self.index.shards[address.shard].name
        location = f"{self.source}: {name}: block {address.block}"
        check_in_vocabulary(tokens, self.index.tokenizer.vocabulary, location)
        return tokens

    def shard_of_block(self, block_index: int) -> str:
        """Returns the file name of the shard that holds a block, by its zero-based index."""
        with self._lock:
            _, address = self._locate(block_index)
        return self.index.shards[address.shard].name

    def _locate(self, block_index: int) -> tuple[_OpenWindow, BlockAddress]:
        """Returns the window and the address of a block; call it with the lock held."""
        block_index += self._skip
        for window in self._windows:
            if block_index in window.order.block_indices:
                return window, window.order.address(block_index)
        self._windows.append(_OpenWindow(self._order.window_of_block(block_index), {}))
        return self._windows[-1], self._windows[-1].order.address(block_index)

    def _open(self, shard_number: int, epoch: int) -> _JoinedDocuments:
        """Opens a shard, and joins its documents in their order in an epoch."""
        shard = self.source.open_shard(
            shard_number, verify=self._verify, verified=self._verified.get(shard_number)
        )
        self._verified[shard_number] = shard.stamp
        return _JoinedDocuments(shard, self._order.document_order(epoch, shard_number, len(shard)))


class _OpenWindow(NamedTuple):
    """A shuffle window and its opened shards, keyed by shard number."""

    order: ShuffleWindow
    opened_shards: dict[int, _JoinedDocuments]


class _JoinedDocuments:
    """A shard's documents joined in a given order, cut into blocks.

    Long documents are read from the shard when a block needs them. Short ones, of which a block
    needs many, are joined in memory: that takes less than where each of them is.
    """

    def __init__(self, shard: Shard, document_order: Permutation) -> None:
        self._shard = shard
        ends = shard.document_ends()
        stored_lengths = np.diff(ends, prepend=0)
        starts, lengths = (ends - stored_lengths)[document_order], stored_lengths[document_order]
        self._joined: Tokens | None = None
        self._document_ends = self._document_offsets = np.empty(0, np.int64)
        if lengths.sum() < _SHORT_DOCUMENT * len(lengths):
            self._joined = _join(shard, starts, lengths)
        else:
            self._document_ends = np.cumsum(lengths)
            self._document_offsets = shard.offsets(starts)

    def block(self, number: int, context: int) -> Tokens:
        """Returns context + 1 tokens starting at number · context.

        Consecutive blocks overlap by one token: inputs are [:-1], targets [1:].
        """
        start, end = number * context, (number + 1) * context + 1
        joined = self._read(start, end) if self._joined is None else self._joined[start:end]
        self._shard.check_unchanged()
        return joined

    def _read(self, start: int, end: int) -> Tokens:
        """Returns the tokens from `start` to `end` of the joined documents."""
        first = int(np.searchsorted(self._document_ends, start, side="right"))
        last = int(np.searchsorted(self._document_ends, end, side="left"))
        ends = self._document_ends[first : last + 1].tolist()
        offsets = self._document_offsets[first : last + 1].tolist()
        document_start = int(self._document_ends[first - 1]) if first else 0
        offsets[0] += (start - document_start) * self._shard.dtype.itemsize
        ends[-1] = end
        counts = [b - a for a, b in zip([start, *ends], ends, strict=False)]
        return self._shard.read(offsets, counts)


def _join(shard: Shard, starts: Positions, lengths: Positions) -> Tokens:
    """Returns all documents of a shard, joined in a given order.

    Args:
        shard: the shard.
        starts: for each document, the tokens before it in the stored order; in the given order.
        lengths: its tokens, in the same order.
    """
    stored = np.concatenate(list(shard.joined_documents()))
    joined = np.empty_like(stored)
    end = 0
    for first in range(0, len(starts), _DOCUMENTS_AT_ONCE):
        group = slice(first, first + _DOCUMENTS_AT_ONCE)
        begin, end = end, end + int(lengths[group].sum())
        # The position of each token in the stored order: those of one document are consecutive.
        shifts = starts[group] - (np.cumsum(lengths[group]) - lengths[group])
        joined[begin:end] = stored[np.repeat(shifts, lengths[group]) + np.arange(end - begin)]
    return joined


def check_epochs(
    name: str,
    index: ShardIndex,
    needed_blocks: float,
    *,
    context: int,
    max_epochs: float | None,
) -> None:
    """Checks that a run makes at most the maximum number of passes over a corpus.

    Args:
        name: name of the corpus.
        index: index of its shards.
        needed_blocks: number of its blocks that the run needs.
        context: tokens in a sequence.
        max_epochs: maximum number of passes over the corpus; None for no limit.

    Raises:
        DataError: the run needs more than `max_epochs` times the blocks of the corpus.
    """
    available_blocks = sum(index.shard_blocks(context))
    if max_epochs is not None and needed_blocks > max_epochs * available_blocks:
        raise DataError(
            f"corpus {name!r}: the run needs {round(needed_blocks) * context:,} tokens of it and "
            f"it has {available_blocks * context:,}: {needed_blocks / available_blocks:.2f} "
            f"epochs, and data.max_epochs is {max_epochs:g}; give it more text or less weight, or "
            "set data.max_epochs (null for no limit)"
        )
