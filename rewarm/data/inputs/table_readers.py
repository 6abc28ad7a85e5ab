"""Reads the texts in a column of a parquet file, or of an Arrow stream or file.

Arrow's reader takes a stream that is cut between two batches for a shorter one, and its files and
parquet say in one place how many batches or rows there are: here the counts have to match.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rewarm.data.inputs.arrow_messages import check_message
from rewarm.data.inputs.decompression import check_expansion
from rewarm.data.inputs.input_records import (
    Document,
    Reading,
    ReadOptions,
    SkippedInput,
    check_document_size,
    has_wanted_values,
    list_names,
    text_of_bytes,
)
from rewarm.errors import DataError

_ROWS = 1024
_BATCH_BYTES = 8_000_000
_MAGIC = b"ARROW1"
_END_OF_STREAM = (8, 4)  # bytes of the marker; 4 before Arrow 0.15


def read_table(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Yields the texts of a column.

    Args:
        path: the file.
        name: its format: parquet, arrow or feather.
        reading: how to read; `field` is the column.

    Raises:
        DataError: pyarrow is missing, the file is damaged or truncated, or has no such column.
    """
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{path}: reading it needs pyarrow: pip install 'rewarm[parquet]'"
        ) from None
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            batches = _parquet_batches if name == "parquet" else _arrow_batches
            row = expanded = 0
            for column, fields in batches(raw, path, reading):
                end = min(size, raw.tell())
                expanded += _bytes_of_rows(column) + fields.nbytes
                check_expansion(expanded, end, str(path), reading.options)
                for value, row_fields in zip(_values(column, path), _rows(fields), strict=True):
                    row += 1
                    location = f"{path}: row {row}"
                    if not has_wanted_values(row_fields, location, reading):
                        continue
                    text = _text_of(value, location, reading)
                    if text is not None:
                        yield Document(text, reading.bytes_before + end, location)
    # Damaged files also raise OSError, OverflowError, MemoryError and others in pyarrow.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from None


def _fields_to_compare(batch: Any, options: ReadOptions) -> Any:
    """Returns the columns of a batch that `where` compares."""
    names = set(batch.schema.names)
    wanted = (path if path in names else path.partition(".")[0] for path, _ in options.where)
    return batch.select([name for name in dict.fromkeys(wanted) if name in names])


def _rows(fields: Any) -> list[dict[str, Any]]:
    """Returns the rows of a batch, which may have no columns."""
    fields.validate(full=True)
    return fields.to_pylist() if fields.num_columns else [{}] * fields.num_rows


def _text_of(value: str | bytes | None, location: str, reading: Reading) -> str | None:
    if value is None:
        reason = f"no text in column {reading.field!r}: it is null"
        reading.on_bad_record(SkippedInput(location, reason))
        return None
    if len(value) > reading.options.max_document_bytes:
        check_document_size(len(value), location, reading.options)
    return value if isinstance(value, str) else text_of_bytes(value, location, reading)


def _check_column(schema: Any, path: Path, field: str) -> int:
    """Returns the position of the column that holds the text.

    Raises:
        DataError: there is none, or it holds something else.
    """
    from pyarrow import types

    positions = schema.get_all_field_indices(field)
    if len(positions) != 1:
        columns = "several of this name" if positions else list_names(schema.names)
        raise DataError(f"{path}: no column {field!r} (found: {columns}); see --field")
    type_ = schema.field(positions[0]).type
    value_type = type_.value_type if types.is_dictionary(type_) else type_
    is_text = (
        types.is_null,  # each row is a bad record
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
    )
    if not any(is_type(value_type) for is_type in is_text):
        raise DataError(
            f"{path}: row 1: no text in column {field!r}: it holds {type_}; see --field"
        )
    return int(positions[0])


def _values(column: Any, path: Path) -> Iterator[str | bytes | None]:
    """Yields the values of an array; of text that is not all UTF-8, as bytes."""
    import pyarrow

    if isinstance(column, pyarrow.DictionaryArray):
        # A value that many rows refer to is decoded once.
        column.validate(full=True)
        indices = column.indices
        used = indices.unique().drop_null()
        values = list(_values(column.dictionary.take(used), path))
        positions = {index: i for i, index in enumerate(used.to_pylist())}
        for index in indices.to_pylist():
            yield None if index is None else values[positions[index]]
        return
    try:
        column.validate(full=True)
    except pyarrow.ArrowInvalid:
        if not pyarrow.types.is_unicode(column.type) and not pyarrow.types.is_large_unicode(
            column.type
        ):
            raise
        is_large = pyarrow.types.is_large_unicode(column.type)
        column = column.view(pyarrow.large_binary() if is_large else pyarrow.binary())
        column.validate(full=True)
    yield from column.to_pylist()


class _DataAreReadError(Exception):
    """The pages of a parquet file are about to be read."""


