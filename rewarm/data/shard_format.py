"""Token shards: WebDataset tars of .npy documents, and the index.json that describes them.

```
DIR/index.json      documents, tokens, bytes, sha256 of each shard; tokenizer, dtype
DIR/tokenizer.json  the tokenizer that the shards were written with
DIR/00000.tar       00000-000000.npy, 00000-000001.npy, ...: one document each, end-of-text last
```
`webdataset.WebDataset("DIR/{00000..00007}.tar").decode()` can read them too. rewarm locates the
arrays in each tar once, and then reads only the tokens that it needs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Interval
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from rewarm import open_files
from rewarm.errors import DataError
from rewarm.files import FileStamp
from rewarm.once_per_node import has_sha256
from rewarm.safe_loading import first_validation_error, read_limited

Tokens = npt.NDArray[np.unsignedinteger[Any]]
_Count = Annotated[int, Strict(), Interval(ge=0, le=2**53)]
MAX_INDEX_BYTES = 256_000_000
"""Upper bound on the size of an index, or of the tokenizer beside it."""

_TAR_BLOCK = 512  # bytes; a tar consists of such blocks
_CHUNK = 1 << 20  # bytes that are read at once to compute a sha256
_NPY = re.compile(
    rb"\{'descr': '<(u2|u4)', 'fortran_order': False, 'shape': \((\d{1,15}),\), \}\s*", re.DOTALL
)


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerInfo(_FrozenModel):
    """The tokenizer that shards were written with; it must be the same as the model's."""

    digest: str
    vocabulary: Annotated[int, Field(strict=True, gt=0, le=2**32)]
    eos: _Count
    eos_token: str


