"""The mixture: which corpus gives the next block of the stream, in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

WeightPieces = list[tuple[int, float]]
"""A corpus's weight from each block on: [(0, 0.95)], or [(0, 0.05), (71_000, 0.3)]."""

_FOREVER = 2**62  # blocks; no run comes near it


class Mixture:
    """Decides which corpus gives the next block, so that none is ever a whole block off.

    A corpus's exact share of the first j blocks is the sum of its weights over them. Block i of a
    corpus may come once that share passes i, and must come by the time it reaches i + 1; of those
    that may come, the one that must come soonest is taken. Such windows can always be kept, also
    when weights change on the way (Baruah et al., 1996, "Proportionate progress": earliest
    deadline first on unit jobs). Exact integers: no rounding error adds up over a long run.
    """

    def __init__(self, weights: dict[str, WeightPieces]) -> None:
        """Takes each corpus's weights; at any block they are relative to each other."""
        self._firsts = sorted({first for pieces in weights.values() for first, _ in pieces})
        shares: dict[str, list[Fraction]] = {name: [] for name in weights}
        for first in self._firsts:
            now = {
                name: Fraction(str([weight for start, weight in pieces if start <= first][-1]))
                for name, pieces in weights.items()
            }
            for name, weight in now.items():
                shares[name].append(weight / sum(now.values()))
        self._whole = math.lcm(*(s.denominator for pieces in shares.values() for s in pieces))
        self._parts = {name: [int(s * self._whole) for s in of] for name, of in shares.items()}

    def next(self, taken: dict[str, int]) -> str:
        """Returns the corpus of the block that follows those taken so far."""
        after = sum(taken.values()) + 1
        ready = [n for n in taken if taken[n] * self._whole < self._share(n, after)]
        return min(ready, key=lambda n: self._deadline(n, taken[n] + 1))

    def exact(self, blocks: int) -> dict[str, Fraction]:
        """Returns each corpus's exact share of the first `blocks` blocks."""
        return {name: Fraction(self._share(name, blocks), self._whole) for name in self._parts}

    def _pieces(self, name: str) -> Iterator[tuple[int, int, int]]:
        """Yields (first block, first block behind it, share of a block) of each stretch."""
        ends = [*self._firsts[1:], _FOREVER]
        return zip(self._firsts, ends, self._parts[name], strict=True)

    def _share(self, name: str, blocks: int) -> int:
        """Returns a corpus's exact part of the first `blocks` blocks, times `whole`."""
        return sum(
            part * (min(blocks, end) - first)
            for first, end, part in self._pieces(name)
            if first < blocks
        )

    def _deadline(self, name: str, count: int) -> int:
        """Returns after how many blocks a corpus must have given `count`."""
        left = count * self._whole
        for first, end, part in self._pieces(name):
            if part and left <= part * (end - first):
                return first - (-left // part)
            left -= part * (end - first)
        return _FOREVER
