r"""Reads the index of Megatron-LM and GPT-NeoX, a part at a time: it may have 200M sequences.

The .idx, all little-endian (Megatron-LM, `indexed_dataset.py`):

    9 bytes    "MMIDIDX\0\0"
    8 bytes    version, 1
    1 byte     code of the dtype
    8 bytes    number of sequences, S
    8 bytes    length of the document list, D
    S × int32  number of tokens in each sequence
    S × int64  offset of each sequence in the .bin, in bytes
    D × int64  number of the first sequence of each document, and S at the end
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.errors import DataError

Integers = npt.NDArray[np.int64]

_MAGIC = b"MMIDIDX\x00\x00"
_COUNTS = struct.Struct("<QBQQ")
_DTYPES = {1: "<u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_ENTRIES = 1 << 16
"""How many entries of the index are in memory at once."""


class MegatronIndex(NamedTuple):
    """What the index of a .bin says; its entries stay in the file."""

    file: IO[bytes]
    """The open .idx. It is read, not mapped into memory: see `Shard`."""
    path: Path
    dtype: np.dtype[Any]
    sequences: int
    document_entries: int
    """Number of documents + 1."""
    size: int
    """Bytes of the .bin."""
    block_tokens: int | None
    """The length that all sequences have, but for a shorter last one; None if they differ."""
    joins_sequences: bool
    """Whether some documents are made of several sequences, and there are several documents."""

    def document_ends(self) -> Iterator[Integers]:
        """Yields, some at a time, the bytes of the .bin up to the end of each document."""
        position, count = self._start_of_documents + 8, self.document_entries - 1
        for firsts in _chunks(self.file, "<i8", position, count, self.path):
            yield from self._offsets_of(firsts)

    def sequence_ends(self) -> Iterator[Integers]:
        """Yields, some at a time, the bytes of the .bin up to the end of each sequence."""
        position = self._start_of_offsets + 8
        yield from _chunks(self.file, "<i8", position, self.sequences - 1, self.path)
        if self.sequences:
            yield np.array([self.size])

    def _offsets_of(self, numbers: Integers) -> Iterator[Integers]:
        """Yields the offsets of the sequences of ascending numbers."""
        done = 0
        while done < len(numbers):
            first = int(numbers[done])
            if first == self.sequences:
                yield np.full(len(numbers) - done, self.size)
                return
            count = min(_ENTRIES, self.sequences - first)
            start = self._start_of_offsets + 8 * first
            (offsets,) = _chunks(self.file, "<i8", start, count, self.path)
            stop = int(np.searchsorted(numbers, first + count))
            yield offsets[numbers[done:stop] - first]
            done = stop

    @property
    def _start_of_offsets(self) -> int:
        return len(_MAGIC) + _COUNTS.size + 4 * self.sequences

    @property
    def _start_of_documents(self) -> int:
        return self._start_of_offsets + 8 * self.sequences


def open_index(file: IO[bytes], path: Path) -> MegatronIndex:
    """Returns an index whose every entry is checked.

    Raises:
        DataError: it is damaged or truncated.
    """
    head = file.read(len(_MAGIC) + _COUNTS.size)
    if not head.startswith(_MAGIC):
        raise DataError(f"{path}: not an index of Megatron or GPT-NeoX (MMIDIDX)")
    if len(head) < len(_MAGIC) + _COUNTS.size:
        raise DataError(f"{path}: truncated")
    version, code, sequences, entries = _COUNTS.unpack_from(head, len(_MAGIC))
    if version != 1 or code not in _DTYPES:
        raise DataError(f"{path}: version {version}, dtype code {code}: cannot be read")
    size, expected = path.stat().st_size, len(head) + 12 * sequences + 8 * entries
    if size != expected:
        raise DataError(
            f"{path}: {'truncated' if size < expected else 'damaged'}: {size:,} bytes, and its "
            f"{sequences:,} sequences and {entries:,} entries of documents take {expected:,}"
        )
    index = MegatronIndex(file, path, np.dtype(_DTYPES[code]), sequences, entries, 0, None, False)
    size, block_tokens = _check_sequences(index)
    joins = _check_documents(index)
    return index._replace(size=size, block_tokens=block_tokens, joins_sequences=joins)


def _check_sequences(index: MegatronIndex) -> tuple[int, int | None]:
    """Returns the bytes of all sequences, and the length that they have in common.

    Raises:
        DataError: the sequences are not stored one after another, as every writer does.
    """
    end, block_tokens, last = 0, None, None
    path, start = index.path, len(_MAGIC) + _COUNTS.size
    for first in range(0, index.sequences, _ENTRIES):
        count = min(_ENTRIES, index.sequences - first)
        (lengths,) = _chunks(index.file, "<i4", start + 4 * first, count, path)
        (offsets,) = _chunks(index.file, "<i8", index._start_of_offsets + 8 * first, count, path)
        sizes = lengths.astype(np.int64) * index.dtype.itemsize
        ends = end + sizes.cumsum()
        if (lengths < 0).any() or (offsets != ends - sizes).any():
            raise DataError(
                f"{path}: damaged: the offsets of its sequences do not match their lengths"
            )
        if first == 0:
            block_tokens = int(lengths[0])
        # The last sequence so far is not the last one of all.
        if last not in (None, block_tokens) or (lengths[:-1] != block_tokens).any():
            block_tokens = None
        last, end = int(lengths[-1]), int(ends[-1])
    is_uniform = block_tokens is not None and last is not None and last <= block_tokens
    return end, block_tokens if is_uniform else None


def _check_documents(index: MegatronIndex) -> bool:
    """Returns whether some documents, of several, are made of several sequences.

    Raises:
        DataError: the documents do not cover the sequences.
    """
    before, joins = 0, False
    count, start = index.document_entries, index._start_of_documents
    for firsts in _chunks(index.file, "<i8", start, count, index.path):
        steps = np.diff(firsts, prepend=before)
        if (steps < 0).any():
            break
        joins = joins or bool((steps > 1).any())
        before = int(firsts[-1])
    else:
        index.file.seek(start)
        if count and index.file.read(8) == bytes(8) and before == index.sequences:
            return joins and count > 2
    raise DataError(f"{index.path}: its documents do not cover its {index.sequences:,} sequences")


def _chunks(
    file: IO[bytes], dtype: str, position: int, count: int, path: Path
) -> Iterator[Integers]:
    """Yields `count` entries of the index from a position in bytes on, `_ENTRIES` at a time."""
    size = np.dtype(dtype).itemsize
    while count > 0:
        wanted = min(_ENTRIES, count)
        file.seek(position)
        values = np.frombuffer(file.read(wanted * size), dtype)
        if len(values) != wanted:
            raise DataError(f"{path}: truncated while it is in use")
        yield values
        position += wanted * size
        count -= wanted
