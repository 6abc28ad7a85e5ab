"""`rewarm shard`: writes texts as token shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewarm.cli.input_report import InputReport
from rewarm.cli.sharding_bar import ShardingBar
from rewarm.cli.standard_streams import output_is_summary
from rewarm.cli.terminal_tables import print_result_table
from rewarm.errors import DataError
from rewarm.freed_memory import keep_freed_blocks

if TYPE_CHECKING:
    from rewarm.data.inputs.document_readers import ReadOptions
    from rewarm.data.shard_format import ShardIndex


def shard(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="JSON lines and txt (.gz, .zst, .xz, .bz2), parquet, Arrow, tars and zips of "
            "text, datasets saved to disk, Megatron's .bin + .idx, .npy, and folders of these.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="T", help="A tokenizer.json, a local folder, or a hub name.")
    ],
    field: Annotated[
        str, typer.Option(metavar="NAME", help="The field or column that holds the text.")
    ] = "text",
    shard_size: Annotated[
        str, typer.Option(metavar="TOKENS", help="Approximate number of tokens in one shard.")
    ] = "16M",
    validation: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Share of the documents to hold out in DIR/val."),
    ] = "0%",
    eos: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="The end-of-text token, if it is not detected."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The split to read of a folder that holds several."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Only documents whose JSON has this value: meta.source=books. May be repeated.",
        ),
    ] = None,
    on_bad_record: Annotated[
        str,
        typer.Option(
            metavar="stop|skip",
            help="What to do at a record without text: stop, or leave it out and list it in "
            "DIR/skipped-records.jsonl.",
        ),
    ] = "stop",
    raw_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Read .bin and .npy without index or header as token ids: uint16, uint32, ...",
        ),
    ] = None,
    sequences: Annotated[
        str,
        typer.Option(
            metavar="auto|document|block",
            help="What a Megatron .bin consists of; a fixed-length block gets no end-of-text.",
        ),
    ] = "auto",
    max_document: Annotated[
        str, typer.Option(metavar="BYTES", help="The longest document that is read.")
    ] = "12M",
    max_piece: Annotated[
        str,
        typer.Option(
            metavar="BYTES", help="The longest text to encode at once, where it cannot be cut."
        ),
    ] = "1.5M",
    max_expansion: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Times its size that a file may decompress to."),
    ] = 1000,
) -> None:
    """Turn text into token shards, which training reads.

    Example: rewarm shard text --out data --tokenizer EleutherAI/pythia-410m
    """
    from rewarm.data.inputs.document_readers import find_input_files, refuse_record
    from rewarm.data.sharding.shard_writer import write_shards
    from rewarm.data.tokenizer import load_tokenizer

    output_is_summary()
    keep_freed_blocks(2**20)  # long documents are returned to the system when they are written
    shard_tokens = _parse_positive_count("--shard-size", shard_size)
    validation_share = _parse_validation(validation)
    _check_out(out)
    if on_bad_record not in ("stop", "skip"):
        raise typer.BadParameter(f"--on-bad-record {on_bad_record}: should be stop or skip")
    options = _parse_read_options(raw_tokens, sequences)._replace(
        max_document_bytes=_parse_positive_count("--max-document", max_document),
        max_piece_bytes=_parse_positive_count("--max-piece", max_piece),
        max_expansion=max_expansion,
        where=_parse_where(where or []),
    )
    loaded_tokenizer = load_tokenizer(tokenizer, eos)
    files = find_input_files(inputs, split=split).files
    report = InputReport()
    try:
        with ShardingBar(sum(path.stat().st_size for path in files)) as bar:
            indices = write_shards(
                inputs,
                out,
                loaded_tokenizer,
                field=field,
                shard_tokens=shard_tokens,
                validation=validation_share,
                split=split,
                options=options._replace(end_of_text=loaded_tokenizer.eos_token_id),
                on_bad_record=report.add_bad_record if on_bad_record == "skip" else refuse_record,
                on_skipped=report.add_skipped,
                on_notice=report.add_notice,
                on_left_out=report.add_left_out,
                progress=bar.update,
            )
    except DataError:
        report.print_after_error()
        raise
    _print_folders(out, indices)
    report.print(files, out)
    print(bar.summary())


def _check_out(out: Path) -> None:
    """Refuses the working directory, and those above it: a finished folder replaces DIR."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise typer.BadParameter(
            f"--out {out}: the working directory is in it, and a finished folder cannot take its "
            "place; name a new folder, such as --out shards"
        )


def _parse_where(conditions: list[str]) -> tuple[tuple[str, str], ...]:
    """Returns the fields and values of FIELD=VALUE conditions."""
    pairs = []
    for condition in conditions:
        field, sign, value = condition.partition("=")
        if not (field and sign):
            raise typer.BadParameter(
                f"--where {condition}: should be FIELD=VALUE, such as meta.source=books"
            )
        pairs.append((field, value))
    return tuple(pairs)


def _parse_positive_count(option: str, value: str) -> int:
    """Returns the number that an option states."""
    from rewarm.quantities import parse_positive_count

    try:
        return parse_positive_count(value)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {value}: {error}") from None


def _parse_validation(validation: str) -> float:
    """Returns the share of documents to hold out."""
    from rewarm.quantities import parse_share

    try:
        share = parse_share(validation)
        if not 0 <= share < 1:
            raise ValueError("should be a share of the documents below 100%, such as 1% or 0.01")
    except ValueError as error:
        raise typer.BadParameter(f"--validation {validation}: {error}") from None
    return share


def _parse_read_options(raw_tokens: str | None, sequences: str) -> ReadOptions:
    from rewarm.data.inputs.document_readers import ReadOptions
    from rewarm.data.inputs.token_arrays import RAW_DTYPES

    if raw_tokens not in (None, *RAW_DTYPES):
        raise typer.BadParameter(
            f"--raw-tokens {raw_tokens}: should be one of {', '.join(RAW_DTYPES)}"
        )
    if sequences not in ("auto", "document", "block"):
        raise typer.BadParameter(f"--sequences {sequences}: should be auto, document or block")
    return ReadOptions(raw_tokens=raw_tokens, sequences=sequences)


def _print_folders(out: Path, indices: dict[str, ShardIndex]) -> None:
    """Prints a table with one row for each folder written."""
    from rewarm.table_cells import Cell, Table, count_cell, number_cell

    rows = []
    for name, index in indices.items():
        text_bytes = index.text_bytes  # None of token ids
        rows.append(
            [
                Cell(str(out / name)),
                count_cell(len(index.shards)),
                count_cell(index.documents),
                count_cell(index.tokens),
                number_cell(text_bytes and text_bytes / index.tokens, ".2f"),
            ]
        )
    columns = ["folder", "shards", "documents", "tokens", "text bytes/token"]
    print_result_table(Table("Shards", "", columns, rows), show_title=False)
