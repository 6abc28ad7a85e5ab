"""Reads documents from text files, tables, tars of text, and Megatron's token files."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from rewarm.data.megatron_format import read_megatron_documents
from rewarm.data.sample_layout import Tokens
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
    """One document, and its end in the input."""

    content: str | Tokens
    """Its text, or its token ids if the file holds token ids (Megatron's .bin and .idx)."""
    bytes_read: int
    """Bytes of all input files up to the end of this document."""
    ends: bool = True
    """Whether end-of-text follows; not after a fixed-length block of a token stream."""
    location: str = ""
    """Its file and its place there, for error messages."""


def find_input_files(inputs: list[Path]) -> list[Path]:
    """Returns the files to read: the inputs in order, with each folder's files sorted by path.

    Raises:
        DataError: an input does not exist, its format is unknown, or a folder has no readable file.
    """
    suffixes = ", ".join(READABLE_SUFFIXES)
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files_in_folder = sorted(
                file for file in path.rglob("*") if file.name.endswith(READABLE_SUFFIXES)
            )
            if not files_in_folder:
                raise DataError(f"{path}: no text in this folder (looked for {suffixes})")
            files += files_in_folder
        elif not path.exists():
            raise DataError(f"{path}: no such file")
        elif not path.name.endswith(READABLE_SUFFIXES):
            raise DataError(f"{path}: this file format cannot be read (supported: {suffixes})")
        else:
            files.append(path)
    return files


def read_documents(paths: list[Path], field: str) -> Iterator[TextDocument]:
    """Yields every document of the files, in order.

    Args:
        paths: the files that `find_input_files` returned.
        field: the JSON field or table column that holds the text; a .txt file is one document.

    Raises:
        DataError: a file is damaged, or a line has no text in `field`; names file and line.
    """
    bytes_before = 0  # of this file
    for path in paths:
        try:
            for number, (content, end) in enumerate(_read_file(path, field), start=1):
                location = "" if isinstance(content, str) else f"{path}: document {number:,}"
                yield TextDocument(content, bytes_before + end, location=location)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        bytes_before += path.stat().st_size


def _read_file(path: Path, field: str) -> Iterator[tuple[str | Tokens, int]]:
    """Yields each document of a file, and the byte at which it ends."""
    size = path.stat().st_size
    if path.name.endswith((".parquet", ".arrow")):
        yield from _read_table(path, field)
    elif path.name.endswith(".tar"):
        yield from _read_tar(path, field)
    elif path.name.endswith(".bin"):
        yield from read_megatron_documents(path)
    elif path.name.endswith(".txt"):
        yield _decode(path.read_bytes(), str(path)), size
    else:
        with path.open("rb") as raw:
            for number, line in enumerate(_decompressed_lines(raw, path), start=1):
                if line.strip():
                    yield _text_of_line(line, field, f"{path}:{number}"), raw.tell()


def _read_tar(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """Yields the documents in the .txt and .json members of a WebDataset tar; skips the others."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                location = f"{path}:{member.name}"
                if member.isdir() or not member.name.endswith((".txt", ".json")):
                    continue
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    raise DataError(f"{location}: not a plain file; links are not followed")
                data = file.read()
                if member.name.endswith(".txt"):
                    yield _decode(data, location), member.offset
                else:
                    yield _text_of_line(data, field, location), member.offset
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a tar that can be read: {error}") from None


def _decode(data: bytes, location: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{location}: not UTF-8 text: {error.reason} at {error.start}") from None


def _decompressed_lines(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        yield from _split_lines(_decompress_zstd(raw, path))
    elif path.name.endswith(".gz"):
        try:
            yield from gzip.GzipFile(fileobj=raw)
        except zlib.error as error:
            raise DataError(f"{path}: damaged gzip: {error}") from None
    else:
        yield from raw


def _decompress_zstd(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yields the content of zstd frames, and refuses a truncated file.

    zstandard's own reader returns what it could read of one.
    """
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
        raise DataError(f"{path}: damaged zstd: truncated")


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *complete_lines, rest = (rest + chunk).split(b"\n")
        yield from complete_lines
    yield rest


def _text_of_line(line: bytes, field: str, location: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: not a line of JSON: {error}") from None
    text = row.get(field) if isinstance(row, dict) else None
    if isinstance(text, str) and not _is_valid_unicode(text):
        raise DataError(
            f"{location}: field {field!r} holds half a surrogate pair, which is not text"
        )
    if not isinstance(text, str):
        fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{location}: no text in field {field!r} (found: {fields}); see --field")
    return text


def _read_table(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """Yields the texts in a column of a parquet file, or of an Arrow file that `datasets` saved."""
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
                    f"{path}: no column {field!r} (found: {', '.join(names)}); see --field"
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


def _is_valid_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
