"""The best checkpoint of a run (`keep.best`): the lowest loss that was measured on its own weights.

The value of a checkpoint is the sum of its losses on the named validation sets, in nats per token.
Only checkpoints after whose own step the run has evaluated have one: a loss that was measured some
steps earlier is one of other weights. Of equal values the earliest is the best. It follows from the
checkpoints on the disk alone, so that a kill or a resume cannot lose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rewarm.checkpoints.training_state import TrainingState, read_training_state


def best_step(checkpoints: Mapping[int, Path], names: Sequence[str]) -> int | None:
    """Returns the step of the best checkpoint; None if none has a value.

    A loss counts only if it was measured on the data that the newest checkpoint has for its set.

    Args:
        checkpoints: the complete checkpoints of a run by step, in ascending order.
        names: the validation sets whose losses are added up.

    Raises:
        CheckpointError: the progress.json of a checkpoint is missing or damaged.
    """
    states = {step: read_training_state(path) for step, path in checkpoints.items()}
    if not states:
        return None
    newest = states[max(states)]
    values = {
        step: sum(state.losses[name] for name in names)
        for step, state in states.items()
        if _has_losses(state, names)
        and all(state.validation.get(name) == newest.validation.get(name) for name in names)
    }
    return min(values, key=lambda step: (values[step], step), default=None)


def _has_losses(state: TrainingState, names: Sequence[str]) -> bool:
    """Returns whether the losses on all sets were measured after the state's own step.

    One that was not finite is not in the state.
    """
    return state.losses_step == state.step and all(name in state.losses for name in names)
