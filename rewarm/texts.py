"""Reads documents out of jsonl (plain, zst, gz), txt and parquet files and folders of them."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from rewarm.errors import DataError

ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".txt", ".parquet")


class Text(NamedTuple):
    """One document, and how many bytes of all the input files lie before its end."""

    text: str
    read: int


def files(inputs: list[Path]) -> list[Path]:
    """Returns the files to read: the inputs themselves, and what folders hold, sorted by path.

    Raises:
        DataError: an input does not exist, is of no known kind, or a folder holds none.
    """
    found: list[Path] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(path for path in given.rglob("*") if path.name.endswith(ENDINGS))
            if not inside:
                raise DataError(f"{given}: no text in this folder (looked for {_kinds()})")
            found += inside
        elif not given.exists():
            raise DataError(f"{given}: no such file")
        elif not given.name.endswith(ENDINGS):
            raise DataError(f"{given}: not a kind of file that can be read (there are: {_kinds()})")
        else:
            found.append(given)
    return found


def documents(paths: list[Path], field: str) -> Iterator[Text]:
    """Yields every document of the files, in order.

    Args:
        paths: from `files`.
        field: the JSON field or parquet column that holds the text; .txt files are one document.

    Raises:
        DataError: a file is damaged, or a line has no such text; named by file and line.
    """
    before = 0
    for path in paths:
        try:
            for text, read in _in_file(path, field):
                yield Text(text, before + read)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        before += path.stat().st_size


def _in_file(path: Path, field: str) -> Iterator[tuple[str, int]]:
    if path.name.endswith(".parquet"):
        yield from _rows(path, field)
    elif path.name.endswith(".txt"):
        try:
            yield path.read_text(encoding="utf-8"), path.stat().st_size
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error.reason} at {error.start}") from None
    else:
        with path.open("rb") as raw:
            for number, line in enumerate(_unpacked(raw, path), start=1):
                if line.strip():
                    yield _field(line, field, f"{path}:{number}"), raw.tell()


def _unpacked(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        try:
            yield from io.BufferedReader(reader)
        except zstandard.ZstdError as error:
            raise DataError(f"{path}: damaged zstd: {error}") from None
    elif path.name.endswith(".gz"):
        yield from gzip.GzipFile(fileobj=raw)
    else:
        yield from raw


def _field(line: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON: {error}") from None
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: no text in field {field!r} (there are: {there}); see --field")
    return text


def _rows(path: Path, field: str) -> Iterator[tuple[str, int]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path}: reading parquet needs pyarrow: pip install 'rewarm[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as table:
            if field not in table.schema_arrow.names:
                there = ", ".join(table.schema_arrow.names)
                raise DataError(f"{path}: no column {field!r} (there are: {there}); see --field")
            done, size = 0, path.stat().st_size
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for text in batch.column(0).to_pylist():
                    done += 1
                    if not isinstance(text, str):
                        raise DataError(f"{path}: row {done}: no text in column {field!r}")
                    yield text, size * done // table.metadata.num_rows
    except ArrowException as error:
        raise DataError(f"{path}: not parquet that can be read: {error}") from None


def _kinds() -> str:
    return ", ".join(ENDINGS)
