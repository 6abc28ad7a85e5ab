"""Token shards: WebDataset tars of .npy documents, and the index.json that vouches for them.

```
DIR/index.json      documents, tokens, bytes, sha256 of each shard; tokenizer, dtype
DIR/tokenizer.json  the tokenizer, so that a folder of shards is complete
DIR/00000.tar       00000-000000.npy, 00000-000001.npy, ...: one document each, end-of-text last
```
`webdataset.WebDataset("DIR/{00000..00007}.tar").decode()` reads them like any others. The stream
reads the arrays' bytes in place instead, through a memory map.
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
from rewarm.safe_loading import first_problem, read_bytes

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Whole = Annotated[int, Field(strict=True, ge=0, le=2**53)]
MAX_INDEX_BYTES = 256_000_000
"""The most that an index, or a tokenizer beside it, may be."""

_BLOCK = 512  # tar's unit
_NPY = re.compile(
    rb"\{'descr': '<(u2|u4)', 'fortran_order': False, 'shape': \((\d{1,15}),\), \}\s*", re.DOTALL
)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerInfo(_Document):
    """What shards, bases and checkpoints must agree on."""

    digest: str
    vocabulary: Annotated[int, Field(strict=True, gt=0, le=2**32)]
    eos: Whole
    eos_token: str


class ShardInfo(_Document):
    """One tar, as it was written."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.tar$")]
    documents: Whole
    tokens: Whole
    bytes: Whole
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardIndex(_Document):
    """index.json: the tars of one folder, in their stored order."""

    format: Literal["rewarm-shards/1"] = "rewarm-shards/1"
    tokenizer: TokenizerInfo
    dtype: Literal["uint16", "uint32"]
    shards: list[ShardInfo]

    @model_validator(mode="after")
    def _fits(self) -> ShardIndex:
        width = 2 if self.dtype == "uint16" else 4
        for one in self.shards:
            if one.tokens * width > one.bytes:
                raise ValueError(
                    f"{one.name}: {one.tokens:,} tokens of {width} bytes in {one.bytes:,} bytes"
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

    def blocks(self, context: int) -> list[int]:
        """Returns how many blocks of context + 1 tokens, sharing one, each shard gives."""
        return [max(0, shard.tokens - 1) // context for shard in self.shards]

    def digest(self) -> str:
        """Returns one sha256 for everything that the folder holds."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_shard_index(folder: Path) -> ShardIndex:
    """Returns a shard folder's index.

    Raises:
        DataError: the folder or its index is missing, damaged, or empty.
    """
    path = folder / "index.json"
    try:
        index = parse_shard_index(read_bytes(path, MAX_INDEX_BYTES), str(path))
        strangers = {tar.name for tar in folder.glob("*.tar")} - {s.name for s in index.shards}
        if strangers:
            raise DataError(
                f"{path}: out of date: {min(strangers)} is in the folder, and not in it; take "
                "it away, or write the folder again with `rewarm shard`"
            )
        return index
    except (FileNotFoundError, NotADirectoryError):
        what = "no index.json in this folder" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}; wanted one that `rewarm shard` wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def parse_shard_index(data: bytes, source: str) -> ShardIndex:
    """Returns the index in the bytes of an index.json; `source` is the name that errors show.

    Raises:
        DataError: it is damaged, or empty.
    """
    try:
        index = ShardIndex.model_validate_json(data)
    except ValidationError as error:
        raise DataError(
            f"{source}: not an index of shards: {first_problem(error)}; write the shards again "
            "with `rewarm shard`"
        ) from None
    if not index.tokens:
        raise DataError(f"{source}: empty: it names no documents")
    return index


class Shard:
    """One tar, mapped into memory: `shard[i]` is document i, without a copy."""

    def __init__(self, folder: Path, facts: ShardInfo, dtype: str, *, check: bool = True) -> None:
        """Maps the tar and finds its documents.

        Args:
            folder: where the tar is.
            facts: what the index says of it.
            dtype: of its arrays.
            check: compare its sha256 with the index's, which reads all of it once.

        Raises:
            DataError: it is missing, or not what the index says.
        """
        self.path = folder / facts.name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise self._bad("missing") from None
        except (OSError, ValueError) as error:  # mmap refuses an empty file with a ValueError
            raise self._bad(f"cannot be read: {error}") from None
        if len(self._map) != facts.bytes:
            raise self._bad(f"{len(self._map):,} bytes long, and the index says {facts.bytes:,}")
        if check and hashlib.sha256(self._map).hexdigest() != facts.sha256:
            raise self._bad("changed since it was written (its sha256 is not the index's)")
        found = np.array(list(self._members()), dtype=np.int64).reshape(-1, 2)
        self._starts, self.lengths = found[:, 0], found[:, 1]
        documents, tokens = len(self.lengths), int(self.lengths.sum())
        if (documents, tokens) != (facts.documents, facts.tokens):
            raise self._bad(
                f"{documents:,} documents of {tokens:,} tokens, and the index says "
                f"{facts.documents:,} of {facts.tokens:,}"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[document] for document in range(len(self)))

    def __getitem__(self, document: int) -> Tokens:
        start, length = int(self._starts[document]), int(self.lengths[document])
        return np.frombuffer(self._map, self._dtype, length, start)

    def _bad(self, what: str) -> DataError:
        return DataError(
            f"{self.path}: {what}; copy this shard again, or write the folder again with "
            "`rewarm shard`"
        )

    def _members(self) -> Iterator[tuple[int, int]]:
        """Yields (first byte, tokens) of each document, straight from the tar headers.

        Only regular files are taken: links, devices and long-name records are refused.
        """
        data, at = self._map, 0
        while at + _BLOCK <= len(data) and data[at] != 0:
            header = data[at : at + _BLOCK]
            name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
            if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
                raise self._bad(f"entry {name!r} at byte {at:,} is not a plain tar member")
            try:
                size = int(header[124:136].rstrip(b"\0 "), 8)
            except ValueError:
                raise self._bad(f"entry {name!r} at byte {at:,} has a damaged header") from None
            at += _BLOCK
            yield self._array(name, at, size)
            at += -(-size // _BLOCK) * _BLOCK
        if at + _BLOCK > len(data):
            raise self._bad("cut off: the tar's end is missing")

    def _array(self, name: str, at: int, size: int) -> tuple[int, int]:
        header_end = at + 10 + int.from_bytes(self._map[at + 8 : at + 10], "little")
        match = _NPY.fullmatch(self._map[at + 10 : min(header_end, at + size)])
        if not name.endswith(".npy") or self._map[at : at + 8] != b"\x93NUMPY\1\0" or not match:
            raise self._bad(f"member {name!r} is not a one-dimensional .npy array of tokens")
        if match[1].decode() != self._dtype.str[1:]:
            raise self._bad(f"member {name!r} holds {match[1].decode()}, not {self._dtype.name}")
        length = int(match[2])
        if not length or header_end + length * self._dtype.itemsize != at + size:
            raise self._bad(f"member {name!r} does not hold the {length} tokens that it says")
        return header_end, length
