"""Reads documents from text files, tables, archives of text, and files of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rewarm.data.inputs.archive_readers import read_archive
from rewarm.data.inputs.decompression import content_chunks, joined_content, numbered_lines
from rewarm.data.inputs.input_files import InputFiles, bin_part, find_input_files
from rewarm.data.inputs.input_formats import format_of
from rewarm.data.inputs.input_records import (
    DEFAULT_OPTIONS,
    Document,
    Reading,
    ReadOptions,
    SkippedInput,
    check_is_json,
    check_json_lines,
    refuse_record,
    text_of_bytes,
    text_of_line,
)
from rewarm.data.inputs.megatron_format import read_megatron_documents
from rewarm.data.inputs.table_readers import read_table
from rewarm.data.inputs.token_arrays import read_token_array
from rewarm.errors import DataError

__all__ = [
    "DEFAULT_OPTIONS",
    "Document",
    "InputFiles",
    "ReadOptions",
    "SkippedInput",
    "find_input_files",
    "read_documents",
    "refuse_record",
]


def read_documents(
    paths: list[Path],
    field: str,
    *,
    on_bad_record: Callable[[SkippedInput], None] = refuse_record,
    on_skipped: Callable[[SkippedInput], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
    on_left_out: Callable[[str], None] = lambda _: None,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Iterator[Document]:
    """Yields every document of the files, in order.

    Args:
        paths: the files that `find_input_files` returned.
        field: the JSON field or table column that holds the text; a .txt file is one document.
        on_bad_record: called with each record that holds no text; if it returns, reading continues
            with the next record.
        on_skipped: called with each member of an archive that is not read.
        on_notice: called with what a user should know about how a file is read.
        on_left_out: called with the field and the value of each document that `options.where`
            leaves out.
        options: limits, and how token files are read.

    Raises:
        DataError: a file is damaged or truncated, or exceeds a limit; names file and line.
    """
    reading = Reading(field, options, on_bad_record, on_skipped, on_notice, on_left_out)
    for parts in _group_parts(paths):
        path = parts[0]
        try:
            yield from _read_file(parts, reading)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        read = sum(part.stat().st_size for part in parts)
        reading = reading._replace(bytes_before=reading.bytes_before + read)


def _group_parts(paths: list[Path]) -> Iterator[list[Path]]:
    """Yields each file, alone or with the other parts of the .bin that it is a part of.

    Raises:
        DataError: a part is missing.
    """
    parts_of: dict[Path, dict[int, Path]] = {}
    for path in paths:
        if part := bin_part(path):
            parts_of.setdefault(part[0], {})[part[1]] = path
    done: set[Path] = set()
    for path in paths:
        part = bin_part(path)
        if not part:
            yield [path]
        elif part[0] not in done:
            done.add(part[0])
            parts = parts_of[part[0]]
            # NAME-00000-of-00020.bin, ...: up to 20 in the Pile of Pythia, up to 19 elsewhere.
            if sorted(parts) != list(range(len(parts))) or len(parts) - part[2] not in (0, 1):
                raise DataError(
                    f"{path}: a part of {part[0].name}, of which {len(parts):,} are given; name "
                    f"all of 00000 to {part[2] - 1:05d} (some data sets end with {part[2]:05d}), "
                    "or their folder"
                )
            yield [parts[number] for number in sorted(parts)]


def _read_file(parts: list[Path], reading: Reading) -> Iterator[Document]:
    """Yields each document of a file, or of the parts of one."""
    path = parts[0]
    input_format = format_of(path)
    assert input_format, path
    name, compression = input_format
    if name in ("txt", "bin", "npy"):
        check_is_json(str(path), name, reading.options)
    if name in ("parquet", "arrow", "feather"):
        yield from read_table(path, name, reading)
    elif name in ("tar", "zip"):
        yield from read_archive(path, input_format, reading)
    elif part := bin_part(path):
        yield from read_megatron_documents(part[0], reading, parts)
    elif name == "bin" and path.with_suffix(".idx").exists():
        yield from read_megatron_documents(path, reading)
    elif name in ("bin", "npy"):
        yield from read_token_array(path, reading)
    else:
        yield from _read_text(path, name, compression, reading)


def _read_text(path: Path, name: str, compression: str, reading: Reading) -> Iterator[Document]:
    """Yields the document of a .txt, or that of each line of JSON."""
    location, options = str(path), reading.options
    with path.open("rb") as raw:
        chunks = content_chunks(raw, compression, location, options)
        if name == "txt":
            data = joined_content(chunks, location, options)
            text = text_of_bytes(data, location, reading, may_be_cut=not compression)
            if text is not None:
                yield Document(text, reading.bytes_before + raw.tell(), location)
            return
        is_first = True
        for number, line, has_end in numbered_lines(chunks, location, options):
            if is_first:
                check_json_lines(line, path)
            is_first = False
            line_location = f"{location}:{number}"
            may_be_cut = not (has_end or compression)
            text = text_of_line(line, line_location, reading, may_be_cut=may_be_cut)
            del line  # not in memory while the text is in use, nor the text with the next line
            if text is not None:
                yield Document(text, reading.bytes_before + raw.tell(), line_location)
            del text
