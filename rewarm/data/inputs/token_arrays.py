"""Reads arrays of token ids without an index: nanoGPT's .bin, and .npy with or without a header.

Such an array is one stream: it is divided after each end-of-text token, or where that is not
known, or too rare, into blocks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rewarm.data.inputs.input_records import Document, Reading, ReadOptions
from rewarm.errors import DataError

_NPY_MAGIC = b"\x93NUMPY"
_LLM_C_MAGIC = np.array([20240520], "<i4").tobytes()
_READ_TOKENS = 1 << 20
RAW_DTYPES = ("uint16", "uint32", "int32", "int64")
"""The dtypes of token files without a header."""


def read_token_array(path: Path, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a .bin or .npy that holds the token ids of one stream.

    Raises:
        DataError: the file has no header and `raw_tokens` is not given, or it is damaged.
    """
    with path.open("rb") as raw:
        dtype, start, count = _layout(raw, path, reading.options)
        raw.seek(start)
        documents = _documents(raw, dtype, count, path, reading.options)
        for number, (tokens, ends, end) in enumerate(documents, start=1):
            location = f"{path}: document {number}"
            end_byte = start + end * dtype.itemsize
            yield Document(
                to_token_ids(tokens, location), reading.bytes_before + end_byte, location, ends
            )


def to_token_ids(values: npt.NDArray[Any], location: str) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Returns an array of token ids as unsigned integers that hold each of them.

    Raises:
        DataError: an id is negative, or larger than 32 bits.
    """
    if values.dtype.itemsize > 4 and values.size and int(values.max()) >= 2**32:
        raise DataError(f"{location}: damaged: token id {int(values.max()):,}")
    if values.dtype.kind == "i" and values.size and int(values.min()) < 0:
        raise DataError(f"{location}: a negative token id: {int(values.min()):,}")
    return values.astype(np.uint32)


def _layout(raw: IO[bytes], path: Path, options: ReadOptions) -> tuple[np.dtype[Any], int, int]:
    """Returns the dtype, the offset in bytes of the first token, and the number of tokens."""
    size = path.stat().st_size
    head = raw.read(10)
    if head.startswith(_NPY_MAGIC):
        return _npy_layout(raw, head, path, size)
    if head.startswith(_LLM_C_MAGIC):
        raise DataError(f"{path}: a token file of llm.c, which is not read; convert it to .npy")
    if options.raw_tokens is None:
        missing = "no header of NumPy"
        if path.suffix.lower() == ".bin":
            missing = f"its index is missing: {path.with_suffix('.idx').name}"
        raise DataError(
            f"{path}: {missing}; if it holds nothing but token ids (nanoGPT, Dolma), name their "
            f"dtype: --raw-tokens uint16 (or {', '.join(RAW_DTYPES[1:])})"
        )
    dtype = np.dtype(options.raw_tokens).newbyteorder("<")
    _check_whole_tokens(size, dtype, path)
    return dtype, 0, size // dtype.itemsize


def _check_whole_tokens(size: int, dtype: np.dtype[Any], path: Path) -> None:
    if size % dtype.itemsize:
        raise DataError(
            f"{path}: truncated, or of another dtype: {size:,} bytes of tokens are no whole "
            f"number of {dtype.name} ({dtype.itemsize} bytes each)"
        )


def _npy_layout(
    raw: IO[bytes], head: bytes, path: Path, size: int
) -> tuple[np.dtype[Any], int, int]:
    """Returns the same as `_layout` of a .npy by its header (numpy.lib.format)."""
    raw.seek(8)
    length = int.from_bytes(raw.read(2 if head[6:7] == b"\1" else 4), "little")
    start = raw.tell() + length
    try:
        header = ast.literal_eval(raw.read(min(length, 10_000)).decode("latin1"))
        description, shape = header["descr"], header["shape"]
        if set(header) != {"descr", "fortran_order", "shape"} or not all(
            isinstance(number, int) for number in shape
        ):
            raise ValueError
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise DataError(f"{path}: damaged: its header is not one of a .npy") from None
    if not re.fullmatch(r"[<|][iu][1248]", str(description)) or len(shape) != 1:
        raise DataError(
            f"{path}: an array of dtype {str(description)[:40]} and shape {str(shape)[:40]}; one "
            "row of token ids is read (little-endian integers): save it as such"
        )
    dtype, count = np.dtype(description), shape[0]
    if start + count * dtype.itemsize != size:
        raise DataError(
            f"{path}: {size:,} bytes long, and its header states {count:,} tokens of "
            f"{dtype.itemsize} bytes from byte {start:,} on; truncated, or damaged"
        )
    return dtype, start, count


def _documents(
    raw: IO[bytes], dtype: np.dtype[Any], count: int, path: Path, options: ReadOptions
) -> Iterator[tuple[npt.NDArray[Any], bool, int]]:
    """Yields (tokens, whether the document ends there, number of tokens up to its end)."""
    most = max(1, options.max_document_bytes // 4)
    pending: list[npt.NDArray[Any]] = []  # of a document that continues
    pending_tokens = position = 0
    while position < count:
        wanted = min(_READ_TOKENS, count - position)
        values = np.frombuffer(raw.read(wanted * dtype.itemsize), dtype)
        if len(values) != wanted:
            raise DataError(f"{path}: truncated while it is in use, after token {position:,}")
        start = 0
        ends = np.flatnonzero(values == options.end_of_text)  # none are equal to None
        for cut in (int(end) + 1 for end in ends):
            yield np.concatenate([*pending, values[start:cut]]), True, position + cut
            pending, pending_tokens, start = [], 0, cut
        pending.append(values[start:])
        pending_tokens += len(values) - start
        position += wanted
        if options.end_of_text is None or pending_tokens >= most:
            yield np.concatenate(pending), False, position
            pending, pending_tokens = [], 0
    if pending_tokens:
        yield np.concatenate(pending), False, position
