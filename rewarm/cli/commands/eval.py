"""`rewarm eval`: loss and perplexity of checkpoints on shards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

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
    limit = _parse_tokens(tokens)
    sets = _parse_sets(data)
    if precision not in ("fp32", "bf16", "fp16"):
        raise typer.BadParameter(f"--precision {precision}: should be fp32, bf16 or fp16")
    from rewarm.data.shard_source import ShardSource
    from rewarm.training.validation_loss import measure_checkpoint

    sources = {name: ShardSource(folder) for name, folder in sets.items()}
    measured = [
        measure_checkpoint(
            name, sources, context=context, microbatch=microbatch, tokens=limit, precision=precision
        )
        for name in checkpoints
    ]
    if as_json:
        print(json.dumps(list(map(_as_json, checkpoints, measured)), indent=1))
    else:
        print_table(_loss_table(checkpoints, measured))


def _parse_tokens(tokens: str | None) -> int | None:
    from rewarm.quantities import parse_count

    try:
        return parse_count(tokens) if tokens else None
    except ValueError as error:
        raise typer.BadParameter(f"--tokens {tokens}: {error}") from None


def _parse_sets(data: list[str]) -> dict[str, str]:
    """Returns the shards of each validation set by its name."""
    sets: dict[str, str] = {}
    for option in data:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder) or name in sets:
            raise typer.BadParameter(f"--data {option}: should be NAME=DIR, each name once")
        sets[name] = folder
    return sets


def _as_json(checkpoint: str, losses: dict[str, SetLoss]) -> dict[str, Any]:
    return {"checkpoint": checkpoint} | {
        f"{name}/{key}": value
        for name, result in losses.items()
        for key, value in (
            ("loss", result.loss),
            ("perplexity", result.perplexity),
            ("tokens", result.tokens),
        )
    }


def _loss_table(checkpoints: list[str], measured: list[dict[str, SetLoss]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("set", no_wrap=True)
    for column in ("loss", "perplexity", "tokens", "vs first"):
        table.add_column(column, justify="right", no_wrap=True)
    reference = measured[0]
    for checkpoint, losses in zip(checkpoints, measured, strict=True):
        for row, (name, result) in enumerate(losses.items()):
            difference = result.loss - reference[name].loss
            table.add_row(
                checkpoint if row == 0 else "",
                name,
                f"{result.loss:.4f}",
                f"{result.perplexity:,.2f}",
                f"{result.tokens:,}",
                "" if losses is reference else f"{difference:+.4f}",
            )
    return table
