"""Mixes corpora into batches and prefetches them, starting at any position.

```
 corpora      block_order.py: maps n to the n-th block of a corpus; corpus.py: reads it
   |
 mixture      picks the next corpus: each stays within one block of its share of the blocks
   |
 TokenBatch   tokens, and the data position after it: blocks read per corpus, digest of all tokens
```
The state is one integer per corpus. The tokens depend neither on how many times a run was stopped
nor on the number of threads or processes that read. Resuming opens the shards of one shuffle window
per corpus, each when its first block is needed, and reads nothing before the data position.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.data.corpus import Corpus
from rewarm.data.mixture import Mixture, WeightPieces
from rewarm.data.sample_layout import Tokens
from rewarm.data.tokenizer import check_same_tokenizer
from rewarm.errors import DataError
from rewarm.reader_threads import ReaderThreads

TokenBlocks = npt.NDArray[np.int64]
"""Token ids, shape (sequences, context + 1): inputs are [:, :-1], targets [:, 1:]."""


EMPTY_DIGEST = "0" * 32


class DataPosition(NamedTuple):
    """The number of blocks read from each corpus, and a digest of all their tokens."""

    blocks_read: dict[str, int]
    """Blocks read so far, per corpus."""
    digest: str = EMPTY_DIGEST
    """Digest of every token so far; two runs with the same digest read the same tokens."""


class TokenBatch(NamedTuple):
    """The blocks of one step, and the data position after it."""

    tokens: TokenBlocks
    position: DataPosition


class _PlannedBlock(NamedTuple):
    """A block of a batch, before it is read."""

    corpus: str
    block_index: int
    """Zero-based index in the corpus's infinite sequence."""
    stream_index: int
    """Zero-based index in the mixture of all corpora."""


class _BatchPlan(NamedTuple):
    """The blocks of a batch that this process reads, and the counts after the batch."""

    blocks: list[_PlannedBlock]
    blocks_read: dict[str, int]
    """Blocks read per corpus after this batch, by all processes."""


class _ReadBatch(NamedTuple):
    """The tokens of one batch, as read by this process."""

    tokens: TokenBlocks
    digest: int
    """Sum of the digests of its blocks, which is added to the digest of the stream."""


def _unchanged(tokens: TokenBlocks) -> TokenBlocks:
    return tokens


