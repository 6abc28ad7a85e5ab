"""`rewarm shard` and `rewarm verify`: text into shards, and what is on disk held to its index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rewarm.cli.terminal_tables import print_table

if TYPE_CHECKING:
    from rewarm.data.shard_format import ShardIndex


def shard(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="jsonl (.zst, .gz), txt, parquet, tars of text, datasets saved to disk, "
            "Megatron's .bin + .idx, and folders of them.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="T", help="A tokenizer.json, a local folder, or a hub name.")
    ],
    field: Annotated[str, typer.Option(help="The field or column that holds the text.")] = "text",
    shard_size: Annotated[
        str, typer.Option(metavar="TOKENS", help="Tokens in one tar, about.")
    ] = "16M",
    validation: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Hold out this share, by content: DIR/train, DIR/val."),
    ] = "0%",
    eos: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="The end-of-text token, if not the usual.")
    ] = None,
) -> None:
    """Turn text into token shards."""
    from rewarm.data.shard_writer import write_shards
    from rewarm.data.tokenizer import load_tokenizer
    from rewarm.quantities import parse_count, parse_share

    try:
        size, held_out = parse_count(shard_size), parse_share(validation)
        if not (size > 0 and 0 <= held_out < 1):
            raise ValueError("--shard-size should be above 0, and --validation from 0 to below 1")
    except ValueError as error:
        raise typer.BadParameter(
            f"--shard-size {shard_size}, --validation {validation}: {error}"
        ) from None
    said = load_tokenizer(tokenizer, eos)
    with _ShardBar(inputs) as bar:
        indices = write_shards(
            inputs,
            out,
            said,
            field=field,
            shard_tokens=size,
            validation=held_out,
            progress=bar.show,
        )
    _print_shards(out, indices)
    print(bar.summary())


def _print_shards(out: Path, indices: dict[str, ShardIndex]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("folder", no_wrap=True)
    for column in ("shards", "documents", "tokens", "bytes/token"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, index in indices.items():
        size = sum(one.bytes for one in index.shards)
        table.add_row(
            str(out / name),
            str(len(index.shards)),
            f"{index.documents:,}",
            f"{index.tokens:,}",
            f"{size / index.tokens:.2f}",
        )
    print_table(table)


class _ShardBar:
    """Progress of `shard`: a bar on a terminal, nothing elsewhere; the figures at the end."""

    def __init__(self, inputs: list[Path]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from rewarm.data.document_readers import find_input_files

        total = sum(path.stat().st_size for path in find_input_files(inputs))
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("sharding"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, said="")

    def __enter__(self) -> _ShardBar:
        self._started = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._started
        self._bar.stop()

    def show(self, so_far: Any) -> None:
        self._last = so_far
        speed = so_far.tokens / max(1e-9, time.perf_counter() - self._started)
        said = f"{so_far.documents:,} documents  {speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=so_far.read, said=said)

    def summary(self) -> str:
        last = self._last
        more = f"; {last.empty:,} empty texts left out" if last.empty else ""
        more += f"; {last.finished:,} documents were finished before" if last.finished else ""
        return f"{last.tokens / self._seconds:,.0f} tokens/s over {self._seconds:.1f} s{more}"
