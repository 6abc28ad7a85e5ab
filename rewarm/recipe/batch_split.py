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
