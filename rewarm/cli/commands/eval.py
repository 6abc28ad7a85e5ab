"""`rewarm eval`: loss and perplexity of checkpoints on shards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rewarm.cli.options import Json
from rewarm.cli.terminal_tables import print_table

if TYPE_CHECKING:
    from rewarm.training.validation_loss import SetLoss


def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...", help="A checkpoint, a run (its last one), or any NeoX base."
        ),
    ],
    data: Annotated[
        list[str], typer.Option(metavar="NAME=DIR", help="Shards to measure on; may be repeated.")
    ],
    tokens: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Measure on the first so many of each.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in a sequence; the model's own if not given.", min=1)
    ] = None,
    microbatch: Annotated[int, typer.Option(help="Sequences at once.", min=1)] = 8,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    as_json: Json = False,
) -> None:
    """Measure loss and perplexity of checkpoints on shards."""
    from rewarm.quantities import parse_count

    sets: dict[str, str] = {}
    for one in data:
        name, equals, folder = one.partition("=")
        if not (name and equals and folder) or name in sets:
            raise typer.BadParameter(f"--data {one}: should be NAME=DIR, each name once")
        sets[name] = folder
    try:
        limit = parse_count(tokens) if tokens else None
    except ValueError as error:
        raise typer.BadParameter(f"--tokens {tokens}: {error}") from None
    if precision not in ("fp32", "bf16", "fp16"):
        raise typer.BadParameter(f"--precision {precision}: should be fp32, bf16 or fp16")
    from rewarm.data.shard_source import ShardSource
    from rewarm.training.validation_loss import measure_checkpoint

    places = {name: ShardSource(folder) for name, folder in sets.items()}
    measured = [
        measure_checkpoint(
            name, places, context=context, microbatch=microbatch, tokens=limit, precision=precision
        )
        for name in checkpoints
    ]
    if as_json:
        lines = [
            {"checkpoint": name}
            | {
                f"{on}/{key}": value
                for on, one in losses.items()
                for key, value in (
                    ("loss", one.loss),
                    ("perplexity", one.perplexity),
                    ("tokens", one.tokens),
                )
            }
            for name, losses in zip(checkpoints, measured, strict=True)
        ]
        print(json.dumps(lines, indent=1))
        return
    print_table(_losses(checkpoints, measured))


def _losses(checkpoints: list[str], measured: list[dict[str, SetLoss]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("set", no_wrap=True)
    for column in ("loss", "perplexity", "tokens", "vs first"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, losses in zip(checkpoints, measured, strict=True):
        for row, (on, one) in enumerate(losses.items()):
            difference = "" if losses is measured[0] else f"{one.loss - measured[0][on].loss:+.4f}"
            table.add_row(
                name if row == 0 else "",
                on,
                f"{one.loss:.4f}",
                f"{one.perplexity:,.2f}",
                f"{one.tokens:,}",
                difference,
            )
    return table
