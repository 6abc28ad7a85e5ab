"""Reads how large a message of an Arrow stream becomes, before Arrow allocates that.

Each compressed buffer of a record batch begins with its length after decompression. A message
(arrow.apache.org/docs/format/Columnar.html, "Encapsulated message format"):

    4 bytes    0xFFFFFFFF
    int32      length of the metadata, 0 at the end of the stream
    metadata   a flatbuffer: Message.fbs
    body       buffers
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from rewarm.data.inputs.decompression import check_expansion
from rewarm.data.inputs.input_records import ReadOptions
from rewarm.errors import DataError

_CONTINUATION = 0xFFFFFFFF
_MOST_METADATA_BYTES = 1 << 26
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # of Message.header


class _Table(NamedTuple):
    """A table of a flatbuffer: its fields are found by their numbers in the schema."""

    data: bytes
    position: int

    def offset(self, field: int) -> int:
        """Returns where a field is stored; 0 if it is absent."""
        vtable = self.position - self._int("<i", self.position)
        size = self._int("<H", vtable)
        slot = 4 + 2 * field
        entry = self._int("<H", vtable + slot) if slot < size else 0
        return self.position + entry if entry else 0

    def number(self, field: int, code: str) -> int:
        at = self.offset(field)
        return self._int(code, at) if at else 0

    def table(self, field: int) -> _Table | None:
        at = self.offset(field)
        return _Table(self.data, at + self._int("<I", at)) if at else None

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yields the structs of two int64 of a vector."""
        at = self.offset(field)
        if not at:
            return
        start = at + self._int("<I", at)
        count = self._int("<I", start)
        if start + 4 + 16 * count > len(self.data):
            raise struct.error("vector out of bounds")
        yield from struct.iter_unpack("<qq", self.data[start + 4 : start + 4 + 16 * count])

    def _int(self, code: str, at: int) -> int:
        if at < 0:
            raise struct.error("offset out of bounds")
        return int(struct.unpack_from(code, self.data, at)[0])


def check_message(raw: IO[bytes], path: Path, options: ReadOptions) -> None:
    """Checks that the next message does not expand beyond the limits; leaves the position as is.

    Messages that are damaged are left to Arrow, which refuses them.

    Raises:
        DataError: it does, or its metadata claim an absurd length.
    """
    start = raw.tell()
    head = raw.read(8)
    try:
        first, length = struct.unpack("<II", head)
        if first != _CONTINUATION:  # before Arrow 0.15, which had no compression
            return
        if length > _MOST_METADATA_BYTES:
            raise DataError(f"{path}: damaged: a message with {length:,} bytes of metadata")
        data = raw.read(length)
        message = _Table(data, *struct.unpack_from("<I", data))
        location = f"{path}: the message at byte {start:,}"
        batch, kind = message.table(2), message.number(1, "<B")
        _check_batch_size(message.number(3, "<q"), location, options)
        if batch and kind == _DICTIONARY_BATCH:
            batch = batch.table(1)
        if not batch or kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or not batch.offset(3):
            return
        body, expanded, stored = raw.tell(), 0, 0
        for offset, size in batch.pairs(2):
            if size >= 8 and offset >= 0:
                raw.seek(body + offset)
                (claimed,) = struct.unpack("<q", raw.read(8))
                expanded += max(0, claimed)  # -1: stored as it is
                stored += size
        check_expansion(expanded, stored, location, options)
        _check_batch_size(expanded, location, options)
    except struct.error:
        return
    finally:
        raw.seek(start)


def _check_batch_size(size: int, location: str, options: ReadOptions) -> None:
    """Checks that a batch, which Arrow reads as a whole, is at most eight of the largest documents.

    Raises:
        DataError: it is larger.
    """
    if size > 8 * options.max_document_bytes:
        raise DataError(
            f"{location}: a batch of {size:,} bytes, which is read as a whole; write smaller "
            "batches, or allow it with --max-document (it may be 8 times as large)"
        )