class ShardInfo(_FrozenModel):
    """Name, counts, size and sha256 of one shard."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.tar$")]
    documents: _Count
    tokens: _Count
    bytes: _Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardIndex(_FrozenModel):
    """index.json: the shards of one folder, in their stored order."""

    format: Literal["rewarm-shards/1"] = "rewarm-shards/1"
    tokenizer: TokenizerInfo
    dtype: Literal["uint16", "uint32"]
    shards: list[ShardInfo]

    @model_validator(mode="after")
    def _check_sizes(self) -> ShardIndex:
        width = 2 if self.dtype == "uint16" else 4
        for shard in self.shards:
            if shard.tokens * width > shard.bytes:
                raise ValueError(
                    f"{shard.name}: {shard.tokens:,} tokens of {width} bytes in "
                    f"{shard.bytes:,} bytes"
                )
        return self

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens in all shards, end-of-text included."""
        return sum(shard.tokens for shard in self.shards)

    def shard_blocks(self, context: int) -> list[int]:
        """Returns the number of blocks of context + 1 tokens in each shard.

        Neighboring blocks share one token.
        """
        return [max(0, shard.tokens - 1) // context for shard in self.shards]

    def digest(self) -> str:
        """Returns the sha256 of the index, which contains those of all shards."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_shard_index(folder: Path) -> ShardIndex:
    """Returns the index of a shard folder.

    Raises:
        DataError: the folder or its index is missing, or the index is damaged, empty or out of
            date.
    """
    path = folder / "index.json"
    try:
        index = parse_shard_index(read_limited(path, MAX_INDEX_BYTES), str(path))
        unlisted = {tar.name for tar in folder.glob("*.tar")} - {s.name for s in index.shards}
        if unlisted:
            raise DataError(
                f"{path}: out of date: {min(unlisted)} is in the folder, and not in the index; "
                "remove it, or write the folder again with `rewarm shard`"
            )
        return index
    except (FileNotFoundError, NotADirectoryError):
        problem = "no index.json in this folder" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {problem}; expected one that `rewarm shard` wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def parse_shard_index(data: bytes, source: str) -> ShardIndex:
    """Returns the index that is stored in an index.json.

    Args:
        data: content of the file.
        source: path or URL of the file, for error messages.

    Raises:
        DataError: the index is damaged, or lists no documents.
    """
    try:
        index = ShardIndex.model_validate_json(data)
    except ValidationError as error:
        raise DataError(
            f"{source}: not an index of shards: {first_validation_error(error)}; write the "
            "shards again with `rewarm shard`"
        ) from None
    if not index.tokens:
        raise DataError(f"{source}: empty: it lists no documents")
    return index


def unusable_shard(path: Path, problem: str) -> DataError:
    """Returns the error of a shard that cannot be used."""
    return DataError(
        f"{path}: {problem}; copy this shard again, or write the folder again with `rewarm shard`"
    )


class Shard:
    """One shard, kept open: `shard[i]` is document i, and `read` returns a part of one.

    The file is read, not mapped into memory: reading a mapped file that was truncated, or whose
    disk fails, kills the process (SIGBUS), and an error of a read can be reported.
    """

    def __init__(
        self,
        folder: Path,
        shard_info: ShardInfo,
        dtype: str,
        *,
        verify: bool = True,
        verified: FileStamp | None = None,
        cached: int | None = None,
    ) -> None:
        """Opens the shard and locates its documents.

        Args:
            folder: folder that contains the shard.
            shard_info: entry of the shard in the index.
            dtype: NumPy dtype of the token arrays.
            verify: compare the sha256 with the index, which reads the whole file once (in one of
                the processes of a launch on this node).
            verified: the stamp of the file when its sha256 was last compared; it is not read again
                while the stamp is the same.
            cached: descriptor of the shard's copy in the download cache, which the shard closes;
                None to open the file in `folder`.

        Raises:
            DataError: the shard is missing, or differs from the index.
        """
        self.path = folder / shard_info.name
        self._is_cached = cached is not None
        self._info = shard_info
        self._verify = verify
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._descriptor = self._open() if cached is None else cached
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.stamp = self._check_stamp(verified)
        members = np.array(list(self._members()), dtype=np.int64).reshape(-1, 2)
        self._starts, self.lengths = members[:, 0], members[:, 1]
        documents, tokens = len(self.lengths), int(self.lengths.sum())
        if (documents, tokens) != (shard_info.documents, shard_info.tokens):
            raise self._error(
                f"{documents:,} documents of {tokens:,} tokens, and the index says "
                f"{shard_info.documents:,} of {shard_info.tokens:,}"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[document] for document in range(len(self)))

    def __getitem__(self, document: int) -> Tokens:
        tokens = self.read(document, 0, int(self.lengths[document]))
        self.check_unchanged()
        return tokens

    def read(self, document: int, first: int, count: int) -> Tokens:
        """Returns up to `count` tokens of a document, from its zero-based token `first` on.

        Call `check_unchanged` before the tokens are used.

        Raises:
            DataError: the shard cannot be read.
        """
        width = self._dtype.itemsize
        count = min(count, int(self.lengths[document]) - first)
        data = self._bytes(int(self._starts[document]) + first * width, count * width)
        return np.frombuffer(data, self._dtype)

    def check_unchanged(self) -> None:
        """Makes sure that what was read so far is what the index describes.

        Raises:
            DataError: the file was written to since it was opened, and differs from the index.
        """
        status = os.fstat(self._descriptor)
        if status.st_size != self.stamp.size or status.st_mtime_ns != self.stamp.modified_ns:
            self.stamp = self._check_stamp(None)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._error("missing") from None
        except OSError as error:
            raise self._unreadable(error) from None

    def _bytes(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes of the file."""
        data = b""
        while len(data) < count:  # a read may return less than was asked for
            try:
                part = os.pread(self._descriptor, count - len(data), offset + len(data))
            except OSError as error:
                raise self._unreadable(error) from None
            if not part:
                end = offset + len(data)
                raise self._error(f"truncated while it is in use: it ends at byte {end:,}")
            data += part
        return data

    def _check_stamp(self, verified: FileStamp | None) -> FileStamp:
        """Returns the file's stamp; if it is another one, compares the file with the index."""
        stamp = FileStamp.of(os.fstat(self._descriptor))
        if stamp == verified:
            return stamp
        if stamp.size != self._info.bytes:
            raise self._error(f"{stamp.size:,} bytes long, and the index says {self._info.bytes:,}")
        if self._verify and not has_sha256(stamp, self._info.sha256, self._sha256):
            raise self._error("changed since it was written (its sha256 differs from the index)")
        return stamp

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for offset in range(0, self._info.bytes, _CHUNK):
            digest.update(self._bytes(offset, min(_CHUNK, self._info.bytes - offset)))
        return digest.hexdigest()

    def _unreadable(self, error: OSError) -> DataError:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            open_files.release_reserve()  # what was reached is saved after this error
        return self._error(f"cannot be read: {error.strerror}")

    def _error(self, problem: str) -> DataError:
        if self._is_cached:
            return DataError(
                f"{self.path}: {problem} (a copy in the download cache; a run that opens it "
                "downloads it again)"
            )
        return unusable_shard(self.path, problem)

    def _members(self) -> Iterator[tuple[int, int]]:
        """Yields (offset of the array, number of tokens) of each document, from the tar headers.

        Members that are not regular files are refused: links, devices, long-name records.
        """
        size_of_tar, offset = self._info.bytes, 0
        while offset + _TAR_BLOCK <= size_of_tar:
            # The header of the member, and the beginning of its data: that of the .npy file.
            data = self._bytes(offset, min(2 * _TAR_BLOCK, size_of_tar - offset))
            header = data[:_TAR_BLOCK]
            if header[0] == 0:
                return
            name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
            if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
                raise self._error(f"entry {name!r} at byte {offset:,} is not a plain tar member")
            try:
                size = int(header[124:136].rstrip(b"\0 "), 8)
            except ValueError:
                raise self._error(
                    f"entry {name!r} at byte {offset:,} has a damaged header"
                ) from None
            offset += _TAR_BLOCK
            yield self._locate_array(name, data[_TAR_BLOCK:], offset, size)
            offset += -(-size // _TAR_BLOCK) * _TAR_BLOCK
        raise self._error("truncated: the end of the tar is missing")

    def _locate_array(self, name: str, data: bytes, offset: int, size: int) -> tuple[int, int]:
        """Returns (offset of the array, number of tokens) of a .npy file of `size` bytes.

        Args:
            name: its name, for error messages.
            data: its first bytes, in which NumPy's header of one dimension fits.
            offset: its offset in the tar.
            size: its size.
        """
        header_size = 10 + int.from_bytes(data[8:10], "little")
        match = _NPY.fullmatch(data[10 : min(header_size, size)])
        if not name.endswith(".npy") or data[:8] != b"\x93NUMPY\1\0" or not match:
            raise self._error(f"member {name!r} is not a one-dimensional .npy array of tokens")
        if match[1].decode() != self._dtype.str[1:]:
            raise self._error(f"member {name!r} holds {match[1].decode()}, not {self._dtype.name}")
        length = int(match[2])
        if not length or header_size + length * self._dtype.itemsize != size:
            raise self._error(
                f"member {name!r} does not hold the {length} tokens that its header states"
            )
        return offset + header_size, length
