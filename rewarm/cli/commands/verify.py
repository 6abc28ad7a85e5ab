"""`rewarm verify`: reads shards or checkpoints whole, and compares them with their index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.errors import CheckpointError, DataError, RewarmError


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of shards, a run, or a checkpoint.")
    ],
    overlap: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="Also look for documents that stand in OTHER too."),
    ] = None,
) -> None:
    """Read every shard, or every checkpoint, whole, and compare it with its index."""
    from rewarm.checkpoints.find_checkpoint import list_checkpoints
    from rewarm.checkpoints.manifest import MANIFEST
    from rewarm.data.verify_shards import find_overlap, verify_shards

    saved = list(list_checkpoints(folder).values())
    if saved or (folder / MANIFEST).is_file():
        _verify_checkpoints(folder, saved or [folder])
        return
    found = verify_shards(folder)
    for one in found:
        whole = len(one.held.shards) - len(one.bad)
        print(f"{one.folder}: {whole:,} of {len(one.held.shards):,} shards are whole")
    bad = [line for one in found for line in one.bad]
    if bad:
        raise DataError("\n".join(bad))
    if overlap is not None:
        pairs = [
            pair
            for one in found
            for other in verify_shards(overlap)
            for pair in find_overlap(one.folder, other.folder)
        ]
        for one_place, other_place in pairs[:10]:
            print(f"{one_place} = {other_place}")
        if pairs:
            raise DataError(
                f"{len(pairs):,} documents stand in both {folder} and {overlap}; take them out of "
                "one, or what is measured has been trained on"
            )
        print(f"no document stands in both {folder} and {overlap}")


def _verify_checkpoints(folder: Path, saved: list[Path]) -> None:
    from rewarm.checkpoints.lineage import recipe_of_checkpoint
    from rewarm.checkpoints.manifest import verify_checkpoint
    from rewarm.checkpoints.training_state import read_training_state
    from rewarm.runs.metrics_file import read_metrics

    bad = []
    for one in saved:
        try:
            verify_checkpoint(one)
            recipe_of_checkpoint(one)
            done = read_training_state(one)
            print(f"{one}: whole: step {done.step:,}, {done.tokens:,} tokens")
        except RewarmError as error:
            bad.append(str(error))
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        try:
            print(f"{metrics}: {len(read_metrics(metrics)):,} lines")
        except RewarmError as error:
            bad.append(str(error))
    if bad:
        raise CheckpointError("\n".join(bad))
