"""Decompresses gzip, zstd, xz and bzip2 in bounded memory, and refuses what is truncated.

The readers of `bz2`, `lzma` and `zstandard` return what they could read of a truncated file, or
ignore what follows the first damaged stream. Here each stream has to be complete.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from rewarm.data.inputs.input_records import ReadOptions, check_document_size
from rewarm.errors import DataError

_CHUNK = 1 << 20
_LARGEST_ZSTD_WINDOW = 1 << 31
_XZ_MEMORY = 1 << 29


class _Codec(NamedTuple):
    name: str
    read_bytes: int
    """How much is given to the decompressor at once."""
    open: Callable[[], Any]
    decompress: Callable[[Any, bytes], Iterator[bytes]]


def _open_zstd() -> Any:
    import zstandard

    # As `zstd --long=31` writes; what a frame claims is reserved, but not used before it is needed.
    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW).decompressobj()


def _decompress_zlib(decompressor: Any, data: bytes) -> Iterator[bytes]:
    while True:
        output = decompressor.decompress(data, _CHUNK)
        yield output
        data = decompressor.unconsumed_tail
        if decompressor.eof or (not data and len(output) < _CHUNK):
            return


def _decompress_stepwise(decompressor: Any, data: bytes) -> Iterator[bytes]:
    while True:
        yield decompressor.decompress(data, _CHUNK)
        data = b""
        if decompressor.eof or decompressor.needs_input:
            return


def _decompress_zstd(decompressor: Any, data: bytes) -> Iterator[bytes]:
    output = decompressor.decompress(data)
    yield from (output[start : start + _CHUNK] for start in range(0, len(output), _CHUNK))


CODECS = {
    ".gz": _Codec("gzip", 1 << 16, lambda: zlib.decompressobj(wbits=31), _decompress_zlib),
    # zstd has no limit on its output: 2 kB become at most 64 MB (128 kB for each 4 bytes).
    ".zst": _Codec("zstd", 1 << 11, _open_zstd, _decompress_zstd),
    ".xz": _Codec(
        "xz",
        1 << 16,
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
        _decompress_stepwise,
    ),
    ".bz2": _Codec("bzip2", 1 << 16, bz2.BZ2Decompressor, _decompress_stepwise),
}
"""The compressions that are read, by their ending."""


def content_chunks(
    raw: IO[bytes], compression: str, location: str, options: ReadOptions
) -> Iterator[bytes]:
    """Yields the content of a file in chunks, decompressed if it is compressed.

    Args:
        raw: the file.
        compression: a key of `CODECS`, or "" for none.
        location: the file, as error messages name it.
        options: the limits.

    Raises:
        DataError: the file is damaged, truncated, or expands beyond the limits.
    """
    if not compression:
        while chunk := raw.read(_CHUNK):
            yield chunk
        return
    size = 0
    for chunk in _decompressed_chunks(raw, CODECS[compression], location):
        size += len(chunk)
        check_expansion(size, raw.tell(), location, options)
        yield chunk


def check_expansion(size: int, compressed: int, location: str, options: ReadOptions) -> None:
    """Checks that `compressed` bytes have not become too many.

    Raises:
        DataError: they are more than `max_expansion` times as many, and more than one document.
    """
    if size > options.max_document_bytes and size > options.max_expansion * compressed:
        raise DataError(
            f"{location}: its first {compressed:,} bytes expand to more than {size:,}, over "
            f"{options.max_expansion:,} times their size, as no ordinary text does; if it is "
            "meant, allow it with --max-expansion"
        )


def _decompressed_chunks(raw: IO[bytes], codec: _Codec, location: str) -> Iterator[bytes]:
    import zstandard

    decompressor, is_empty = None, True
    while data := raw.read(codec.read_bytes):
        while data:
            if decompressor is None:
                data = data.lstrip(b"\0")  # padding after a stream
                if not data:
                    break
                decompressor, is_empty = codec.open(), False
            try:
                yield from codec.decompress(decompressor, data)
            except (zlib.error, OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
                raise DataError(f"{location}: damaged {codec.name}: {error}") from None
            if not decompressor.eof:
                break
            data, decompressor = decompressor.unused_data, None
    if decompressor is not None or is_empty:
        raise DataError(f"{location}: damaged {codec.name}: truncated; copy or download it again")


class Line(NamedTuple):
    """A line of a content."""

    number: int
    """Its number, from 1."""
    data: bytes
    """The line without its end."""
    has_end: bool = True
    """False for a last line without a line end, which may be cut."""


def numbered_lines(chunks: Iterator[bytes], location: str, options: ReadOptions) -> Iterator[Line]:
    """Yields the lines of a content that are not blank.

    Takes time linear in the length of the content, however long its lines are.

    Raises:
        DataError: a line is longer than a document may be.
    """
    start: list[bytes] = []  # of a line that continues in the next chunk
    size, number = 0, 1
    for chunk in chunks:
        if not (size or chunk.strip()):  # a bomb may be nothing but blank lines
            number += chunk.count(b"\n")
            continue
        first, *others = chunk.split(b"\n")
        start.append(first)
        size += len(first)
        check_document_size(size, f"{location}:{number}", options)
        for line in others:
            complete = b"".join(start) if len(start) > 1 else start[0]
            start = [line]
            if complete and not complete.isspace():
                yield Line(number, complete)
            del complete  # not in memory while the next one is joined
            number += 1
        if others:
            size = len(others[-1])
    complete = b"".join(start)
    if complete and not complete.isspace():
        yield Line(number, complete, has_end=False)


def joined_content(chunks: Iterator[bytes], location: str, options: ReadOptions) -> bytes:
    """Returns a content that is one document.

    Raises:
        DataError: it is longer than a document may be.
    """
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        check_document_size(size, location, options)
    return b"".join(parts)
