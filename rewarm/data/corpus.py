"""A corpus as an endless, shuffled sequence of token blocks."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from rewarm.data.shard_format import Shard, ShardIndex, Tokens
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError

Order = npt.NDArray[np.int64]


def _generator(*what: object) -> np.random.RandomState:
    """Returns a generator that depends on `what` alone.

    NumPy freezes the streams of RandomState for good, which it does not promise for Generator.
    """
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


class Corpus:
    """A shard folder as an endless, shuffled sequence of blocks; `corpus.block(n)` is the n-th."""

    def __init__(
        self,
        name: str,
        place: ShardSource,
        *,
        context: int,
        seed: int,
        lanes: int,
        order: Literal["shuffled", "sequential"] = "shuffled",
        first: int = 0,
        verify: bool = True,
    ) -> None:
        """Tars are opened when their blocks come up.

        Args:
            name: of the corpus; it decides its order too.
            place: where its shards are.
            context: tokens in a sequence.
            seed: of the order.
            lanes: tars whose blocks are shuffled together.
            order: `sequential` for blocks, documents and tars as they are stored.
            first: blocks of the sequence that were taken before; block 0 is the one behind them.
            verify: check each tar's sha256 when it is first opened.

        Raises:
            DataError: it holds less than one block.
        """
        self.name = name
        self.place = place
        self.index = place.index
        self._context = context
        self._seed = seed
        self._first = first
        self._shuffled = order == "shuffled"
        self._lanes = lanes if self._shuffled else 1
        self._unverified = set(range(len(self.index.shards))) if verify else set()
        self._sizes = np.array(self.index.blocks(context), dtype=np.int64)
        self.blocks = int(self._sizes.sum())
        if not self.blocks:
            largest = max(shard.tokens for shard in self.index.shards)
            raise DataError(
                f"{place}: too little data for corpus {name!r}: its largest shard has "
                f"{largest:,} tokens, and a block takes context + 1 = {context + 1:,}"
            )
        # The one being read and, while threads are still behind its beginning, the one before.
        self._windows: deque[_Window] = deque(maxlen=2)
        self._lock = threading.Lock()

    def block(self, number: int) -> Tokens:
        """Returns block `number` of the endless sequence, shape (context + 1,).

        Raises:
            DataError: its shard is missing or damaged, or holds a token outside the vocabulary.
        """
        epoch, place = divmod(self._first + number, self.blocks)
        with self._lock:  # several threads may read; opening a tar is done once
            window = self._window(epoch, place)
            shard, block = window.address(place)
            if shard not in window.opened:
                window.opened[shard] = self._open(shard, epoch)
            joined = window.opened[shard]
        tokens = joined.block(block, self._context)
        if tokens.max() >= self.index.tokenizer.vocabulary:
            raise DataError(
                f"{self.place}: {self.index.shards[shard].name}: token {tokens.max()} is outside "
                f"the tokenizer's vocabulary of {self.index.tokenizer.vocabulary:,}; the shard is "
                "damaged: write the folder again with `rewarm shard`"
            )
        return tokens

    def shard(self, number: int) -> str:
        """Returns the name of the tar in which block `number` lies."""
        epoch, place = divmod(self._first + number, self.blocks)
        with self._lock:
            shard, _ = self._window(epoch, place).address(place)
        return self.index.shards[shard].name

    def _window(self, epoch: int, place: int) -> _Window:
        """Returns the `lanes` consecutive tars of the epoch's order in which a block lies."""
        for window in self._windows:
            if window.epoch == epoch and place in window.places:
                return window
        order = self._order(len(self._sizes), epoch, "shards")
        firsts = range(0, len(order), self._lanes)
        starts = np.concatenate([[0], np.cumsum(np.add.reduceat(self._sizes[order], firsts))])
        which = int(np.searchsorted(starts, place, side="right")) - 1
        shards = order[which * self._lanes : (which + 1) * self._lanes]
        window = _Window(
            epoch,
            range(int(starts[which]), int(starts[which + 1])),
            shards,
            self._sizes[shards],
            self._order(int(starts[which + 1] - starts[which]), epoch, "window", which),
        )
        self._windows.append(window)
        return window

    def _open(self, shard: int, epoch: int) -> _Joined:
        facts, check = self.index.shards[shard], shard in self._unverified
        opened = Shard(self.place.fetch(facts), facts, self.index.dtype, check=check)
        self._unverified.discard(shard)
        return _Joined(opened, self._order(len(opened), epoch, "documents", shard))

    def _order(self, count: int, *what: object) -> Order:
        """Returns the order of `count` things: as they are, or shuffled by what they are."""
        if not self._shuffled:
            return np.arange(count)
        return _generator(self._seed, self.name, *what).permutation(count).astype(np.int64)


