"""How the sequences of a batch are divided among processes, and into microbatches.

```
 batch    S sequences ── dealt out in turn ──> ⌈S / processes⌉ per process, at most
 process  its sequences ── in as few parts as `microbatch` allows, of equal size ──> microbatches
```
Where they do not divide, the missing sequences are padding: their targets are ignored, so loss and
gradient do not change, and what they cost is computed for nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class BatchSplit(NamedTuple):
    """The sequences of one step, as every process runs them."""

    sequences: int
    """Of the batch."""
    processes: int
    """One for each GPU."""
    parts: int
    """Microbatches of a process, one after the other."""
    microbatch: int
    """Sequences of a microbatch, padding included."""

    @property
    def per_process(self) -> int:
        """Sequences of the batch that a process runs, at most."""
        return -(-self.sequences // self.processes)

    @property
    def computed(self) -> int:
        """Sequences that all processes run together, padding included."""
        return self.processes * self.parts * self.microbatch

    @property
    def useful(self) -> float:
        """Share of what is computed that belongs to the batch; 1 without padding."""
        return self.sequences / self.computed


_CPU_TOKENS = 2048
"""Tokens that a CPU runs at once: the logits of so many take 1.2 GB with Pythia's vocabulary."""


def microbatch_on_cpu(sequences: int, context: int) -> int:
    """Returns what `microbatch: auto` is on a CPU, where larger ones are no faster.

    It is the largest divisor of the batch's sequences that has at most 2,048 tokens, or 1.

    >>> microbatch_on_cpu(48, 128), microbatch_on_cpu(48, 4096)
    (16, 1)
    """
    most = max(1, _CPU_TOKENS // context)
    return max(n for n in divisors(sequences) if n <= most)


def divisors(number: int) -> list[int]:
    """Returns the numbers that divide another, the smallest first."""
    low = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})


def split_batch(sequences: int, processes: int, microbatch: int) -> BatchSplit:
    """Returns how a batch is divided.

    Args:
        sequences: of the batch; at least one for each process.
        processes: that share it.
        microbatch: the most sequences that a process runs at once.
    """
    per_process = -(-sequences // processes)
    parts = -(-per_process // microbatch)
    return BatchSplit(sequences, processes, parts, -(-per_process // parts))
