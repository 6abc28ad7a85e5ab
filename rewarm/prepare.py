"""`rewarm shard` and `rewarm verify`: text into shards, and what is on disk held to its index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rewarm import tables
from rewarm.errors import CheckpointError, DataError, RewarmError

if TYPE_CHECKING:
    from rewarm.shards import Index


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
    from rewarm import sharding
    from rewarm import tokenizer as tokenizers
    from rewarm.quantities import parse_count, parse_share

    try:
        size, held_out = parse_count(shard_size), parse_share(validation)
        if not (size > 0 and 0 <= held_out < 1):
            raise ValueError("--shard-size should be above 0, and --validation from 0 to below 1")
    except ValueError as error:
        raise typer.BadParameter(
            f"--shard-size {shard_size}, --validation {validation}: {error}"
        ) from None
    said = tokenizers.load(tokenizer, eos)
    with _ShardBar(inputs) as bar:
        indices = sharding.shard(
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
    from rewarm import bases, manifest, shards

    saved = list(bases.checkpoints(folder).values())
    if saved or (folder / manifest.MANIFEST).is_file():
        _verify_checkpoints(folder, saved or [folder])
        return
    found = shards.verify(folder)
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
            for other in shards.verify(overlap)
            for pair in shards.overlap(one.folder, other.folder)
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
    from rewarm import lineage, manifest
    from rewarm.progress import read_progress
    from rewarm.run import read_metrics

    bad = []
    for one in saved:
        try:
            manifest.verify(one)
            lineage.made_by(one)
            done = read_progress(one)
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


def _print_shards(out: Path, indices: dict[str, Index]) -> None:
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
    tables.show(table)


class _ShardBar:
    """Progress of `shard`: a bar on a terminal, nothing elsewhere; the figures at the end."""

    def __init__(self, inputs: list[Path]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from rewarm import texts

        total = sum(path.stat().st_size for path in texts.files(inputs))
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
