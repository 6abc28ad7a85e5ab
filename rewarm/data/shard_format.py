"""Token shards: WebDataset tars of .npy documents, and the index.json that describes them.

```
DIR/index.json      documents, tokens, bytes, sha256 of each shard; tokenizer, dtype
DIR/tokenizer.json  the tokenizer that the shards were written with
DIR/00000.tar       00000-000000.npy, 00000-000001.npy, ...: one document each, end-of-text last
```
`webdataset.WebDataset("DIR/{00000..00007}.tar").decode()` can read them too. rewarm maps each tar
into memory and reads the arrays without a copy.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewarm.errors import DataError
from rewarm.safe_loading import first_validation_error, read_limited

Tokens = npt.NDArray[np.unsignedinteger[Any]]
_Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
MAX_INDEX_BYTES = 256_000_000
"""Upper bound on the size of an index, or of the tokenizer beside it."""

_TAR_BLOCK = 512  # bytes; a tar consists of such blocks
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


class Shard:
    """One shard, mapped into memory: `shard[i]` is document i, without a copy."""

    def __init__(
        self, folder: Path, shard_info: ShardInfo, dtype: str, *, verify: bool = True
    ) -> None:
        """Maps the shard into memory and locates its documents.

        Args:
            folder: folder that contains the shard.
            shard_info: entry of the shard in the index.
            dtype: NumPy dtype of the token arrays.
            verify: compare the sha256 with the index, which reads the whole file once.

        Raises:
            DataError: the shard is missing, or differs from the index.
        """
        self.path = folder / shard_info.name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise self._error("missing") from None
        except (OSError, ValueError) as error:  # mmap refuses an empty file with a ValueError
            raise self._error(f"cannot be read: {error}") from None
        if len(self._map) != shard_info.bytes:
            raise self._error(
                f"{len(self._map):,} bytes long, and the index says {shard_info.bytes:,}"
            )
        if verify and hashlib.sha256(self._map).hexdigest() != shard_info.sha256:
            raise self._error("changed since it was written (its sha256 differs from the index)")
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
        start, length = int(self._starts[document]), int(self.lengths[document])
        return np.frombuffer(self._map, self._dtype, length, start)

    def _error(self, problem: str) -> DataError:
        return DataError(
            f"{self.path}: {problem}; copy this shard again, or write the folder again with "
            "`rewarm shard`"
        )

    def _members(self) -> Iterator[tuple[int, int]]:
        """Yields (offset of the array, number of tokens) of each document, from the tar headers.

        Members that are not regular files are refused: links, devices, long-name records.
        """
        data, offset = self._map, 0
        while offset + _TAR_BLOCK <= len(data) and data[offset] != 0:
            header = data[offset : offset + _TAR_BLOCK]
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
            yield self._locate_array(name, offset, size)
            offset += -(-size // _TAR_BLOCK) * _TAR_BLOCK
        if offset + _TAR_BLOCK > len(data):
            raise self._error("truncated: the end of the tar is missing")

    def _locate_array(self, name: str, offset: int, size: int) -> tuple[int, int]:
        """Returns (offset of the array, number of tokens) of a .npy file of `size` bytes."""
        data, file_end = self._map, offset + size
        header_end = offset + 10 + int.from_bytes(data[offset + 8 : offset + 10], "little")
        match = _NPY.fullmatch(data[offset + 10 : min(header_end, file_end)])
        if not name.endswith(".npy") or data[offset : offset + 8] != b"\x93NUMPY\1\0" or not match:
            raise self._error(f"member {name!r} is not a one-dimensional .npy array of tokens")
        if match[1].decode() != self._dtype.str[1:]:
            raise self._error(f"member {name!r} holds {match[1].decode()}, not {self._dtype.name}")
        length = int(match[2])
        if not length or header_end + length * self._dtype.itemsize != file_end:
            raise self._error(
                f"member {name!r} does not hold the {length} tokens that its header states"
            )
        return header_end, length
