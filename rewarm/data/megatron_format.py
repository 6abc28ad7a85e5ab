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

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.data.sample_layout import Tokens
from rewarm.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: "<u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def read_megatron_documents(path: Path) -> Iterator[tuple[Tokens, int]]:
    """Yields the token ids of each document of a .bin file, and the byte at which it ends.

    Raises:
        DataError: the .idx is missing or damaged, or does not match the .bin.
    """
    index_path = path.with_suffix(".idx")
    try:
        index = _parse_index(index_path, index_path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: its index is missing: {index_path.name}") from None
    size = path.stat().st_size
    ends = index.byte_offsets + index.lengths * index.dtype.itemsize
    if len(ends) and int(ends.max()) > size:
        raise DataError(
            f"{path}: {size:,} bytes, and {index_path.name} refers to {int(ends.max()):,}; one of "
            "them is truncated or belongs to another data set"
        )
    with path.open("rb") as file:
        for first, end in pairwise(index.first_sequences.tolist()):
            parts = []
            for i in range(first, end):  # read, not mapped into memory: see `Shard`
                file.seek(int(index.byte_offsets[i]))
                parts.append(np.fromfile(file, index.dtype, int(index.lengths[i])))
            joined = np.concatenate(parts) if parts else np.empty(0, index.dtype)
            if joined.size != index.lengths[first:end].sum():
                raise DataError(
                    f"{path}: truncated while it is in use: the document at sequence {first:,} is "
                    "incomplete"
                )
            if joined.size and int(joined.min()) < 0:
                raise DataError(
                    f"{path}: a negative token id in the document at sequence {first:,}"
                )
            yield joined.astype(np.uint32), int(ends[end - 1]) if parts else 0


class _SequenceIndex(NamedTuple):
    """The content of an .idx file."""

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int64]
    """Number of tokens in each sequence."""
    byte_offsets: npt.NDArray[np.int64]
    """Offset of each sequence in the .bin."""
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
    except (struct.error, ValueError):
        raise DataError(f"{path}: truncated") from None
    if version != 1 or code not in _DTYPES:
        raise DataError(f"{path}: version {version}, dtype code {code}: cannot be read")
    covers_all = entries and first_sequences[0] == 0 and first_sequences[-1] == sequences
    if not covers_all or (np.diff(first_sequences) < 0).any():
        raise DataError(f"{path}: its documents do not cover its {sequences:,} sequences")
    if (lengths < 0).any() or (byte_offsets < 0).any():
        raise DataError(f"{path}: damaged: negative lengths or offsets")
    return _SequenceIndex(np.dtype(_DTYPES[code]), lengths, byte_offsets, first_sequences)
