"""`rewarm merge`: averages the weights of checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rewarm.cli.terminal_tables import plain_table, print_notes, print_table

if TYPE_CHECKING:
    from rewarm.checkpoints.merge_weights import MergeMethod

METHODS = ("mean", "ema", "1-sqrt")


def merge(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT",
            help="RUN@last:8, the last 8 checkpoints of a run, or two or more of one run.",
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="mean|ema|1-sqrt",
            help="How to weight them: alike, newer ones more, or as a decay of 1 - sqrt.",
        ),
    ] = "mean",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The new checkpoint; by default in the folder merged of the run."
        ),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="With --as ema, what an older average keeps at each; 0.8 by default.",
            min=0,
            max=1,
        ),
    ] = None,
) -> None:
    """Merge checkpoints of a run at a constant rate into one, instead of decaying the rate.

    Example: rewarm merge runs/plateau@last:8 --as 1-sqrt
    """
    if decay is not None and method != "ema":
        raise typer.BadParameter(f"--decay {decay:g}: is for --as ema, and this is --as {method}")
    if method not in METHODS:
        raise typer.BadParameter(f"--as {method}: should be mean, ema or 1-sqrt")
    if decay == 1:
        raise typer.BadParameter("--decay 1: should be less than 1, or only the oldest would count")
    from rewarm.checkpoints.merge_checkpoints import find_merge_sources, rate_note, write_merged
    from rewarm.checkpoints.merge_weights import update_factors

    sources = find_merge_sources(checkpoints)
    first, last = sources[0].state.step, sources[-1].state.step
    directory = out or (
        sources[-1].directory.parents[1]
        / "merged"
        / f"{method}-of-{len(sources)}-step-{first:08d}-to-{last:08d}"
    )
    decay = 0.8 if decay is None else decay
    merged = write_merged(sources, cast("MergeMethod", method), directory, decay=decay)
    table = plain_table("step", "weight", "updates since the one before × ")
    factors = update_factors([source.weight for source in merged])
    for source, factor in zip(merged, ["", *(f"{factor:.4f}" for factor in factors)], strict=True):
        table.add_row(f"{source.step:,}", f"{source.weight:.4f}", factor)
    print_table(table)
    print_notes(rate_note(sources), stderr=True)
    print(directory)
