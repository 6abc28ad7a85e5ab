"""Reads documents out of text files, tables, tars of text and Megatron's token files."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from rewarm.data.megatron_format import read_megatron_documents
from rewarm.data.shard_format import Tokens
from rewarm.errors import DataError

READABLE_SUFFIXES = (
    ".jsonl",
    ".jsonl.zst",
    ".jsonl.gz",
    ".txt",
    ".parquet",
    ".arrow",
    ".tar",
    ".bin",
)


class TextDocument(NamedTuple):
    """One document, and how many bytes of all the input files lie before its end."""

    content: str | Tokens
    """Its text; or its token ids, where the file (Megatron's .bin and .idx) holds those."""
    read: int


def find_input_files(inputs: list[Path]) -> list[Path]:
    """Returns the files to read: the inputs themselves, and what folders hold, sorted by path.

    Raises:
        DataError: an input does not exist, is of no known kind, or a folder holds none.
    """
    found: list[Path] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(
                path for path in given.rglob("*") if path.name.endswith(READABLE_SUFFIXES)
            )
            if not inside:
                raise DataError(f"{given}: no text in this folder (looked for {_kinds()})")
            found += inside
        elif not given.exists():
            raise DataError(f"{given}: no such file")
        elif not given.name.endswith(READABLE_SUFFIXES):
            raise DataError(f"{given}: not a kind of file that can be read (there are: {_kinds()})")
        else:
            found.append(given)
    return found


def read_documents(paths: list[Path], field: str) -> Iterator[TextDocument]:
    """Yields every document of the files, in order.

    Args:
        paths: from `files`.
        field: the JSON field or table column that holds the text; .txt files are one document.

    Raises:
        DataError: a file is damaged, or a line has no such text; named by file and line.
    """
    before = 0
    for path in paths:
        try:
            for content, read in _in_file(path, field):
                yield TextDocument(content, before + read)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        before += path.stat().st_size


def _in_file(path: Path, field: str) -> Iterator[tuple[str | Tokens, int]]:
    size = path.stat().st_size
    if path.name.endswith((".parquet", ".arrow")):
        yield from _rows(path, field)
    elif path.name.endswith(".tar"):
        yield from _in_tar(path, field)
    elif path.name.endswith(".bin"):
        yield from read_megatron_documents(path)
    elif path.name.endswith(".txt"):
        yield _utf8(path.read_bytes(), str(path)), size
    else:
        with path.open("rb") as raw:
            for number, line in enumerate(_unpacked(raw, path), start=1):
                if line.strip():
                    yield _field(line, field, f"{path}:{number}"), raw.tell()


def _in_tar(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """Yields the .txt and .json members of a WebDataset tar; anything beside them is metadata."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                where = f"{path}:{member.name}"
                if member.isdir() or not member.name.endswith((".txt", ".json")):
                    continue
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    raise DataError(f"{where}: not a plain file; links are not followed")
                data = file.read()
                text = _utf8(data, where) if member.name.endswith(".txt") else None
                yield text if text is not None else _field(data, field, where), member.offset
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a tar that can be read: {error}") from None


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {error.reason} at {error.start}") from None


def _unpacked(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        yield from _lines(_unzstd(raw, path))
    elif path.name.endswith(".gz"):
        try:
            yield from gzip.GzipFile(fileobj=raw)
        except zlib.error as error:
            raise DataError(f"{path}: damaged gzip: {error}") from None
    else:
        yield from raw


def _unzstd(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yields what zstd frames hold; zstandard's own reader takes a cut-off file for a whole one."""
    import zstandard

    frame = None
    try:
        while chunk := raw.read(1 << 16):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: damaged zstd: {error}") from None
    if frame:
        raise DataError(f"{path}: damaged zstd: cut off")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    left = b""
    for chunk in chunks:
        *whole, left = (left + chunk).split(b"\n")
        yield from whole
    yield left


def _field(line: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON: {error}") from None
    text = row.get(field) if isinstance(row, dict) else None
    if isinstance(text, str) and not _encodes(text):
        raise DataError(f"{where}: field {field!r} holds half a surrogate pair, which is not text")
    if not isinstance(text, str):
        there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: no text in field {field!r} (there are: {there}); see --field")
    return text


def _rows(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """Yields a column of a parquet file, or of an Arrow file of a `datasets` folder."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: reading it needs pyarrow: pip install 'rewarm[parquet]'"
        ) from None
    size = path.stat().st_size
    try:
        with path.open("rb") as raw:
            if path.name.endswith(".parquet"):
                table = parquet.ParquetFile(raw)
                names = table.schema_arrow.names
                batches = table.iter_batches(batch_size=1024, columns=[field])
            else:
                batches = pyarrow.ipc.open_stream(raw)
                names = batches.schema.names
            if field not in names:
                raise DataError(
                    f"{path}: no column {field!r} (there are: {', '.join(names)}); see --field"
                )
            row = 0
            for batch in batches:
                for text in batch.column(field).to_pylist():
                    row += 1
                    if not isinstance(text, str):
                        raise DataError(f"{path}: row {row}: no text in column {field!r}")
                    yield text, min(size, raw.tell())
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _kinds() -> str:
    return ", ".join(READABLE_SUFFIXES)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
