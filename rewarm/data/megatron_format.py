r"""Reads the token files of Megatron-LM and GPT-NeoX: token ids in a .bin, their index in an .idx.

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

import contextlib
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.data.input_records import Reading, Record, check_document_size
from rewarm.data.token_arrays import to_token_ids
from rewarm.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: "<u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def read_megatron_documents(
    path: Path, reading: Reading, parts: list[Path] | None = None
) -> Iterator[Record]:
    """Yields the token ids of each document of a .bin file.

    If its sequences are blocks of a fixed length, which no document ends with, each is yielded
    alone, and that is reported.

    Args:
        path: the .bin, which has an .idx beside it.
        reading: how to read.
        parts: the files that the .bin was split into, in order; by default the .bin itself.

    Raises:
        DataError: the .idx is missing or damaged, or does not match the .bin.
    """
    index_path = path.with_suffix(".idx")
    index = _parse_index(index_path, index_path.read_bytes())
    parts = parts or [path]
    size = sum(part.stat().st_size for part in parts)
    expected = int(index.lengths.sum()) * index.dtype.itemsize
    if size != expected:
        raise DataError(
            f"{path}: {size:,} bytes, and {index_path.name} refers to {expected:,} "
            f"({index.lengths.sum():,} tokens of {index.dtype.name}): {abs(size - expected):,} too "
            f"{'many' if size > expected else 'few'}; one of them is truncated or belongs to "
            "another data set"
        )
    is_blocks = _are_blocks(index.lengths, reading.options.sequences)
    if is_blocks:
        reading.on_notice(
            f"{path}: its {len(index.lengths):,} sequences have {index.lengths[0]:,} tokens each: "
            "taken for blocks of one token stream, so no end-of-text is added to them; if each is "
            "a document, say so with --sequences document"
        )
    firsts = range(len(index.lengths) + 1) if is_blocks else index.first_sequences.tolist()
    ends = np.concatenate([[0], index.lengths.cumsum()]) * index.dtype.itemsize
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        for number, (first, end) in enumerate(pairwise(firsts), start=1):
            start_byte, end_byte = int(ends[first]), int(ends[end])
            location = f"{path}: {'block' if is_blocks else 'document'} {number}"
            check_document_size(end_byte - start_byte, location, reading.options)
            # Read, not mapped into memory: see `Shard`.
            data = _read_across(files, parts, start_byte, end_byte - start_byte)
            if len(data) != end_byte - start_byte:
                raise DataError(f"{location}: truncated while it is in use")
            tokens = to_token_ids(np.frombuffer(data, index.dtype), location)
            yield Record(tokens, end_byte, location, ends=not is_blocks)


def _are_blocks(lengths: npt.NDArray[np.int64], sequences: str) -> bool:
    """Returns whether sequences are blocks of a fixed length; the last one may be shorter."""
    if sequences != "auto":
        return sequences == "block"
    if len(lengths) < 3 or lengths[0] < 2:
        return False
    return bool((lengths[:-1] == lengths[0]).all() and lengths[-1] <= lengths[0])


def _read_across(files: Sequence[IO[bytes]], parts: list[Path], start: int, size: int) -> bytes:
    """Returns `size` bytes of the concatenation of files."""
    data = b""
    for file, part in zip(files, parts, strict=True):
        part_size = part.stat().st_size if len(parts) > 1 else start + size
        if start < part_size and len(data) < size:
            file.seek(start)
            data += file.read(min(size - len(data), part_size - start))
            start = part_size
        start -= part_size
    return data


class _SequenceIndex(NamedTuple):
    """The content of an .idx file."""

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int64]
    """Number of tokens in each sequence."""
    first_sequences: npt.NDArray[np.int64]
    """Number of the first sequence of each document, and the number of sequences at the end."""


def _parse_index(path: Path, data: bytes) -> _SequenceIndex:
    if not data.startswith(_MAGIC):
        raise DataError(f"{path}: not an index of Megatron or GPT-NeoX (MMIDIDX)")
    try:
        version, code, sequences, entries = struct.unpack_from("<QBQQ", data, len(_MAGIC))
        offset = len(_MAGIC) + struct.calcsize("<QBQQ")
        lengths = np.frombuffer(data, "<i4", sequences, offset).astype(np.int64)
        offset += 4 * sequences
        byte_offsets = np.frombuffer(data, "<i8", sequences, offset)
        first_sequences = np.frombuffer(data, "<i8", entries, offset + 8 * sequences)
    except (struct.error, ValueError, OverflowError):
        raise DataError(f"{path}: truncated") from None
    if version != 1 or code not in _DTYPES:
        raise DataError(f"{path}: version {version}, dtype code {code}: cannot be read")
    if len(data) != offset + 8 * (sequences + entries):
        raise DataError(f"{path}: damaged: longer than its {sequences:,} sequences take")
    covers_all = entries and first_sequences[0] == 0 and first_sequences[-1] == sequences
    if not covers_all or (np.diff(first_sequences) < 0).any():
        raise DataError(f"{path}: its documents do not cover its {sequences:,} sequences")
    dtype = np.dtype(_DTYPES[code])
    # Every writer stores the sequences one after another.
    expected_offsets = (lengths.cumsum() - lengths) * dtype.itemsize
    if (lengths < 0).any() or (byte_offsets != expected_offsets).any():
        raise DataError(f"{path}: damaged: the offsets of its sequences do not match their lengths")
    return _SequenceIndex(dtype, lengths, first_sequences)
