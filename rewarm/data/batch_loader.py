"""Mixes corpora into batches and reads them ahead of time, starting at any position.

```
 corpora      block_order.py: which block is the n-th of a corpus; corpus.py: reads it
   |
 mixture      which corpus gives the next block: never a whole block away from its weight
   |
 TokenBatch   tokens, and the data position after it: blocks used per corpus, digest of all tokens
```
The state is one integer per corpus. The tokens depend neither on how often a run was stopped nor on
how many threads or processes read. Resuming opens the tars of one window per corpus, as their
blocks are needed, and reads nothing before the position.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.data.corpus import Corpus
from rewarm.data.mixture import Mixture, WeightPieces
from rewarm.data.shard_format import Tokens
from rewarm.data.tokenizer import check_same_tokenizer
from rewarm.errors import DataError

TokenBlocks = npt.NDArray[np.int64]
"""Token ids, shape (sequences, context + 1): inputs are [:, :-1], targets [:, 1:]."""


EMPTY_DIGEST = "0" * 32


class DataPosition(NamedTuple):
    """How many blocks of each corpus were used, and a digest that proves which tokens they were."""

    blocks: dict[str, int]
    """Blocks used so far, per corpus."""
    digest: str = EMPTY_DIGEST
    """Digest of every token so far; two runs with the same digest saw the same tokens."""


class TokenBatch(NamedTuple):
    """The blocks of one step, and the data position after it."""

    tokens: TokenBlocks
    position: DataPosition


class _PlannedBlock(NamedTuple):
    """A block of a batch, before it is read."""

    corpus: str
    number: int
    """In the corpus's endless sequence."""
    stream_number: int
    """In the mixture of all corpora."""


class _BatchPlan(NamedTuple):
    """The blocks of a batch that this process reads, and the block counts after the batch."""

    blocks: list[_PlannedBlock]
    counts: dict[str, int]


class _ReadBatch(NamedTuple):
    tokens: TokenBlocks
    digest: int
    """What these blocks add to the digest of the stream."""


def _unchanged(tokens: TokenBlocks) -> TokenBlocks:
    return tokens


class BatchLoader:
    """An endless sequence of batches from a mixture of corpora, starting at any position.

    Of `world_size` processes, each reads every `world_size`-th row of a batch. What they read
    together does not depend on their number, and their digests add up, modulo 2**128, to the digest
    that one process computes.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: dict[str, WeightPieces],
        *,
        sequences: int,
        position: DataPosition | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Starts at `position`, or at the beginning.

        Args:
            corpora: to mix; at least one.
            weights: of each corpus, by name.
            sequences: blocks in a batch, of all processes together.
            position: where to start.
            rank: number of this process.
            world_size: number of processes.

        Raises:
            DataError: the corpora have different tokenizers, or the position is of other corpora.
        """
        check_same_tokenizer({str(corpus.source): corpus.index for corpus in corpora})
        self._corpora = {corpus.name: corpus for corpus in corpora}
        self._mixture = Mixture(weights)
        self._sequences = sequences
        self._own_rows = range(rank, sequences, world_size)
        self._position = position or DataPosition(dict.fromkeys(self._corpora, 0))
        if self._position.blocks.keys() != self._corpora.keys():
            raise DataError(
                f"the data position is of corpora {', '.join(self._position.blocks)}, and the "
                f"recipe has {', '.join(self._corpora)}"
            )
        if rank:  # the digest of earlier tokens counts once, on rank 0
            self._position = self._position._replace(digest=EMPTY_DIGEST)

    def shards_of_batch(self, before: DataPosition) -> dict[str, list[str]]:
        """Returns the tars, by corpus, that the batch after a position is read from."""
        shards: dict[str, set[str]] = {}
        counts = dict(before.blocks)
        for _ in range(self._sequences):
            name = self._mixture.next_corpus(counts)
            shards.setdefault(name, set()).add(self._corpora[name].shard_of_block(counts[name]))
            counts[name] += 1
        return {name: sorted(names) for name, names in shards.items()}

    def batches(
        self,
        workers: int = 1,
        ahead: int = 4,
        transform: Callable[[TokenBlocks], TokenBlocks] = _unchanged,
    ) -> Generator[TokenBatch]:
        """Yields the batches, in order, read ahead of time by threads.

        Args:
            workers: threads that read; with 0, a batch is read when it is asked for.
            ahead: batches that may be ready at once.
            transform: applied to a batch's tokens by the thread that read them.

        Raises:
            DataError: a shard is missing or damaged; raised when its batch is due.
        """
        digest = int(self._position.digest, 16)
        for batch, counts in self._read_in_order(workers, ahead, transform):
            digest = (digest + batch.digest) % 2**128
            yield TokenBatch(batch.tokens, DataPosition(counts, f"{digest:032x}"))

    def _read_in_order(
        self, workers: int, ahead: int, transform: Callable[[TokenBlocks], TokenBlocks]
    ) -> Iterator[tuple[_ReadBatch, dict[str, int]]]:
        """Yields each batch and the block counts after it."""
        if not workers:
            yield from ((self._read(p.blocks, transform), p.counts) for p in self._plans())
        with ThreadPoolExecutor(workers, "rewarm-loader") as pool:
            pending: deque[tuple[Future[_ReadBatch], dict[str, int]]] = deque()
            try:
                for plan in self._plans():
                    pending.append((pool.submit(self._read, plan.blocks, transform), plan.counts))
                    if len(pending) > ahead:
                        batch, counts = pending.popleft()
                        yield batch.result(), counts
            finally:
                pool.shutdown(cancel_futures=True)

    def _plans(self) -> Iterator[_BatchPlan]:
        """Yields which blocks each batch consists of."""
        counts = dict(self._position.blocks)
        while True:
            blocks = []
            for row in range(self._sequences):
                name = self._mixture.next_corpus(counts)
                if row in self._own_rows:
                    blocks.append(_PlannedBlock(name, counts[name], sum(counts.values())))
                counts[name] += 1
            yield _BatchPlan(blocks, dict(counts))

    def _read(
        self,
        blocks: list[_PlannedBlock],
        transform: Callable[[TokenBlocks], TokenBlocks],
    ) -> _ReadBatch:
        """Reads blocks, transforms their tokens and computes their digest."""
        rows = [self._corpora[block.corpus].block(block.number) for block in blocks]
        digest = sum(
            _block_digest(block.stream_number, row) for block, row in zip(blocks, rows, strict=True)
        )
        return _ReadBatch(transform(np.stack(rows).astype(np.int64)), digest)


def _block_digest(stream_number: int, tokens: Tokens) -> int:
    """Returns the digest of a block and its number in the stream.

    The digest of a stream is the sum of these, so that the digests of processes which read
    different rows can be added.
    """
    data = stream_number.to_bytes(8, "little") + tokens.astype("<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "little")