class _WithoutData:
    """A parquet file of which all but the data can be used: its metadata are known already."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.seek, self.tell = raw.seek, raw.tell
        self.closed, self.mode = False, "rb"

    def read(self, size: int) -> bytes:
        raise _DataAreReadError


def _parquet_batches(raw: IO[bytes], path: Path, reading: Reading) -> Iterator[tuple[Any, Any]]:
    """Yields the column of texts, and the columns to compare, of some rows at a time."""
    from pyarrow import parquet

    field, options = reading.field, reading.options
    metadata = parquet.read_metadata(raw)
    _check_column(metadata.schema.to_arrow_schema(), path, field)
    # Reads what it needs, and not a whole group of rows at once.
    settings = {"metadata": metadata, "buffer_size": 1 << 20, "pre_buffer": False}
    table = parquet.ParquetFile(raw, page_checksum_verification=True, **settings)
    as_dictionary = parquet.ParquetFile(raw, read_dictionary=[field], **settings)
    without_data = parquet.ParquetFile(_WithoutData(raw), **settings)
    schema = metadata.schema
    positions = [i for i in range(len(schema)) if schema.column(i).path == field]
    if len(positions) != 1:
        raise DataError(
            f"{path}: the column {field!r}, and a field within another column, have the same path "
            "in parquet; write the file again with another name for the column"
        )
    position = positions[0]
    rows = 0
    for number in range(metadata.num_row_groups):
        # `group.column` ends the process if the description of the column is damaged; reading
        # raises an error instead.
        with contextlib.suppress(_DataAreReadError):
            next(without_data.iter_batches(1, row_groups=[number], columns=[field]), None)
        group = metadata.row_group(number)
        chunk = group.column(position)
        stored = chunk.total_uncompressed_size
        location = f"{path}: row group {number}"
        check_expansion(stored, chunk.total_compressed_size, location, options)
        longest = stored // max(1, group.num_rows)
        if chunk.has_dictionary_page:
            longest = max(longest, _longest_value(as_dictionary, number, field))
        batch_rows = max(1, min(_ROWS, _BATCH_BYTES // max(1, longest)))
        columns = [field, *(path for path, _ in options.where)]
        for batch in table.iter_batches(batch_rows, row_groups=[number], columns=columns):
            rows += batch.num_rows
            yield batch.column(field), _fields_to_compare(batch, options)
    stated = metadata.num_rows
    if rows != stated:
        raise DataError(f"{path}: damaged: {rows:,} rows, and its footer states {stated:,}")


def _longest_value(as_dictionary: Any, row_group: int, field: str) -> int:
    """Returns the length of the longest value in the dictionary of a row group.

    Arrow copies a value for each row that refers to it, of which a tiny file can have millions.
    """
    from pyarrow import compute, types

    batches = as_dictionary.iter_batches(1, row_groups=[row_group], columns=[field])
    first = next(batches, None)
    if not first or types.is_null(first.column(0).type):
        return 0
    return int(compute.max(compute.binary_length(first.column(0).dictionary)).as_py() or 0)


def _bytes_of_rows(column: Any) -> int:
    """Returns the bytes of the values of all rows, however often they are stored."""
    import pyarrow
    from pyarrow import compute

    if not isinstance(column, pyarrow.DictionaryArray):
        return int(column.nbytes)
    lengths = compute.binary_length(column.dictionary)
    return int(compute.sum(lengths.take(column.indices)).as_py() or 0)


def _arrow_batches(raw: IO[bytes], path: Path, reading: Reading) -> Iterator[tuple[Any, Any]]:
    """Yields the column of texts, and the columns to compare, of each batch."""
    import pyarrow

    start, batches_stated = 0, None
    magic = raw.read(8)
    if magic.startswith(_MAGIC):
        # The file format is the stream, and then a footer that lists its batches.
        batches_stated = pyarrow.ipc.open_file(raw).num_record_batches
        start = 8
    elif magic.startswith(b"FEA1"):
        raise DataError(
            f"{path}: Feather version 1, which is not read; write it again as version 2"
        )
    raw.seek(start)
    stream = pyarrow.ipc.open_stream(raw)
    position = _check_column(stream.schema, path, reading.field)
    batches = 0
    while True:
        before = raw.tell()
        check_message(raw, path, reading.options)
        try:
            batch = stream.read_next_batch()
        except StopIteration:
            break
        batches += 1
        yield batch.column(position), _fields_to_compare(batch, reading.options)
    if raw.tell() - before not in _END_OF_STREAM:
        raise DataError(
            f"{path}: truncated: the end-of-stream marker after batch {batches:,} is missing; copy "
            "or download it again"
        )
    if batches_stated is None:
        if raw.read(1):
            raise DataError(
                f"{path}: damaged: {path.stat().st_size - raw.tell() + 1:,} bytes after its end"
            )
    elif batches != batches_stated:
        raise DataError(
            f"{path}: damaged: {batches:,} batches, and its footer states {batches_stated:,}"
        )
