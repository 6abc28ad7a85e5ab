"""Opens the shards of a corpus and reads its blocks in the order of block_order.py."""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from rewarm.data.block_order import BlockAddress, BlockOrder, BlockWindow, Permutation
from rewarm.data.shard_format import Shard, ShardIndex, Tokens
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError


class Corpus:
    """An endless, shuffled sequence of token blocks; `corpus.block(n)` returns the n-th.

    Several threads may read from one corpus.
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
        """Computes the order; a tar is opened when its first block is read.

        Args:
            name: of the corpus; it seeds the order, together with `seed`.
            source: of its shards.
            context: tokens in a sequence.
            seed: of the order.
            lanes: tars whose blocks are shuffled together.
            order: `sequential` for tars, documents and blocks in their stored order.
            skip: blocks at the beginning of the sequence to leave out: block 0 follows them.
            verify: check each tar's sha256 when it is first opened.

        Raises:
            DataError: it holds less than one block.
        """
        self.name = name
        self.source = source
        self.index = source.index
        self._context = context
        self._skip = skip
        self._unverified = set(range(len(self.index.shards))) if verify else set()
        self._order = BlockOrder(
            seed=seed,
            corpus=name,
            shard_blocks=self.index.shard_blocks(context),
            lanes=lanes,
            order=order,
        )
        self.blocks = self._order.epoch_blocks
        """Blocks in one epoch."""
        if not self.blocks:
            largest = max(shard.tokens for shard in self.index.shards)
            raise DataError(
                f"{source}: too little data for corpus {name!r}: its largest shard has "
                f"{largest:,} tokens, and a block takes context + 1 = {context + 1:,}"
            )
        # The current window, and the one before while threads still read from it.
        self._windows: deque[_OpenWindow] = deque(maxlen=2)
        self._lock = threading.Lock()

    def block(self, number: int) -> Tokens:
        """Returns block `number` of the endless sequence, shape (context + 1,).

        Raises:
            DataError: its shard is missing or damaged, or holds a token outside the vocabulary.
        """
        with self._lock:  # so that each tar is opened once
            window, address = self._locate(number)
            if address.shard not in window.documents:
                window.documents[address.shard] = self._open(address.shard, window.order.epoch)
            documents = window.documents[address.shard]
        tokens = documents.block(address.block, self._context)
        if tokens.max() >= self.index.tokenizer.vocabulary:
            raise DataError(
                f"{self.source}: {self.index.shards[address.shard].name}: token {tokens.max()} is "
                f"outside the tokenizer's vocabulary of {self.index.tokenizer.vocabulary:,}; the "
                "shard is damaged: write the folder again with `rewarm shard`"
            )
        return tokens

    def shard_of_block(self, number: int) -> str:
        """Returns the name of the tar that holds block `number` of the endless sequence."""
        with self._lock:
            _, address = self._locate(number)
        return self.index.shards[address.shard].name

    def _locate(self, number: int) -> tuple[_OpenWindow, BlockAddress]:
        """Returns the window and the address of a block; call it with the lock held."""
        number += self._skip
        for window in self._windows:
            if number in window.order.numbers:
                return window, window.order.address(number)
        self._windows.append(_OpenWindow(self._order.window(number), {}))
        return self._windows[-1], self._windows[-1].order.address(number)

    def _open(self, number: int, epoch: int) -> _JoinedDocuments:
        shard_info = self.index.shards[number]
        folder = self.source.fetch_shard(shard_info)
        verify = number in self._unverified
        shard = Shard(folder, shard_info, self.index.dtype, verify=verify)
        self._unverified.discard(number)
        return _JoinedDocuments(shard, self._order.document_order(epoch, number, len(shard)))


class _OpenWindow(NamedTuple):
    """A window, and those of its tars that were opened so far, by number."""

    order: BlockWindow
    documents: dict[int, _JoinedDocuments]


class _JoinedDocuments:
    """A tar's documents joined in a given order, cut into blocks."""

    def __init__(self, shard: Shard, order: Permutation) -> None:
        self._shard = shard
        self._order = order
        self._ends = np.cumsum(shard.lengths[order])

    def block(self, number: int, context: int) -> Tokens:
        """Returns tokens [number · context, number · context + context] of the joined documents."""
        position, end = number * context, (number + 1) * context + 1
        row = int(np.searchsorted(self._ends, position, side="right"))
        parts = []
        while position < end:
            document = self._shard[int(self._order[row])]
            start = position - (int(self._ends[row]) - len(document))
            parts.append(document[start : start + end - position])
            position += len(parts[-1])
            row += 1
        joined: Tokens = np.concatenate(parts)
        return joined


def check_epochs(
    name: str, index: ShardIndex, blocks: float, *, context: int, max_epochs: float | None
) -> None:
    """Checks that a run does not repeat a corpus more often than allowed.

    Args:
        name: of the corpus.
        index: its shards.
        blocks: how many of its blocks the run needs.
        context: tokens in a sequence.
        max_epochs: how often it may be repeated; None for any number.

    Raises:
        DataError: `blocks` are more than `max_epochs` times what the corpus has.
    """
    available = sum(index.shard_blocks(context))
    if max_epochs is not None and blocks > max_epochs * available:
        raise DataError(
            f"corpus {name!r}: the run needs {round(blocks) * context:,} tokens of it and it has "
            f"{available * context:,}: {blocks / available:.2f} epochs, and data.max_epochs is "
            f"{max_epochs:g}; give it more text or less weight, or set data.max_epochs (null for "
            "no limit)"
        )
