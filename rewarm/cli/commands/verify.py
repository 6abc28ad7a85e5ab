"""`rewarm verify`: reads all shards or checkpoints, and compares them with their index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewarm.errors import CheckpointError, DataError, RewarmError

if TYPE_CHECKING:
    from rewarm.data.verify_shards import ShardFolderReport


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of shards, a run, or a checkpoint.")
    ],
    overlap: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Also look for documents that are in both DIR and OTHER."
        ),
    ] = None,
) -> None:
    """Read every shard or checkpoint completely, and compare it with its index or manifest."""
    from rewarm.checkpoints.find_checkpoint import later_checkpoints
    from rewarm.checkpoints.manifest import MANIFEST
    from rewarm.data.verify_shards import verify_shards
    from rewarm.runs.metrics_file import METRICS_FILE

    checkpoints = later_checkpoints(folder, None)
    is_run = (folder / METRICS_FILE).exists()
    if checkpoints or is_run or (folder / MANIFEST).is_file():
        _verify_checkpoints(folder, checkpoints if checkpoints or is_run else [folder])
        return
    reports = verify_shards(folder)
    for report in reports:
        shards = len(report.shard_index.shards)
        intact = shards - len(report.problems)
        print(f"{report.folder}: {intact:,} of {shards:,} shards are intact")
    problems = [message for report in reports for message in report.problems]
    if problems:
        raise DataError("\n".join(problems))
    if overlap is not None:
        _check_overlap(folder, overlap, reports)


def _check_overlap(folder: Path, other: Path, reports: list[ShardFolderReport]) -> None:
    """Prints the documents that are in both folders.

    Raises:
        DataError: there is at least one.
    """
    from rewarm.data.verify_shards import find_overlap, verify_shards

    pairs = [
        pair
        for report in reports
        for other_report in verify_shards(other)
        for pair in find_overlap(report.folder, other_report.folder)
    ]
    for document, same_document in pairs[:10]:
        print(f"{document} = {same_document}")
    if pairs:
        raise DataError(
            f"{len(pairs):,} documents are in both {folder} and {other}; remove them from one: a "
            "validation loss on text that the model was trained on is meaningless"
        )
    print(f"no document is in both {folder} and {other}")


def _verify_checkpoints(folder: Path, checkpoints: list[Path]) -> None:
    """Verifies checkpoints, and the metrics of their run; prints one line for each.

    Raises:
        CheckpointError: a checkpoint is incomplete or damaged, or lacks its metrics.
    """
    from rewarm.checkpoints.lineage import recipe_of_checkpoint
    from rewarm.checkpoints.manifest import verify_checkpoint
    from rewarm.checkpoints.training_state import read_training_state
    from rewarm.runs.metrics_file import METRICS_FILE, check_metrics, read_metrics
    from rewarm.runs.preconditions import had_checkpoint

    problems: dict[str, None] = {}  # an ordered set: checkpoints share the problems of the metrics
    is_run = checkpoints != [folder]
    for checkpoint in checkpoints:
        try:
            verify_checkpoint(checkpoint)
            recipe_of_checkpoint(checkpoint)
            state = read_training_state(checkpoint)
            print(f"{checkpoint}: intact: step {state.step:,}, {state.tokens:,} tokens")
            if is_run:
                check_metrics(folder, checkpoint, state)
        except (RewarmError, OSError) as error:
            if checkpoint.exists():
                problems[str(error)] = None
            else:
                print(f"{checkpoint}: deleted meanwhile by the run (keep)")
    if not checkpoints:
        print(f"{folder}: no checkpoint")
    if not checkpoints and had_checkpoint(folder):
        problems[f"{folder}: the run had saved checkpoints, and there is none now"] = None
    if is_run:
        metrics = folder / METRICS_FILE
        try:
            print(f"{metrics}: {len(read_metrics(metrics)):,} lines")
        except RewarmError as error:
            problems[str(error)] = None
    if problems:
        raise CheckpointError("\n".join(problems))
