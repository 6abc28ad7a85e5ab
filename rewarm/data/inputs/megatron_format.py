"""Reads the token files of Megatron-LM and GPT-NeoX: token ids in a .bin, their index in an .idx.

Both are read from start to end, in parts of bounded size.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rewarm.data.inputs.input_records import Document, Reading, check_document_size
from rewarm.data.inputs.megatron_index import MegatronIndex, open_index
from rewarm.data.inputs.token_arrays import to_token_ids
from rewarm.data.sample_layout import Tokens
from rewarm.errors import DataError

_READ_BYTES = 1 << 20


def read_megatron_documents(
    path: Path, reading: Reading, parts: list[Path] | None = None
) -> Iterator[Document]:
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
    parts = parts or [path]
    index_path = path.with_suffix(".idx")
    with contextlib.ExitStack() as stack:
        index = open_index(stack.enter_context(index_path.open("rb")), index_path)
        size = sum(part.stat().st_size for part in parts)
        if size != index.size:
            raise DataError(
                f"{path}: {size:,} bytes, and {index_path.name} refers to {index.size:,} "
                f"({index.size // index.dtype.itemsize:,} tokens of {index.dtype.name}): "
                f"{abs(size - index.size):,} too {'many' if size > index.size else 'few'}; one of "
                "them is truncated or belongs to another data set"
            )
        is_blocks = _are_blocks(index, reading.options.sequences)
        if is_blocks:
            tokens = f"{index.block_tokens:,} tokens each" if index.block_tokens else "any length"
            reading.on_notice(
                f"{path}: its {index.sequences:,} sequences have {tokens}: taken for blocks of one "
                "token stream, so no end-of-text is added to them; if each is a document, say so "
                "with --sequences document"
            )
        files = deque[IO[bytes]](stack.enter_context(part.open("rb")) for part in parts)
        name = f"{path}: {'block' if is_blocks else 'document'}"
        number = start = 0
        read_bytes = min(_READ_BYTES, reading.options.max_document_bytes)
        for ends in _groups(index, is_blocks, read_bytes):
            size = ends[-1] - start
            if len(ends) == 1:  # other groups are smaller than a document may be
                check_document_size(size, f"{name} {number + 1}", reading.options)
            values = np.frombuffer(_read(files, size, name), index.dtype)
            for ids, end in _divide(values, start, ends, name, number):
                number += 1
                yield Document(
                    ids, reading.bytes_before + end, f"{name} {number}", ends=not is_blocks
                )
            del values, ids
            start = ends[-1]


def _are_blocks(index: MegatronIndex, sequences: str) -> bool:
    """Returns whether sequences are blocks of a fixed length; the last one may be shorter."""
    if sequences != "auto":
        return sequences == "block"
    is_uniform = index.block_tokens is not None and index.block_tokens > 1
    return is_uniform and index.sequences > 2 and not index.joins_sequences


def _groups(index: MegatronIndex, is_blocks: bool, read_bytes: int) -> Iterator[list[int]]:
    """Yields the ends in the .bin of the next documents: of one, or of up to `read_bytes`."""
    start = 0
    for ends in index.sequence_ends() if is_blocks else index.document_ends():
        done = 0
        while done < len(ends):
            stop = max(done + 1, int(np.searchsorted(ends, start + read_bytes, "right")))
            yield ends[done:stop].tolist()
            start, done = int(ends[stop - 1]), stop


def _read(files: deque[IO[bytes]], size: int, name: str) -> bytes:
    """Returns the next bytes of files that are the parts of one."""
    data = files[0].read(size)
    while len(data) < size and len(files) > 1:
        files.popleft()
        data += files[0].read(size - len(data))
    if len(data) != size:
        raise DataError(f"{name}: truncated while it is in use")
    return data


def _divide(
    values: npt.NDArray[Any], start: int, ends: list[int], name: str, number: int
) -> Iterator[tuple[Tokens, int]]:
    """Yields the token ids of each document, and its end in the .bin.

    Args:
        values: the tokens of all these documents.
        start: the offset of the first of them in the .bin.
        ends: the end of each document in the .bin.
        name: what a document is called in an error message.
        number: how many documents there are before.
    """
    positions = [(end - start) // values.itemsize for end in (start, *ends)]
    try:
        all_ids = to_token_ids(values, name)
    except DataError:
        for (first, stop), end in zip(pairwise(positions), ends, strict=True):
            number += 1
            yield to_token_ids(values[first:stop], f"{name} {number}"), end
        raise
    for (first, stop), end in zip(pairwise(positions), ends, strict=True):
        yield all_ids[first:stop], end
