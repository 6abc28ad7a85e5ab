"""What has to hold before a run can start: one function for each precondition.

Each returns or raises the error that `rewarm train` ends with; `resolve_run.py` calls them all, for
`check`, `train`, `plan` and `compare`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rewarm import open_files
from rewarm.checkpoints.find_checkpoint import later_checkpoints
from rewarm.checkpoints.training_state import TrainingState
from rewarm.data.corpus import Corpus, check_epochs
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.errors import CheckpointError, DataError, RewarmError
from rewarm.files import try_lock
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.saved_recipe import is_saved_recipe, load_saved_document, load_saved_recipe
from rewarm.recipe.yaml_document import flatten_settings
from rewarm.runs.corpus_mixture import CorpusMixture
from rewarm.runs.metrics_file import METRICS_FILE, read_events, read_metrics
from rewarm.runs.resume_changes import changed_corpora, changed_settings, changed_validation_sets


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
    for name in ("lock", "recipe.yaml", METRICS_FILE, "events.jsonl"):
        path = directory / name
        if os.path.lexists(path) and not path.is_file():  # opening a pipe would block for ever
            yield CheckpointError(
                f"{path}: not a regular file; move it away, or name another directory with "
                "--set run=DIR"
            )
            return
    if (directory / "lock").exists():
        try:
            lock = try_lock(directory / "lock")
        except OSError as error:
            yield unwritable(directory, error.strerror)
            return
        if lock is None:
            yield in_use(directory)
            return
        lock.close()
    checkpoints = later_checkpoints(directory, None)
    if checkpoints and not resume:
        yield CheckpointError(
            f"{directory}: already has checkpoints, up to {checkpoints[-1].name}; continue it with "
            "--resume, or name another directory with --set run=DIR"
        )
    if not checkpoints:
        yield from _metrics_without_checkpoint(directory, resume=resume)


def _metrics_without_checkpoint(directory: Path, *, resume: bool) -> Iterator[CheckpointError]:
    """Yields an error if a directory has the metrics of a run, and no checkpoint of it.

    A run that was killed before its first checkpoint may be resumed: it starts from step 1 again.
    """
    metrics = directory / METRICS_FILE
    if not (metrics.is_file() and metrics.stat().st_size):
        return
    if had_checkpoint(directory):
        yield CheckpointError(
            f"{directory}: the run had saved checkpoints, and there is none now; mount or restore "
            f"{directory / 'checkpoints'}, or move {METRICS_FILE} away to start from step 1"
        )
    elif not resume:
        yield CheckpointError(
            f"{directory}: has the {METRICS_FILE} of a run, and no checkpoint; start that run "
            "again with --resume, move the file away, or name another directory with --set run=DIR"
        )


def had_checkpoint(directory: Path) -> bool:
    """Returns whether the records of a run show that it has saved a checkpoint.

    Its event log says so; or, as that may be lost, it was trained beyond the step of its second
    checkpoint, for which it waited until the first one was saved.
    """
    saves: list[dict[str, Any]] = []
    for event in read_events(directory / "events.jsonl").events:
        if event["kind"] == "start" and event.get("step") == 0:
            saves = []  # an earlier run may have left its events
        elif event["kind"] == "save":
            saves.append(event)
    if saves:
        return any(event.get("error") is None for event in saves)
    try:
        recipe = load_saved_recipe(directory / "recipe.yaml")
        branch_step = {recipe.branch_step} if recipe.branch_step else set()
        saves_due = sorted({*recipe.periodic_saves[:2], *branch_step, recipe.steps})
        last_step = read_metrics(directory / METRICS_FILE)[-1]["step"]
        return len(saves_due) > 1 and last_step > saves_due[1]
    except (RewarmError, IndexError):  # no metrics
        return False


def check_same_recipe(recipe: Recipe, directory: Path) -> None:
    """Makes sure that metrics without a checkpoint, which would be replaced, are of this recipe.

    Raises:
        CheckpointError: the directory has the metrics and the recipe of another run.
    """
    path = directory / "recipe.yaml"
    if not (path.is_file() and (directory / METRICS_FILE).is_file()):
        return
    saved = flatten_settings(load_saved_document(path).data)
    now = flatten_settings(recipe.document())
    if changes := changed_settings(saved, now):
        raise CheckpointError(
            f"{directory}: has the {METRICS_FILE} of another recipe, and no checkpoint:\n  "
            + "\n  ".join(changes)
            + "\nmove it away, name another directory with --set run=DIR, or replace it with "
            "`rewarm train --accept-changes`"
        )


def foreign_file(path: Path, remedy: str) -> CheckpointError:
    """Returns the error of a file that rewarm did not write and a run would replace or extend."""
    return CheckpointError(
        f"{path}: rewarm did not write this file here, and the run would replace it or add to "
        f"it; {remedy}, or rename the file"
    )


def foreign_file_problems(directory: Path) -> Iterator[CheckpointError]:
    """Yields an error for each file that rewarm did not write and a run would replace or extend.

    A run directory has a lock and a folder of checkpoints, which are created before other files;
    the recipe that rewarm writes there has no comments, and the layout of `write_yaml`.
    """
    is_run = (directory / "lock").exists() or (directory / "checkpoints").is_dir()
    for name in ("recipe.yaml", "metrics.jsonl", "events.jsonl"):
        path = directory / name
        if not path.exists() or (is_run and (name != "recipe.yaml" or is_saved_recipe(path))):
            continue
        yield foreign_file(path, f"name another run directory, --set run={directory / 'run'}")


def check_no_changes(recipe: Recipe, changes: list[str]) -> None:
    """Makes sure that a resumed run has the recipe that it was started with.

    Raises:
        CheckpointError: there are changes.
    """
    if changes:
        raise CheckpointError(
            f"{recipe.run_directory}: the recipe would change how this run continues:\n  "
            + "\n  ".join(changes)
            + "\nundo the changes, or accept them with --accept-changes"
        )


def check_training_state(recipe: Recipe, checkpoint: Path, state: TrainingState) -> None:
    """Makes sure that a training state matches the recipe's corpora.

    Raises:
        CheckpointError: it does not match.
    """
    if state.blocks.keys() != recipe.data.train.keys():
        raise CheckpointError(
            f"{checkpoint}: its data position is for {', '.join(state.blocks)}, and the recipe "
            f"reads {', '.join(recipe.data.train)}; resume with the same corpora"
        )


def epoch_problems(
    recipe: Recipe, corpora: dict[str, Corpus], mixture: CorpusMixture, carried: dict[str, int]
) -> Iterator[DataError]:
    """Yields an error for each corpus that would be read more often than `data.max_epochs`."""
    needed = mixture.blocks_needed()
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


def check_open_files(corpora: Mapping[str, Corpus], validation: Mapping[str, StoredBlocks]) -> None:
    """Makes sure that all shards that a run reads at once can be open; see `open_files`.

    Raises:
        DataError: this process may not open so many files.
    """
    open_files.check_limit(
        {f"corpus {name}": corpus.most_open_shards for name, corpus in corpora.items()}
        | {f"validation set {name}": blocks.most_open_shards for name, blocks in validation.items()}
    )


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
    if changed := changed_corpora(digests, earlier_state, is_resume=is_resume):
        owner = "the run was started with" if is_resume else "the base was trained on"
        raise CheckpointError(
            f"{recipe.run_directory}: the shards of {', '.join(changed)} are not those that "
            f"{owner}; restore them, or continue with these at the same position with "
            "--accept-changes"
        )


def check_same_validation(
    recipe: Recipe, validation: dict[str, StoredBlocks], state: TrainingState
) -> None:
    """Makes sure that each baseline was measured on the data that its validation set has now.

    Raises:
        CheckpointError: the data of a validation set has changed.
    """
    changed = changed_validation_sets(validation, state)
    if changed and state.is_complete(recipe.steps):
        raise CheckpointError(
            f"{recipe.run_directory}: complete, and the data of the validation sets "
            f"{', '.join(changed)} is not that on which its losses were measured; restore it, or "
            "measure the loss on the new data with `rewarm eval`"
        )
    if changed:
        raise CheckpointError(
            f"{recipe.run_directory}: the data of the validation sets {', '.join(changed)} is not "
            "that on which the losses so far were measured (shards, tokens or context); restore "
            "it, give the new data another name, or start a new baseline for it at this step with "
            "--accept-changes"
        )