class _Window:
    """The blocks of a few tars, side by side and shuffled: `places` of the epoch's sequence."""

    def __init__(
        self,
        epoch: int,
        places: range,
        shards: Order,
        sizes: Order,
        order: Order,
    ) -> None:
        self.epoch = epoch
        self.places = places
        self.opened: dict[int, _Joined] = {}
        self._shards = shards
        self._ends = np.cumsum(sizes)
        self._order = order

    def address(self, place: int) -> tuple[int, int]:
        """Returns (shard, block in it) of the block at `place`."""
        block = int(self._order[place - self.places.start])
        which = int(np.searchsorted(self._ends, block, side="right"))
        start = int(self._ends[which - 1]) if which else 0
        return int(self._shards[which]), block - start


class _Joined:
    """A tar's documents joined in a given order, cut into blocks."""

    def __init__(self, shard: Shard, order: Order) -> None:
        self._shard = shard
        self._order = order
        self._ends = np.cumsum(shard.lengths[order])

    def block(self, number: int, context: int) -> Tokens:
        """Returns tokens [number · context, number · context + context] of the joined documents."""
        at, end = number * context, (number + 1) * context + 1
        document = int(np.searchsorted(self._ends, at, side="right"))
        parts = []
        while at < end:
            tokens = self._shard[int(self._order[document])]
            start = at - (int(self._ends[document]) - len(tokens))
            parts.append(tokens[start : start + end - at])
            at += len(parts[-1])
            document += 1
        joined: Tokens = np.concatenate(parts)
        return joined


def check_epochs(
    name: str, index: ShardIndex, blocks: float, *, context: int, most: float | None
) -> None:
    """Makes sure that a corpus need not be gone through more often than is wanted.

    Raises:
        DataError: `blocks` are more than `most` times what the corpus has.
    """
    there = sum(index.blocks(context))
    if most is not None and blocks > most * there:
        raise DataError(
            f"corpus {name!r}: the run needs {round(blocks) * context:,} tokens of it and it has "
            f"{there * context:,}: {blocks / there:.2f} epochs, and data.max_epochs is {most:g}; "
            "give it more text or less weight, or set data.max_epochs (null for no limit)"
        )


def blocks_in_stored_order(
    place: ShardSource, *, context: int, tokens: int | None
) -> Iterator[Tokens]:
    """Yields the blocks of shards as they are stored, shape (context + 1,).

    Documents are joined across tars; what is left at the end is less than a block and is dropped.
    At most `tokens` targets are covered; None is for all.

    Raises:
        DataError: a shard is missing or damaged.
    """
    index = place.index
    blocks = min(tokens or index.tokens, index.tokens - 1) // context
    rest: list[Tokens] = []
    have = 0
    for facts in index.shards:
        if blocks <= 0:
            return
        shard = Shard(place.fetch(facts), facts, index.dtype)
        for document in range(len(shard)):
            rest.append(shard[document])
            have += len(rest[-1])
            if have <= context:
                continue
            joined = np.concatenate(rest)
            whole = min(blocks, (have - 1) // context)
            for block in range(whole):
                yield joined[block * context : (block + 1) * context + 1]
            blocks -= whole
            rest = [joined[whole * context :]]
            have = len(rest[0])
            if blocks <= 0:
                return
