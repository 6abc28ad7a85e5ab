r"""Reads the token files of Megatron-LM and GPT-NeoX: a .bin of ids and an .idx of where they are.

The .idx, all little-endian (Megatron-LM, `indexed_dataset.py`):

    9 bytes   "MMIDIDX\0\0"        8 bytes   version, 1        1 byte   code of the dtype
    8 bytes   number of sequences S   8 bytes   length of the document list, D
    S × int32 tokens of each sequence     S × int64 its first byte in the .bin
    D × int64 number of the first sequence of each document, and S at the end
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rewarm.data.shard_format import Tokens
from rewarm.errors import DataError

Numbers = npt.NDArray[np.int64]
_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: "<u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def read_megatron_documents(path: Path) -> Iterator[tuple[Tokens, int]]:
    """Yields the token ids of each document of a .bin file, and where in the file it ends.

    Raises:
        DataError: the .idx beside it is missing, or the two do not fit.
    """
    index = path.with_suffix(".idx")
    try:
        said = index.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: its index is missing: {index.name}") from None
    dtype, lengths, starts, firsts = _parse(index, said)
    size = path.stat().st_size
    if len(lengths) and int((starts + lengths * dtype.itemsize).max()) > size:
        raise DataError(
            f"{path}: {size:,} bytes, and {index.name} speaks of "
            f"{int((starts + lengths * dtype.itemsize).max()):,}; one of them is cut off or of "
            "another data set"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)
    for first, end in pairwise(firsts.tolist()):
        parts = [tokens[starts[i] // dtype.itemsize :][: lengths[i]] for i in range(first, end)]
        joined = np.concatenate(parts) if parts else tokens[:0]
        if joined.size and int(joined.min()) < 0:
            raise DataError(f"{path}: a negative token id in the document at sequence {first:,}")
        done = int(starts[end - 1] + lengths[end - 1] * dtype.itemsize) if parts else 0
        yield joined.astype(np.uint32), done


def _parse(path: Path, said: bytes) -> tuple[np.dtype[Any], Numbers, Numbers, Numbers]:
    if not said.startswith(_MAGIC):
        raise DataError(f"{path}: not an index of Megatron or GPT-NeoX (MMIDIDX)")
    try:
        version, code, sequences, listed = struct.unpack_from("<QBQQ", said, len(_MAGIC))
        at = len(_MAGIC) + struct.calcsize("<QBQQ")
        lengths = np.frombuffer(said, "<i4", sequences, at).astype(np.int64)
        at += 4 * sequences
        starts = np.frombuffer(said, "<i8", sequences, at)
        firsts = np.frombuffer(said, "<i8", listed, at + 8 * sequences)
    except (struct.error, ValueError):
        raise DataError(f"{path}: cut off") from None
    if version != 1 or code not in _DTYPES:
        raise DataError(f"{path}: version {version}, dtype {code}: not a kind that can be read")
    steps = np.diff(firsts)
    if not listed or firsts[0] != 0 or firsts[-1] != sequences or (steps < 0).any():
        raise DataError(f"{path}: its documents do not cover its {sequences:,} sequences")
    if (lengths < 0).any() or (starts < 0).any():
        raise DataError(f"{path}: damaged: negative lengths or places")
    return np.dtype(_DTYPES[code]), lengths, starts, firsts
