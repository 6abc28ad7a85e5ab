"""The order in which a corpus's blocks are read, computed without opening a file.

```
epoch     all shards in a shuffled order; each group of `lanes` shards is one shuffle window
window    the blocks of its shards in a shuffled order   -> shard and block of the n-th block
shard     its documents in a shuffled order, joined, cut into blocks of context + 1 tokens;
          neighboring blocks share one token, and the incomplete block at the end is dropped
```
Each shuffle depends only on the seed, the corpus, the epoch and what is shuffled, so any block of
the infinite sequence can be located without computing those before it.
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
    """Zero-based number of the shard in the index."""
    block: int
    """Zero-based number of the block in the shard's joined documents."""


class ShuffleWindow(NamedTuple):
    """The blocks of `lanes` shards, shuffled together: a range of the infinite sequence."""

    epoch: int
    block_indices: range
    """The positions in the infinite sequence that this window fills."""
    shards: Permutation
    """The numbers of its shards, in the order of the epoch."""
    cumulative_blocks: Permutation
    """For each of these shards, the number of blocks in it and in those before it."""
    shuffled_blocks: Permutation
    """For each of `block_indices`, the block read there, counted over the joined shards."""

    def address(self, block_index: int) -> BlockAddress:
        """Returns where a block of the infinite sequence is stored."""
        block = int(self.shuffled_blocks[block_index - self.block_indices.start])
        i = int(np.searchsorted(self.cumulative_blocks, block, side="right"))
        first_block = int(self.cumulative_blocks[i - 1]) if i else 0
        return BlockAddress(int(self.shards[i]), block - first_block)


class BlockOrder:
    """The infinite sequence of a corpus's blocks, a pure function of the arguments."""

    def __init__(
        self,
        *,
        seed: int,
        corpus: str,
        shard_blocks: Sequence[int],
        lanes: int,
        order: Literal["shuffled", "sequential"],
    ) -> None:
        """Stores the arguments; nothing is computed yet.

        Args:
            seed: seed of all shuffles.
            corpus: name of the corpus, which also seeds the shuffles.
            shard_blocks: number of blocks in each shard of the index.
            lanes: number of shards whose blocks are shuffled together.
            order: `sequential` reads shards, documents and blocks in their stored order.
        """
        self.blocks_per_epoch = sum(shard_blocks)
        self._seed = seed
        self._corpus = corpus
        self._shard_blocks = np.array(shard_blocks, dtype=np.int64)
        self._is_shuffled = order == "shuffled"
        self.lanes = lanes if self._is_shuffled else 1

    def window_of_block(self, block_index: int) -> ShuffleWindow:
        """Returns the shuffle window that holds a block, by its zero-based index."""
        epoch, index_in_epoch = divmod(block_index, self.blocks_per_epoch)
        shards = self.shard_order(epoch)
        first_shards = range(0, len(shards), self.lanes)
        window_sizes = np.add.reduceat(self._shard_blocks[shards], first_shards)
        window_starts = np.concatenate([[0], np.cumsum(window_sizes)])
        window = int(np.searchsorted(window_starts, index_in_epoch, side="right")) - 1
        start, end = int(window_starts[window]), int(window_starts[window + 1])
        epoch_start = epoch * self.blocks_per_epoch
        window_shards = shards[window * self.lanes : (window + 1) * self.lanes]
        return ShuffleWindow(
            epoch,
            range(epoch_start + start, epoch_start + end),
            window_shards,
            np.cumsum(self._shard_blocks[window_shards]),
            self._permutation(end - start, epoch, "window", window),
        )

    def shard_order(self, epoch: int) -> Permutation:
        """Returns the order of the shards in an epoch."""
        return self._permutation(len(self._shard_blocks), epoch, "shards")

    def document_order(self, epoch: int, shard: int, documents: int) -> Permutation:
        """Returns the order in which a shard's documents are joined in an epoch."""
        return self._permutation(documents, epoch, "documents", shard)

    def _permutation(self, count: int, *key: object) -> Permutation:
        """Returns 0 … count - 1, shuffled by the key unless the order is sequential."""
        if not self._is_shuffled:
            return np.arange(count)
        generator = _seeded_generator(self._seed, self._corpus, *key)
        return generator.permutation(count).astype(np.int64)


def _seeded_generator(*key: object) -> np.random.RandomState:
    """Returns a generator that depends only on the key.

    NumPy guarantees that the streams of RandomState never change, but not those of Generator.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
