"""The mixture: which corpus gives the next block, in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

WeightPieces = list[tuple[int, float]]
"""(first block, weight from this block on), e.g. [(0, 0.95)] or [(0, 0.05), (71_000, 0.3)]."""

_NEVER = 2**62  # a number of blocks that no run reaches


class _Piece(NamedTuple):
    """A range of the stream's blocks, first … end - 1, in which the weights do not change."""

    first: int
    end: int
    share: int
    """The corpus's share of each block, times the common denominator."""


class Mixture:
    """Decides which corpus gives the next block, always within one block of its exact share.

    A corpus's exact share of the first j blocks is the sum of its weights over them. Block i of a
    corpus may be used once that share exceeds i, and is due when the share reaches i + 1. Of the
    corpora that may give a block, the one whose block is due first gives it. All deadlines can
    always be met, even if weights change during the run (Baruah et al., 1996, "Proportionate
    progress": earliest deadline first on unit jobs). Integer arithmetic: no rounding error
    accumulates over a long run.
    """

    def __init__(self, weights: dict[str, WeightPieces]) -> None:
        """Converts the weights, which are relative to each other, to exact shares."""
        self._change_points = sorted({first for pieces in weights.values() for first, _ in pieces})
        shares: dict[str, list[Fraction]] = {name: [] for name in weights}
        for first in self._change_points:
            current_weights = {
                name: Fraction(str([weight for start, weight in pieces if start <= first][-1]))
                for name, pieces in weights.items()
            }
            for name, weight in current_weights.items():
                shares[name].append(weight / sum(current_weights.values()))
        self._denominator = math.lcm(*(s.denominator for parts in shares.values() for s in parts))
        self._shares = {
            name: [int(share * self._denominator) for share in parts]
            for name, parts in shares.items()
        }

    def next_corpus(self, blocks_read: dict[str, int]) -> str:
        """Returns the name of the corpus that gives the next block.

        Args:
            blocks_read: blocks read so far, per corpus.
        """
        total = sum(blocks_read.values()) + 1  # with the next block
        ready = [
            name
            for name, count in blocks_read.items()
            if count * self._denominator < self._share(name, total)
        ]
        return min(ready, key=lambda name: self._deadline(name, blocks_read[name] + 1))

    def exact_shares(self, block_count: int) -> dict[str, Fraction]:
        """Returns each corpus's exact share of the first `block_count` blocks, in blocks."""
        return {
            name: Fraction(self._share(name, block_count), self._denominator)
            for name in self._shares
        }

    def _pieces(self, name: str) -> Iterator[_Piece]:
        """Yields the ranges of blocks between changes of weight."""
        ends = [*self._change_points[1:], _NEVER]
        pieces = zip(self._change_points, ends, self._shares[name], strict=True)
        return (_Piece(*piece) for piece in pieces)

    def _share(self, name: str, block_count: int) -> int:
        """Returns a corpus's exact share of the first blocks, times the denominator."""
        return sum(
            piece.share * (min(block_count, piece.end) - piece.first)
            for piece in self._pieces(name)
            if piece.first < block_count
        )

    def _deadline(self, name: str, count: int) -> int:
        """Returns the number of blocks of the stream by which a corpus must have given `count`."""
        remaining = count * self._denominator
        for piece in self._pieces(name):
            share_of_piece = piece.share * (piece.end - piece.first)
            if piece.share and remaining <= share_of_piece:
                return piece.first - (-remaining // piece.share)
            remaining -= share_of_piece
        return _NEVER
