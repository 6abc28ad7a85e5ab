"""What has to hold before a run can start: one function for each precondition.

Each returns or raises the error that `rewarm train` ends with; `resolve_run.py` calls them all, for
`check`, `train`, `plan` and `compare`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import TrainingState
from rewarm.data.corpus import Corpus, check_epochs
from rewarm.data.mixture import Mixture
from rewarm.errors import CheckpointError, DataError
from rewarm.files import try_lock
from rewarm.recipe.recipe import Recipe


def unwritable(directory: Path, reason: str | None) -> CheckpointError:
    """Returns the error of a run directory that cannot be written."""
    return CheckpointError(
        f"{directory}: cannot be written: {reason}; what is saved there is untouched; free disk "
        "space, check the permissions, or name another directory with --set run=DIR"
    )


def in_use(directory: Path) -> CheckpointError:
    """Returns the error of a run directory that another process has locked."""
    return CheckpointError(
        f"{directory}: in use by another process; wait for it, or name another directory with "
        "--set run=DIR"
    )


def run_directory_problems(directory: Path, *, resume: bool) -> Iterator[CheckpointError]:
    """Yields what prevents a run from starting in a directory; creates nothing there."""
    nearest = directory / "checkpoints"
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        yield unwritable(directory, os.strerror(errno.ENOTDIR))
        return
    try:
        with TemporaryFile(dir=nearest):  # permissions alone do not tell: a file system may be full
            pass
    except OSError as error:
        yield unwritable(directory, error.strerror)
        return
    if (directory / "lock").exists():
        try:
            lock = try_lock(directory / "lock")
        except OSError as error:
            yield unwritable(directory, error.strerror)
            return
        if lock is None:
            yield in_use(directory)
        else:
            lock.close()
    last = last_checkpoint(directory)
    if last and not resume:
        yield CheckpointError(
            f"{directory}: already has checkpoints, up to {last.name}; continue it with --resume, "
            "or name another directory with --set run=DIR"
        )


def check_no_changes(recipe: Recipe, changes: list[str]) -> None:
    """Makes sure that a resumed run has the recipe that it was started with.

    Raises:
        CheckpointError: there are changes.
    """
    if changes:
        raise CheckpointError(
            f"{recipe.run}: the recipe would change how this run continues:\n  "
            + "\n  ".join(changes)
            + "\nundo the changes, or accept them with --accept-changes"
        )


def check_training_state(
    recipe: Recipe, checkpoint: Path, expected: Path, state: TrainingState
) -> None:
    """Makes sure that a training state matches its checkpoint's step and the recipe's corpora.

    Raises:
        CheckpointError: it does not match.
    """
    if checkpoint != expected:
        raise CheckpointError(
            f"{checkpoint}: its progress.json is of step {state.step:,}; use another checkpoint"
        )
    if state.blocks.keys() != recipe.data.train.keys():
        raise CheckpointError(
            f"{checkpoint}: its data position is for {', '.join(state.blocks)}, and the recipe "
            f"reads {', '.join(recipe.data.train)}; resume with the same corpora"
        )


def epoch_problems(
    recipe: Recipe, corpora: dict[str, Corpus], carried: dict[str, int]
) -> Iterator[DataError]:
    """Yields an error for each corpus that would be read more often than `data.max_epochs`."""
    needed = Mixture(recipe.corpus_weights).exact_shares(recipe.steps * recipe.sequences_per_step)
    for name, corpus in corpora.items():
        try:
            check_epochs(
                name,
                corpus.index,
                float(needed[name]) + carried.get(name, 0),
                context=recipe.data.context,
                max_epochs=recipe.data.max_epochs,
            )
        except DataError as error:
            yield error


def check_same_shards(
    recipe: Recipe, corpora: dict[str, Corpus], earlier_state: TrainingState, *, is_resume: bool
) -> None:
    """Makes sure that the shards are those in which a data position was reached.

    Args:
        recipe: the recipe to run.
        corpora: its training corpora.
        earlier_state: the training state with the data position: the run's own if `is_resume`,
            else that of the base, whose data position is carried over.
        is_resume: whether the run is resumed.

    Raises:
        CheckpointError: the shards of a corpus have changed.
    """
    digests = {name: corpus.index.digest() for name, corpus in corpora.items()}
    # A corpus that the base did not have starts at its beginning; a run's own cannot be new.
    changed = [
        name
        for name, digest in digests.items()
        if earlier_state.corpora.get(name, "" if is_resume else digest) != digest
    ]
    if changed:
        owner = "the run was started with" if is_resume else "the base was trained on"
        raise CheckpointError(
            f"{recipe.run}: the shards of {', '.join(changed)} are not those that {owner}; restore "
            "them, or continue with these at the same position with --accept-changes"
        )
