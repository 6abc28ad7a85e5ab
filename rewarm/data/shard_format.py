"""Token shards: WebDataset tars of token arrays, and the index.json that describes them.

```
DIR/index.json      documents, tokens, bytes, sha256, bytes of text of each shard; tokenizer, dtype
DIR/tokenizer.json  the tokenizer that the shards were written with
DIR/README.md       a dataset card, by which `datasets.load_dataset("DIR")` finds the tars
DIR/00000.tar       samples of several documents each, end-of-text last: see sample_layout.py
```
`webdataset.WebDataset("DIR/{00000..00007}.tar").decode()` can read them too. rewarm locates the
arrays in each tar once, and then reads only the tokens that it needs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from rewarm import open_files
from rewarm.data.sample_layout import Positions, Tokens, locate_samples
from rewarm.errors import DataError
from rewarm.files import FileStamp
from rewarm.once_per_node import has_sha256
from rewarm.path_contents import describe_path
from rewarm.safe_loading import first_validation_error, read_limited

_Count = Annotated[int, Strict(), Interval(ge=0, le=2**53)]
MAX_INDEX_BYTES = 256_000_000
"""Upper bound on the size of an index, or of the tokenizer beside it."""

_CHUNK = 1 << 20  # bytes that are read at once to compute a sha256


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
    text_bytes: _Count | None = None
    """Bytes, in UTF-8, of the texts of its documents; None if it was written from token ids, or by
    an earlier version."""


class ShardIndex(_FrozenModel):
    """index.json: the shards of one folder, in their stored order."""

    format: Literal["rewarm-shards/1", "rewarm-shards/2"] = "rewarm-shards/2"
    """In 1, each sample is one document, and there is no README.md."""
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

    @property
    def text_bytes(self) -> int | None:
        """Bytes, in UTF-8, of the texts of all documents; None if those of a shard are unknown."""
        counts = [shard.text_bytes for shard in self.shards]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def shard_blocks(self, context: int) -> list[int]:
        """Returns the number of blocks of context + 1 tokens in each shard.

        Neighboring blocks share one token.
        """
        return [max(0, shard.tokens - 1) // context for shard in self.shards]

    def digest(self) -> str:
        """Returns the sha256 of the index, which contains those of all shards.

        Without the bytes of text: an index of an earlier version, of the same shards, has none.
        """
        content = self.model_dump_json(exclude={"shards": {"__all__": {"text_bytes"}}})
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the content of index.json."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


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
        contents = describe_path(folder, "shards")
        is_text = folder.is_file() and folder.suffix != ".tar"
        remedy = f"; write one: rewarm shard {folder} --out DIR --tokenizer T" if is_text else ""
        raise DataError(
            f"{folder}: {contents.what}; expected a folder that `rewarm shard` wrote (index.json)"
            f"{remedy}{contents.instead}"
        ) from None
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
    """One shard, kept open: iterates over its documents, and `read` returns a part of one.

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
        """Opens the shard and locates its samples.

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
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._descriptor = self._open() if cached is None else cached
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.stamp = self._check_stamp(verified)
        self._samples = locate_samples(self._bytes, shard_info.bytes, self.dtype, self._error)
        documents, tokens = self._samples.documents, self._samples.tokens
        if (documents, tokens) != (shard_info.documents, shard_info.tokens):
            raise self._error(
                f"{documents:,} documents of {tokens:,} tokens, and the index says "
                f"{shard_info.documents:,} of {shard_info.tokens:,}"
            )

    def __len__(self) -> int:
        return self._info.documents

    def __iter__(self) -> Iterator[Tokens]:
        for i, tokens in enumerate(self.joined_documents()):
            start = 0
            for end in self._samples.document_ends(i).tolist():
                yield tokens[start:end]
                start = end

    def joined_documents(self) -> Iterator[Tokens]:
        """Yields the tokens of all documents in their stored order, those of a sample at a time.

        Raises:
            DataError: the shard cannot be read, or was written to and differs from the index.
        """
        lengths = np.diff(self._samples.cumulative_tokens)
        for offset, length in zip(self._samples.offsets.tolist(), lengths.tolist(), strict=True):
            tokens = self.read([offset], [length])
            self.check_unchanged()
            yield tokens

    def document_ends(self) -> Positions:
        """Returns, for each document in its stored order, the shard's tokens up to its end.

        They are computed anew, and take 8 bytes for each document.
        """
        samples = self._samples
        if len(samples.offsets) == len(self):  # each sample is one document
            return samples.cumulative_tokens[1:]
        return np.concatenate(
            [
                samples.document_ends(i) + start
                for i, start in enumerate(samples.cumulative_tokens[:-1].tolist())
            ]
        )

    def offsets(self, positions: Positions) -> Positions:
        """Returns the bytes of the tar at which tokens are, given their positions in the shard."""
        samples = self._samples
        sample = np.searchsorted(samples.cumulative_tokens, positions, side="right") - 1
        in_sample = positions - samples.cumulative_tokens[sample]
        return samples.offsets[sample] + in_sample * self.dtype.itemsize

    def read(self, offsets: Iterable[int], counts: Iterable[int]) -> Tokens:
        """Returns parts of the tar, joined: `count` tokens that start at the byte `offset` of each.

        Call `check_unchanged` before the tokens are used.

        Raises:
            DataError: the shard cannot be read.
        """
        width = self.dtype.itemsize
        parts = zip(offsets, counts, strict=True)
        data = b"".join([self._bytes(offset, count * width) for offset, count in parts])
        return np.frombuffer(data, self.dtype)

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
        parts, missing = list[bytes](), count
        while missing:  # a read may return less than was asked for
            try:
                parts.append(os.pread(self._descriptor, missing, offset + count - missing))
            except OSError as error:
                raise self._unreadable(error) from None
            if not parts[-1]:
                end = offset + count - missing
                raise self._error(f"truncated while it is in use: it ends at byte {end:,}")
            missing -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

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