class BatchLoader:
    """An infinite sequence of batches from a mixture of corpora, starting at any position.

    Of `world_size` processes, each reads every `world_size`-th row of a batch. The tokens that
    they read together do not depend on `world_size`, and the sum of their digests modulo 2**128 is
    the digest that a single process computes.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: dict[str, WeightPieces],
        *,
        weights_start: dict[str, int] | None = None,
        sequences: int,
        position: DataPosition | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Starts at `position`, or at the beginning.

        Args:
            corpora: the corpora to mix; at least one.
            weights: weight of each corpus, by name.
            weights_start: blocks of each corpus that were read before these weights began to hold;
                None if they hold from the first block on.
            sequences: number of blocks in a batch, of all processes together.
            position: the data position to start at; None for the beginning.
            rank: zero-based number of this process.
            world_size: number of processes.

        Raises:
            DataError: the corpora have different tokenizers, or the position is of other corpora.
        """
        check_same_tokenizer({str(corpus.source): corpus.index for corpus in corpora})
        self._corpora = {corpus.name: corpus for corpus in corpora}
        self._mixture = Mixture(weights, weights_start)
        self._sequences = sequences
        self._rows_of_rank = range(rank, sequences, world_size)
        self._position = position or DataPosition(dict.fromkeys(self._corpora, 0))
        if self._position.blocks_read.keys() != self._corpora.keys():
            raise DataError(
                f"the data position is of corpora {', '.join(self._position.blocks_read)}, and the "
                f"recipe has {', '.join(self._corpora)}"
            )
        if rank:  # the digest of earlier tokens counts once, on rank 0
            self._position = self._position._replace(digest=EMPTY_DIGEST)

    def shards_of_batch(self, position: DataPosition) -> dict[str, list[str]]:
        """Returns the names of the shards, by corpus, that the batch after a position reads."""
        shards: dict[str, set[str]] = {}
        blocks_read = dict(position.blocks_read)
        for _ in range(self._sequences):
            name = self._mixture.next_corpus(blocks_read)
            shard = self._corpora[name].shard_of_block(blocks_read[name])
            shards.setdefault(name, set()).add(shard)
            blocks_read[name] += 1
        return {name: sorted(names) for name, names in shards.items()}

    def batches(
        self,
        workers: int = 1,
        ahead: int = 4,
        transform: Callable[[TokenBlocks], TokenBlocks] = _unchanged,
        wait: Callable[[Future[Any]], Any] = Future.result,
    ) -> Generator[TokenBatch]:
        """Yields the batches, in order, read ahead of time by threads.

        Args:
            workers: number of threads that read; with 0, each batch is read when it is requested.
            ahead: maximum number of batches that are read ahead of time.
            transform: function applied to a batch's tokens by the thread that read them.
            wait: returns the result of a future; where it raises an error instead, the threads are
                not waited for: a read may block for as long as the storage does.

        Raises:
            DataError: a shard is missing or damaged; raised when its batch is requested.
        """
        digest = int(self._position.digest, 16)
        for batch, blocks_read in self._read_in_order(workers, ahead, transform, wait):
            digest = (digest + batch.digest) % 2**128
            yield TokenBatch(batch.tokens, DataPosition(blocks_read, f"{digest:032x}"))

    def _read_in_order(
        self,
        workers: int,
        ahead: int,
        transform: Callable[[TokenBlocks], TokenBlocks],
        wait: Callable[[Future[Any]], Any],
    ) -> Iterator[tuple[_ReadBatch, dict[str, int]]]:
        """Yields each batch, and the blocks read per corpus after it."""
        threads = ReaderThreads(max(1, workers), "rewarm-loader")
        pending: deque[tuple[Future[_ReadBatch], dict[str, int]]] = deque()
        try:
            for plan in self._plans():
                batch = threads.submit(self._read, plan.blocks, transform)
                pending.append((batch, plan.blocks_read))
                if len(pending) > (ahead if workers else 0):
                    batch, blocks_read = pending.popleft()
                    yield wait(batch), blocks_read
        finally:
            threads.close()

    def _plans(self) -> Iterator[_BatchPlan]:
        """Yields the blocks of each batch that this process reads."""
        blocks_read = dict(self._position.blocks_read)
        while True:
            blocks = []
            for row in range(self._sequences):
                name = self._mixture.next_corpus(blocks_read)
                if row in self._rows_of_rank:
                    stream_index = sum(blocks_read.values())
                    blocks.append(_PlannedBlock(name, blocks_read[name], stream_index))
                blocks_read[name] += 1
            yield _BatchPlan(blocks, dict(blocks_read))

    def _read(
        self,
        blocks: list[_PlannedBlock],
        transform: Callable[[TokenBlocks], TokenBlocks],
    ) -> _ReadBatch:
        """Reads blocks, transforms their tokens and computes their digest."""
        rows = [self._corpora[block.corpus].block(block.block_index) for block in blocks]
        digest = sum(
            _block_digest(block.stream_index, row) for block, row in zip(blocks, rows, strict=True)
        )
        return _ReadBatch(transform(np.stack(rows).astype(np.int64)), digest)


def _block_digest(stream_index: int, tokens: Tokens) -> int:
    """Returns the digest of a block's tokens and its index in the stream.

    The digest of a stream is the sum of its block digests, so that the digests of processes that
    read different rows can be added.
    """
    data = stream_index.to_bytes(8, "little") + tokens.astype("<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "little")
