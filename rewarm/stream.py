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
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.errors import DataError
from rewarm.mix import Mix, Weights
from rewarm.places import Place
from rewarm.shards import Index, Shard, Tokens

Blocks = npt.NDArray[np.int64]
"""Token ids, shape (sequences, context + 1): inputs are [:, :-1], targets [:, 1:]."""
Order = npt.NDArray[np.int64]


NOTHING = "0" * 32


class Position(NamedTuple):
    """A place in the stream, and proof of what lies before it."""

    blocks: dict[str, int]
    """Blocks taken so far, per corpus."""
    digest: str = NOTHING
    """Digest of every token so far; two runs with one digest saw the same tokens."""


class Batch(NamedTuple):
    """The blocks of one step, and where the stream stands behind them."""

    tokens: Blocks
    position: Position


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
        place: Place,
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


class Stream:
    """An endless sequence of batches from a mixture of corpora, starting at any position.

    With `world` processes, each is given the rows of every batch that are its own; what all of
    them get together does not depend on how many there are.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: dict[str, Weights],
        *,
        sequences: int,
        position: Position | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Starts at `position`, or at the beginning.

        Raises:
            DataError: the corpora disagree about tokenizer, or the position is of other corpora.
        """
        agree({str(corpus.place): corpus.index for corpus in corpora})
        self._corpora = {corpus.name: corpus for corpus in corpora}
        self._mix = Mix(weights)
        self._sequences = sequences
        self._own = range(rank, sequences, world)
        self._position = position or Position(dict.fromkeys(self._corpora, 0))
        if self._position.blocks.keys() != self._corpora.keys():
            raise DataError(
                f"the position is of corpora {', '.join(self._position.blocks)}, and the recipe "
                f"has {', '.join(self._corpora)}"
            )
        if rank:  # what came before is told once
            self._position = self._position._replace(digest=NOTHING)

    def shards(self, before: Position) -> dict[str, list[str]]:
        """Returns the tars, by corpus, that the batch behind a position is read from."""
        found: dict[str, set[str]] = {}
        taken = dict(before.blocks)
        for _ in range(self._sequences):
            name = self._mix.next(taken)
            found.setdefault(name, set()).add(self._corpora[name].shard(taken[name]))
            taken[name] += 1
        return {name: sorted(shards) for name, shards in found.items()}

    def batches(
        self, workers: int = 1, ahead: int = 4, then: Callable[[Blocks], Blocks] = lambda b: b
    ) -> Generator[Batch]:
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
            yield Batch(tokens, Position(behind, f"{digest:032x}"))

    def _in_turn(
        self, workers: int, ahead: int, then: Callable[[Blocks], Blocks]
    ) -> Iterator[tuple[tuple[Blocks, int], dict[str, int]]]:
        """Yields what `_read` makes of each plan, in order, and the blocks taken behind it."""
        if not workers:
            yield from ((self._read(plan, then), behind) for plan, behind in self._plans())
        with ThreadPoolExecutor(workers, "rewarm-loader") as pool:
            reading: deque[tuple[Future[tuple[Blocks, int]], dict[str, int]]] = deque()
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
        self, plan: list[tuple[str, int, int]], then: Callable[[Blocks], Blocks]
    ) -> tuple[Blocks, int]:
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


def insist_on_epochs(
    name: str, index: Index, blocks: float, *, context: int, most: float | None
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


def agree(indices: dict[str, Index]) -> None:
    """Makes sure that all shard folders speak of the same tokens.

    Raises:
        DataError: two were written with different tokenizers.
    """
    (first, one), *others = indices.items()
    for folder, other in others:
        a, b = one.tokenizer, other.tokenizer
        if (a.digest, a.eos) != (b.digest, b.eos):
            raise DataError(
                f"{folder}: written with another tokenizer than {first}: "
                f"{b.vocabulary:,} entries, end-of-text {b.eos_token!r} = {b.eos}, digest "
                f"{b.digest[:12]}, against {a.vocabulary:,}, {a.eos_token!r} = {a.eos}, "
                f"{a.digest[:12]}; write one of them again with `rewarm shard --tokenizer`"
            )


def in_stored_order(place: Place, *, context: int, tokens: int | None) -> Iterator[Tokens]:
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
