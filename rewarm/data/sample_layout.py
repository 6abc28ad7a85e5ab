"""How the documents of one shard are stored in its tar: many in each WebDataset sample.

```
00000-000000.npy       the tokens of several whole documents, joined
00000-000000.ends.npy  one bit for each of these tokens, 1 at the last token of a document
00000-000001.npy       ...
```
So documents take 2 1/8 bytes per token of 16 bits, however short they are, and the tar's headers
are shared by `SAMPLE_TOKENS` tokens. The documents of a sample are
`np.split(tokens, np.flatnonzero(np.unpackbits(ends))[:-1] + 1)`. A sample without `.ends.npy` is
one document, as all were in the format `rewarm-shards/1`.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rewarm.errors import DataError

SAMPLE_TOKENS = 65_536
"""Number of tokens after which a new sample is started. A longer document is one sample."""

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Positions = npt.NDArray[np.int64]

END_OF_TAR = bytes(1024)
_TAR_BLOCK = 512  # bytes; a tar consists of such blocks
_TOKENS, _ENDS = ".npy", ".ends.npy"
_NPY = re.compile(
    rb"\{'descr': '(<u2|<u4|\|u1)', 'fortran_order': False, 'shape': \((\d{1,15}),\), \}\s*",
    re.DOTALL,
)


def check_in_vocabulary(
    tokens: npt.NDArray[np.integer[Any]],
    vocabulary: int,
    location: str,
    *,
    first: int = 0,
    advice: str = "the shard is damaged: write the folder again with `rewarm shard`",
) -> None:
    """Checks that token ids are below the tokenizer's highest id + 1.

    Args:
        tokens: the token ids.
        vocabulary: the highest id + 1.
        location: where they are, for the error message.
        first: position there of the first of them.
        advice: what to try, for the error message.

    Raises:
        DataError: an id is outside the vocabulary; names the first one and its position.
    """
    if not len(tokens) or (tokens.max() < vocabulary and tokens.min() >= 0):
        return
    i = int(np.argmax((tokens >= vocabulary) | (tokens < 0)))
    raise DataError(
        f"{location}: token {tokens[i]} at position {first + i:,} is outside the tokenizer's "
        f"vocabulary of {vocabulary:,}; {advice}"
    )


def encode_sample(key: str, tokens: Tokens, ends: Positions) -> bytes:
    """Returns the tar members of one sample.

    Args:
        key: name of the sample, which no other one in the tar has.
        tokens: the tokens of its documents, joined; in the byte order in which they are stored.
        ends: for each document, the number of tokens up to its end.
    """
    is_end = np.zeros(len(tokens), dtype=bool)
    is_end[ends - 1] = True
    return _member(key + _TOKENS, tokens) + _member(key + _ENDS, np.packbits(is_end))


def _member(name: str, array: npt.NDArray[Any]) -> bytes:
    """Returns an array as a file in a tar; the same array always gives the same bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0))
    member = tarfile.TarInfo(name)  # its time, owner and mode are fixed
    member.size = buffer.tell()
    padding = bytes(-member.size % _TAR_BLOCK)
    return member.tobuf(tarfile.USTAR_FORMAT) + buffer.getvalue() + padding


class SampleTable(NamedTuple):
    """Where the samples of one tar are, in their stored order."""

    offsets: Positions
    """For each sample, the byte at which its tokens start."""
    cumulative_tokens: Positions
    """For each sample, the tokens in those before it; at the end, the tokens in all."""
    packed_ends: list[bytes | None]
    """For each sample, the content of its `.ends.npy`; None for one document."""

    @property
    def tokens(self) -> int:
        """Tokens in all samples."""
        return int(self.cumulative_tokens[-1])

    @property
    def documents(self) -> int:
        """Documents in all samples."""
        return sum(
            1 if packed is None else int.from_bytes(packed).bit_count()
            for packed in self.packed_ends
        )

    def document_ends(self, sample: int) -> Positions:
        """Returns, for each document of a sample, the number of its tokens up to its end."""
        packed = self.packed_ends[sample]
        if packed is None:
            first, end = self.cumulative_tokens[sample : sample + 2]
            return np.array([end - first], dtype=np.int64)
        return np.flatnonzero(np.unpackbits(np.frombuffer(packed, dtype=np.uint8))) + 1


