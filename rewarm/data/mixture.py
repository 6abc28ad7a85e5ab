"""The mixture: which corpus gives the next block, in exact arithmetic."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from fractions import Fraction
from itertools import accumulate, pairwise

WeightPieces = list[tuple[int, float]]
"""(first block, weight from this block on), e.g. [(0, 0.95)] or [(0, 0.05), (71_000, 0.3)]."""

_NEVER = 2**62  # a number of blocks that no run reaches


class Mixture:
    """Decides which corpus gives the next block, always within one block of its exact share.

    A corpus's exact share of the first j blocks is the sum of its weights over them. Block i of a
    corpus may be used once that share exceeds i, and is due when the share reaches i + 1. Of the
    corpora that may give a block, the one whose block is due first gives it. All deadlines can
    always be met, even if weights change during the run (Baruah et al., 1996, "Proportionate
    progress": earliest deadline first on unit jobs). Integer arithmetic: no rounding error
    accumulates over a long run.
    """

    def __init__(
        self, weights: dict[str, WeightPieces], start: Mapping[str, int] | None = None
    ) -> None:
        """Converts the weights, which are relative to each other, to exact shares.

        Args:
            weights: the weights of each corpus.
            start: blocks of each corpus that were read before these weights began to hold; None
                if they hold from the first block on.
        """
        self._start = dict(start or dict.fromkeys(weights, 0))
        first_block = sum(self._start.values())
        changes = merge_weights(weights, first_block)
        self._change_points = [block for block, _ in changes]
        shares = {name: [part[name] for _, part in changes] for name in weights}
        self._denominator = math.lcm(*(s.denominator for parts in shares.values() for s in parts))
        self._shares = {
            name: [int(share * self._denominator) for share in parts]
            for name, parts in shares.items()
        }
        lengths = [b - a for a, b in pairwise([*self._change_points, _NEVER])]
        self._shares_before = {
            name: list(
                accumulate(
                    (share * length for share, length in zip(parts, lengths, strict=True)),
                    initial=self._start[name] * self._denominator,
                )
            )
            for name, parts in self._shares.items()
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

    def _share(self, name: str, block_count: int) -> int:
        """Returns a corpus's exact share of the first blocks, times the denominator."""
        piece = max(0, bisect_left(self._change_points, block_count) - 1)
        blocks = max(0, block_count - self._change_points[piece])
        return self._shares_before[name][piece] + self._shares[name][piece] * blocks

    def _deadline(self, name: str, count: int) -> int:
        """Returns the number of blocks of the stream by which a corpus must have given `count`."""
        due = count * self._denominator
        piece = bisect_left(self._shares_before[name], due) - 1
        if piece == len(self._change_points):
            return _NEVER
        missing = due - self._shares_before[name][piece]
        return self._change_points[piece] - (-missing // self._shares[name][piece])


def merge_weights(
    weights: dict[str, WeightPieces], first_block: int = 0
) -> list[tuple[int, dict[str, Fraction]]]:
    """Returns the corpora's exact shares of each block as (first block, shares), in order.

    Args:
        weights: the weights of each corpus.
        first_block: what holds before this block is left out.
    """
    changes: dict[int, dict[str, Fraction]] = {}
    for name, pieces in weights.items():
        for first, weight in pieces:
            # Of the pieces up to `first_block`, the last one holds there.
            changes.setdefault(max(first, first_block), {})[name] = Fraction(str(weight))
    current: dict[str, Fraction] = {}
    merged = []
    for first in sorted(changes):
        current |= changes[first]
        total = sum(current.values())
        merged.append((first, {name: weight / total for name, weight in current.items()}))
    return merged
