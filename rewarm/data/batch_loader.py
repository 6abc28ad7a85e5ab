"""The token stream: which block comes when is arithmetic, so any place is reached at once.

```
 corpus       its index says how many blocks each tar holds, without opening one
   |  epoch e: the tars in a shuffled order, taken `lanes` at a time: a window
   |  window: its blocks in a shuffled order        -> the address of the corpus's n-th block
 shard        its documents in a shuffled order, joined, cut into blocks of context + 1
   |                                                  sharing one token; the tail is dropped
 mix          which corpus gives the next block: never a whole block away from its weight
   |
 Batch        tokens, and the position behind it: blocks taken per corpus, digest of all tokens
```
The state is one integer per corpus. Every shuffle is seeded by what it shuffles, so nothing depends
on how often the run was stopped, or on how many processes read. Resuming opens the tars of one
window as their blocks come up, and reads nothing that went before.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.data.corpus import (
    Corpus,
)
from rewarm.data.mixture import Mixture, WeightPieces
from rewarm.data.shard_format import Tokens
from rewarm.data.tokenizer import check_same_tokenizer
from rewarm.errors import DataError

TokenBlocks = npt.NDArray[np.int64]
"""Token ids, shape (sequences, context + 1): inputs are [:, :-1], targets [:, 1:]."""


EMPTY_DIGEST = "0" * 32


class DataPosition(NamedTuple):
    """A place in the stream, and proof of what lies before it."""

    blocks: dict[str, int]
    """Blocks taken so far, per corpus."""
    digest: str = EMPTY_DIGEST
    """Digest of every token so far; two runs with one digest saw the same tokens."""


class TokenBatch(NamedTuple):
    """The blocks of one step, and where the stream stands behind them."""

    tokens: TokenBlocks
    position: DataPosition


class BatchLoader:
    """An endless sequence of batches from a mixture of corpora, starting at any position.

    With `world` processes, each is given the rows of every batch that are its own; what all of
    them get together does not depend on how many there are.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: dict[str, WeightPieces],
        *,
        sequences: int,
        position: DataPosition | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Starts at `position`, or at the beginning.

        Raises:
            DataError: the corpora disagree about tokenizer, or the position is of other corpora.
        """
        check_same_tokenizer({str(corpus.place): corpus.index for corpus in corpora})
        self._corpora = {corpus.name: corpus for corpus in corpora}
        self._mix = Mixture(weights)
        self._sequences = sequences
        self._own = range(rank, sequences, world)
        self._position = position or DataPosition(dict.fromkeys(self._corpora, 0))
        if self._position.blocks.keys() != self._corpora.keys():
            raise DataError(
                f"the position is of corpora {', '.join(self._position.blocks)}, and the recipe "
                f"has {', '.join(self._corpora)}"
            )
        if rank:  # what came before is told once
            self._position = self._position._replace(digest=EMPTY_DIGEST)

    def shards(self, before: DataPosition) -> dict[str, list[str]]:
        """Returns the tars, by corpus, that the batch behind a position is read from."""
        found: dict[str, set[str]] = {}
        taken = dict(before.blocks)
        for _ in range(self._sequences):
            name = self._mix.next(taken)
            found.setdefault(name, set()).add(self._corpora[name].shard(taken[name]))
            taken[name] += 1
        return {name: sorted(shards) for name, shards in found.items()}

    def batches(
        self,
        workers: int = 1,
        ahead: int = 4,
        then: Callable[[TokenBlocks], TokenBlocks] = lambda b: b,
    ) -> Generator[TokenBatch]:
        """Yields the batches, read by threads ahead of their turn; their number changes nothing.

        Args:
            workers: threads that read; without any, a batch is read when it is asked for.
            ahead: batches that may be ready at once.
            then: what the reading thread does with a batch's tokens at the end.

        Raises:
            DataError: a shard is missing or damaged; raised when its batch's turn comes.
        """
        digest = int(self._position.digest, 16)
        for (tokens, said), behind in self._in_turn(workers, ahead, then):
            digest = (digest + said) % 2**128
            yield TokenBatch(tokens, DataPosition(behind, f"{digest:032x}"))

    def _in_turn(
        self, workers: int, ahead: int, then: Callable[[TokenBlocks], TokenBlocks]
    ) -> Iterator[tuple[tuple[TokenBlocks, int], dict[str, int]]]:
        """Yields what `_read` makes of each plan, in order, and the blocks taken behind it."""
        if not workers:
            yield from ((self._read(plan, then), behind) for plan, behind in self._plans())
        with ThreadPoolExecutor(workers, "rewarm-loader") as pool:
            reading: deque[tuple[Future[tuple[TokenBlocks, int]], dict[str, int]]] = deque()
            try:
                for plan, behind in self._plans():
                    reading.append((pool.submit(self._read, plan, then), behind))
                    if len(reading) > ahead:
                        first, behind_it = reading.popleft()
                        yield first.result(), behind_it
            finally:
                pool.shutdown(cancel_futures=True)

    def _plans(self) -> Iterator[tuple[list[tuple[str, int, int]], dict[str, int]]]:
        """Yields, for each batch, the corpus, number and place of this process's blocks."""
        taken = dict(self._position.blocks)
        while True:
            plan = []
            for row in range(self._sequences):
                name = self._mix.next(taken)
                if row in self._own:
                    plan.append((name, taken[name], sum(taken.values())))
                taken[name] += 1
            yield plan, dict(taken)

    def _read(
        self, plan: list[tuple[str, int, int]], then: Callable[[TokenBlocks], TokenBlocks]
    ) -> tuple[TokenBlocks, int]:
        """Returns the blocks of a plan, and what they add to the digest."""
        rows = [self._corpora[name].block(number) for name, number, _ in plan]
        said = sum(_fingerprint(at, row) for (_, _, at), row in zip(plan, rows, strict=True))
        return then(np.stack(rows).astype(np.int64)), said


def _fingerprint(number: int, tokens: Tokens) -> int:
    """Returns a number for one block at its place in the stream.

    The digest of a stream is the sum of these, so that processes which read different rows only
    have to add up what each of them found.
    """
    said = number.to_bytes(8, "little") + tokens.astype("<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(said, digest_size=16).digest(), "little")


def combine(digests: Iterable[str]) -> str:
    """Returns the digest of a stream from those of the processes that read it."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**128:032x}"
