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
    """Read every shard or checkpoint completely, and compare it with its index or manifest.

    Example: rewarm verify runs/rewarm
    """
    from rewarm.checkpoints.find_checkpoint import later_checkpoints, resolve_checkpoint_reference
    from rewarm.checkpoints.manifest import MANIFEST
    from rewarm.data.verify_shards import verify_shards
    from rewarm.path_contents import describe_path
    from rewarm.runs.metrics_file import METRICS_FILE

    run, at, reference = str(folder).rpartition("@")
    if at and not folder.exists() and Path(run).is_dir():
        folder = resolve_checkpoint_reference(Path(run), reference)
    checkpoints = later_checkpoints(folder, None)
    if checkpoints or (folder / METRICS_FILE).exists():
        _verify_run(folder, checkpoints)
        return
    if (folder / MANIFEST).is_file():
        _verify_checkpoint(folder)
        return
    has_index = any((folder / name / "index.json").exists() for name in ("", "train", "val"))
    if folder.exists() and not has_index:
        contents = describe_path(folder, "shards", "runs")
        is_recipe = folder.suffix in (".yaml", ".yml")
        remedy = f"; a recipe or a study: rewarm check {folder}" if is_recipe else ""
        raise DataError(
            f"{folder}: {contents.what}; expected a folder of shards, a run or a checkpoint"
            f"{remedy}{contents.instead}"
        )
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


def _verify_checkpoint(checkpoint: Path) -> None:
    """Verifies a checkpoint, and prints a line.

    Raises:
        RewarmError: it is incomplete or damaged.
        OSError: a file of it cannot be read.
    """
    from rewarm.checkpoints.lineage import recipe_of_checkpoint
    from rewarm.checkpoints.manifest import verify_checkpoint
    from rewarm.checkpoints.training_state import read_training_state

    verify_checkpoint(checkpoint)
    recipe_of_checkpoint(checkpoint)
    state = read_training_state(checkpoint)
    print(f"{checkpoint}: intact: step {state.step:,}, {state.tokens:,} tokens")


def _verify_run(run: Path, checkpoints: list[Path]) -> None:
    """Verifies the checkpoints and the metrics of a run; prints one line for each.

    Raises:
        CheckpointError: a checkpoint is incomplete or damaged, or lacks its metrics.
    """
    from rewarm.runs.metrics_file import METRICS_FILE, read_metrics
    from rewarm.runs.preconditions import had_checkpoint
    from rewarm.runs.recorded_metrics import check_metrics, metrics_of_checkpoint

    problems, intact = [], []
    for checkpoint in checkpoints:
        try:
            _verify_checkpoint(checkpoint)
            intact.append(metrics_of_checkpoint(checkpoint))
        except (RewarmError, OSError) as error:
            if checkpoint.exists():
                problems.append(str(error))
            else:
                print(f"{checkpoint}: deleted meanwhile by the run (keep)")
    if not checkpoints:
        print(f"{run}: no checkpoint")
        if had_checkpoint(run):
            problems.append(f"{run}: the run had saved checkpoints, and there is none now")
    try:
        check_metrics(run, *intact)
        print(f"{run / METRICS_FILE}: {len(read_metrics(run / METRICS_FILE)):,} lines")
    except RewarmError as error:
        problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
