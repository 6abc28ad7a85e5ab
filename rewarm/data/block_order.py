"""The order of a corpus's blocks: arithmetic on seed, name and shard sizes, without file access.

```
epoch     all tars in a shuffled order, taken `lanes` at a time: each group is a window
window    the blocks of its tars in a shuffled order   -> shard and block of the n-th block
shard     its documents in a shuffled order, joined, cut into blocks of context + 1 tokens;
          neighbours share one token, and the incomplete block at the end is dropped
```
Every shuffle is seeded by what it shuffles, so any block of the endless sequence can be located
without going through those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Permutation = npt.NDArray[np.int64]


class BlockAddress(NamedTuple):
    """Where a block is stored."""

    shard: int
    """Number of the tar in the index."""
    block: int
    """Number of the block in the tar's joined documents."""


class BlockWindow(NamedTuple):
    """The blocks of a few tars, shuffled together: a range of the endless sequence."""

    epoch: int
    numbers: range
    """The blocks of the endless sequence that this window holds."""
    shards: Permutation
    """Its tars, in the order of the epoch."""
    ends: Permutation
    """For each of these tars, how many blocks it and those before it have."""
    shuffled: Permutation
    """For each of `numbers`, its block, counted through the tars one after the other."""

    def address(self, number: int) -> BlockAddress:
        """Returns where block `number` of the endless sequence is stored."""
        block = int(self.shuffled[number - self.numbers.start])
        row = int(np.searchsorted(self.ends, block, side="right"))
        start = int(self.ends[row - 1]) if row else 0
        return BlockAddress(int(self.shards[row]), block - start)


class BlockOrder:
    """The endless sequence of a corpus's blocks, a pure function of the arguments."""

    def __init__(
        self,
        *,
        seed: int,
        corpus: str,
        shard_blocks: Sequence[int],
        lanes: int,
        order: Literal["shuffled", "sequential"],
    ) -> None:
        """Fixes the order; nothing is computed yet.

        Args:
            seed: of all shuffles.
            corpus: name of the corpus, which seeds them too.
            shard_blocks: how many blocks each tar of the index holds.
            lanes: tars whose blocks are shuffled together.
            order: `sequential` for tars, documents and blocks in their stored order.
        """
        self.epoch_blocks = sum(shard_blocks)
        self._seed = seed
        self._corpus = corpus
        self._shard_blocks = np.array(shard_blocks, dtype=np.int64)
        self._shuffled = order == "shuffled"
        self._lanes = lanes if self._shuffled else 1

    def window(self, number: int) -> BlockWindow:
        """Returns the window that holds block `number` of the endless sequence."""
        epoch, position = divmod(number, self.epoch_blocks)
        shards = self.shard_order(epoch)
        firsts = range(0, len(shards), self._lanes)
        sizes = np.add.reduceat(self._shard_blocks[shards], firsts)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        window = int(np.searchsorted(starts, position, side="right")) - 1
        start, end = int(starts[window]), int(starts[window + 1])
        epoch_start = epoch * self.epoch_blocks
        in_window = shards[window * self._lanes : (window + 1) * self._lanes]
        return BlockWindow(
            epoch,
            range(epoch_start + start, epoch_start + end),
            in_window,
            np.cumsum(self._shard_blocks[in_window]),
            self._permutation(end - start, epoch, "window", window),
        )

    def shard_order(self, epoch: int) -> Permutation:
        """Returns the order of the tars in an epoch."""
        return self._permutation(len(self._shard_blocks), epoch, "shards")

    def document_order(self, epoch: int, shard: int, documents: int) -> Permutation:
        """Returns the order in which a tar's documents are joined in an epoch."""
        return self._permutation(documents, epoch, "documents", shard)

    def _permutation(self, count: int, *key: object) -> Permutation:
        """Returns 0 … count - 1, shuffled by the key unless the order is sequential."""
        if not self._shuffled:
            return np.arange(count)
        generator = _seeded_generator(self._seed, self._corpus, *key)
        return generator.permutation(count).astype(np.int64)


def _seeded_generator(*key: object) -> np.random.RandomState:
    """Returns a generator that depends on the key alone.

    NumPy guarantees that the streams of RandomState never change; not so those of Generator.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