def locate_samples(
    read: Callable[[int, int], bytes],
    size: int,
    dtype: np.dtype[Any],
    error: Callable[[str], DataError],
) -> SampleTable:
    """Returns where the samples of a tar are, from its headers.

    Members that are not regular files are refused: links, devices, long-name records.

    Args:
        read: returns the bytes of the tar from an offset on, by their number.
        size: size of the tar.
        dtype: of the tokens.
        error: returns the error of a tar with a problem.

    Raises:
        DataError: the tar is damaged, or has other members.
    """
    offsets, lengths = list[int](), list[int]()
    packed_ends: list[bytes | None] = []
    key = None  # of the sample whose ends may follow
    for name, member_offset, data, member_size in _members(read, size, error):
        array = _parse_npy(name, data, member_size, error)
        if name.endswith(_ENDS):
            if key != name.removesuffix(_ENDS) or array.dtype != "|u1":
                raise error(f"member {name!r} does not follow the tokens whose ends it marks")
            packed = read(member_offset + array.offset, array.length)
            if not _marks_ends(packed, lengths[-1]):
                raise error(f"member {name!r} does not mark the ends of {lengths[-1]:,} tokens")
            packed_ends[-1], key = packed, None
            continue
        if np.dtype(array.dtype) != dtype:
            raise error(f"member {name!r} holds {array.dtype[1:]}, not {dtype.name}")
        offsets.append(member_offset + array.offset)
        lengths.append(array.length)
        packed_ends.append(None)
        key = name.removesuffix(_TOKENS)
    cumulative = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))])
    return SampleTable(np.array(offsets, np.int64), cumulative.astype(np.int64), packed_ends)


def _marks_ends(packed: bytes, tokens: int) -> bool:
    """Returns whether there is a bit for each token, and the last 1 is that of the last token."""
    if len(packed) != -(-tokens // 8):
        return False
    last_bit = packed[-1] & -packed[-1]
    return last_bit == 1 << (-tokens % 8)


def _members(
    read: Callable[[int, int], bytes], size: int, error: Callable[[str], DataError]
) -> Iterator[tuple[str, int, bytes, int]]:
    """Yields the name, the offset, the first bytes and the size of each file in the tar."""
    offset = 0
    while offset + _TAR_BLOCK <= size:
        # The header of the member, and the beginning of its data: that of the .npy file.
        data = read(offset, min(2 * _TAR_BLOCK, size - offset))
        header = data[:_TAR_BLOCK]
        if header[0] == 0:
            return
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
            raise error(f"entry {name!r} at byte {offset:,} is not a plain tar member")
        try:
            member_size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            raise error(f"entry {name!r} at byte {offset:,} has a damaged header") from None
        offset += _TAR_BLOCK
        if offset + member_size > size:
            break
        yield name, offset, data[_TAR_BLOCK:], member_size
        offset += -(-member_size // _TAR_BLOCK) * _TAR_BLOCK
    raise error("truncated: the end of the tar is missing")


class _NpyArray(NamedTuple):
    """A one-dimensional array in a .npy file."""

    dtype: str
    length: int
    offset: int
    """In the file, in bytes."""


def _parse_npy(name: str, data: bytes, size: int, error: Callable[[str], DataError]) -> _NpyArray:
    """Returns what the header of a .npy file states.

    Args:
        name: its name, for error messages.
        data: its first bytes, in which NumPy's header of one dimension fits.
        size: its size.
        error: returns the error of a tar with a problem.
    """
    header_size = 10 + int.from_bytes(data[8:10], "little")
    match = _NPY.fullmatch(data[10 : min(header_size, size)])
    if not name.endswith(_TOKENS) or data[:8] != b"\x93NUMPY\1\0" or not match:
        raise error(f"member {name!r} is not a one-dimensional .npy array of tokens")
    array = _NpyArray(match[1].decode(), int(match[2]), header_size)
    if not array.length or header_size + array.length * np.dtype(array.dtype).itemsize != size:
        raise error(
            f"member {name!r} does not hold the {array.length} tokens that its header states"
        )
    return array
