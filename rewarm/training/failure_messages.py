"""What a run that ends with an error says about its checkpoints and its data."""

from __future__ import annotations

from pathlib import Path

from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.data.batch_loader import BatchLoader
from rewarm.training.divergence_guard import StopReason


def what_is_saved(run: Path) -> str:
    """Returns up to which step a run is saved, and where."""
    checkpoints = list_checkpoints(run)
    last = max(checkpoints, default=None)
    if last is None:
        return "nothing is saved"
    return f"everything up to step {last:,} is saved in {checkpoints[last]}"


def divergence_message(run: Path, loader: BatchLoader, stop: StopReason) -> str:
    """Returns why a run diverged, on which shards, and the last checkpoint before that."""
    shards = "; ".join(
        f"{name}: {', '.join(tars)}"
        for name, tars in loader.shards_of_batch(stop.position_before_batch).items()
    )
    checkpoints = list_checkpoints(run)
    earlier = [path for step, path in checkpoints.items() if step < stop.first_bad_step]
    last = f"the last checkpoint before it is {earlier[-1]}" if earlier else "nothing was saved"
    return (
        f"{run}: {stop.reason}; the batch of that step was read from "
        f"{shards}; {last}; try a lower peak_lr, a longer warmup, or check those shards"
    )
