"""The mixture: which corpus gives the next block, in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

WeightPieces = list[tuple[int, float]]
"""A corpus's weight from each block on: [(0, 0.95)], or [(0, 0.05), (71_000, 0.3)]."""

_NEVER = 2**62  # blocks; no run is so long


class _Piece(NamedTuple):
    """A range of the stream's blocks in which the weights do not change."""

    first: int
    end: int
    share: int
    """The corpus's share of each block, times the common denominator."""


class Mixture:
    """Decides which corpus gives the next block, so that none is ever a whole block off.

    A corpus's exact share of the first j blocks is the sum of its weights over them. Block i of a
    corpus may be used once that share exceeds i, and is due when the share reaches i + 1; of the
    corpora that may give a block, the one whose block is due first is used. All deadlines can
    always be met, also when weights change during the run (Baruah et al., 1996, "Proportionate
    progress": earliest deadline first on unit jobs). Integer arithmetic: no rounding error
    accumulates over a long run.
    """

    def __init__(self, weights: dict[str, WeightPieces]) -> None:
        """Reads each corpus's weights; at any block they are relative to each other."""
        self._firsts = sorted({first for pieces in weights.values() for first, _ in pieces})
        shares: dict[str, list[Fraction]] = {name: [] for name in weights}
        for first in self._firsts:
            current = {
                name: Fraction(str([weight for start, weight in pieces if start <= first][-1]))
                for name, pieces in weights.items()
            }
            for name, weight in current.items():
                shares[name].append(weight / sum(current.values()))
        self._denominator = math.lcm(*(s.denominator for parts in shares.values() for s in parts))
        self._shares = {
            name: [int(share * self._denominator) for share in parts]
            for name, parts in shares.items()
        }

    def next_corpus(self, counts: dict[str, int]) -> str:
        """Returns the corpus that gives the next block, by the blocks used of each so far."""
        after = sum(counts.values()) + 1
        ready = [
            name for name in counts if counts[name] * self._denominator < self._share(name, after)
        ]
        return min(ready, key=lambda name: self._deadline(name, counts[name] + 1))

    def exact(self, blocks: int) -> dict[str, Fraction]:
        """Returns each corpus's exact share of the first `blocks` blocks."""
        return {
            name: Fraction(self._share(name, blocks), self._denominator) for name in self._shares
        }

    def _pieces(self, name: str) -> Iterator[_Piece]:
        """Yields the ranges of blocks between changes of weight."""
        ends = [*self._firsts[1:], _NEVER]
        pieces = zip(self._firsts, ends, self._shares[name], strict=True)
        return (_Piece(*piece) for piece in pieces)

    def _share(self, name: str, blocks: int) -> int:
        """Returns a corpus's exact share of the first `blocks` blocks, times the denominator."""
        return sum(
            piece.share * (min(blocks, piece.end) - piece.first)
            for piece in self._pieces(name)
            if piece.first < blocks
        )

    def _deadline(self, name: str, count: int) -> int:
        """Returns after how many blocks of the stream a corpus must have given `count`."""
        left = count * self._denominator
        for piece in self._pieces(name):
            in_piece = piece.share * (piece.end - piece.first)
            if piece.share and left <= in_piece:
                return piece.first - (-left // piece.share)
            left -= in_piece
        return _NEVER
