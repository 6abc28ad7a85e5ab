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
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewarm import texts
from rewarm.errors import DataError

if TYPE_CHECKING:
    from rewarm.tokenizer import Tokenizer

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Whole = Annotated[int, Field(strict=True, ge=0)]

_BLOCK = 512  # tar's unit
_NPY = re.compile(
    rb"\{'descr': '<(u2|u4)', 'fortran_order': False, 'shape': \((\d+),\), \}\s*", re.DOTALL
)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerFacts(_Document):
    """What shards, bases and checkpoints must agree on."""

    digest: str
    vocabulary: Annotated[int, Field(strict=True, gt=0, le=2**32)]
    eos: Whole
    eos_token: str


class ShardFacts(_Document):
    """One tar, as it was written."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.tar$")]
    documents: Whole
    tokens: Whole
    bytes: Whole
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Index(_Document):
    """index.json: the tars of one folder, in their stored order."""

    format: Literal["rewarm-shards/1"] = "rewarm-shards/1"
    tokenizer: TokenizerFacts
    dtype: Literal["uint16", "uint32"]
    shards: list[ShardFacts]

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens in all shards, end-of-text included."""
        return sum(shard.tokens for shard in self.shards)

    def digest(self) -> str:
        """Returns one sha256 for everything that the folder holds."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_index(folder: Path) -> Index:
    """Returns a shard folder's index.

    Raises:
        DataError: the folder or its index is missing, damaged, or empty.
    """
    path = folder / "index.json"
    try:
        index = Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        what = "no index.json in this folder" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}; wanted one that `rewarm shard` wrote") from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: not an index of shards: {at + ': ' if at else ''}{first['msg']}; "
            "write the shards again with `rewarm shard`"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not index.tokens:
        raise DataError(f"{folder}: empty: its index names no documents")
    return index


class Shard:
    """One tar, mapped into memory: `shard[i]` is document i, without a copy."""

    def __init__(self, folder: Path, facts: ShardFacts, dtype: str, *, check: bool = True) -> None:
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


class ShardWriter:
    """Writes documents into numbered tars of one folder, and the index when it is closed."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        """Starts a folder that does not exist yet; a new tar begins after `shard_tokens`."""
        folder.mkdir(parents=True)
        self.folder = folder
        self._tokenizer = tokenizer
        self.dtype = np.dtype("uint16" if tokenizer.vocabulary <= 2**16 else "uint32")
        self._shard_tokens = shard_tokens
        self._shards: list[ShardFacts] = []
        self._sink: Any = None
        self._documents = self._tokens = 0

    def write(self, tokens: Tokens) -> None:
        """Adds one document; its last token is end-of-text."""
        import webdataset  # it imports torch, which reading an index must not wait for

        if self._sink is None:
            path = self.folder / f"{len(self._shards):05d}.tar"
            # A fixed mtime, so that the same text always gives the same bytes.
            self._sink = webdataset.TarWriter(str(path), mtime=0, user="", group="", mode=0o644)
        key = f"{len(self._shards):05d}-{self._documents:06d}"
        self._sink.write({"__key__": key, "npy": tokens.astype(self.dtype.newbyteorder("<"))})
        self._documents += 1
        self._tokens += len(tokens)
        if self._tokens >= self._shard_tokens:
            self._finish_shard()

    def close(self) -> Index:
        """Finishes the last tar, and writes index.json and tokenizer.json."""
        self._finish_shard()
        told = self._tokenizer
        index = Index(
            tokenizer=TokenizerFacts(
                digest=told.digest,
                vocabulary=told.vocabulary,
                eos=told.eos,
                eos_token=told.eos_token,
            ),
            dtype=self.dtype.name,
            shards=self._shards,
        )
        told.encoder.save(str(self.folder / "tokenizer.json"))
        (self.folder / "index.json").write_text(index.model_dump_json(indent=1) + "\n")
        return index

    def _finish_shard(self) -> None:
        if self._sink is None:
            return
        self._sink.close()
        self._sink = None
        path = self.folder / f"{len(self._shards):05d}.tar"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._shards.append(
            ShardFacts(
                name=path.name,
                documents=self._documents,
                tokens=self._tokens,
                bytes=path.stat().st_size,
                sha256=digest,
            )
        )
        self._documents = self._tokens = 0


class Sharded(NamedTuple):
    """How far sharding has come."""

    documents: int
    tokens: int
    read: int
    """Bytes of the input files behind it."""
    empty: int
    """Texts without a character, which become no document."""


def shard(
    inputs: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    field: str = "text",
    shard_tokens: int = 16_000_000,
    validation: float = 0.0,
    progress: Callable[[Sharded], None] = lambda _: None,
) -> dict[str, Index]:
    """Tokenizes texts into shards, and returns the index of each folder written, by name.

    Nothing appears under `out` before everything is written. With a `validation` share, documents
    go to `out/val` or `out/train` by a hash of their content, so the split does not depend on
    order, and a document never stands on both sides; else everything goes to `out`.

    Raises:
        DataError: an input cannot be read, `out` is not empty, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: not empty; name another folder, or move this one away first")
    paths = texts.files(inputs)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    names = ("train", "val") if validation else (".",)
    try:
        try:
            writers = {name: ShardWriter(partial / name, tokenizer, shard_tokens) for name in names}
            _write(writers, paths, tokenizer, field, validation, progress)
            indices = {name: writer.close() for name, writer in writers.items()}
            for name, index in indices.items():
                if not index.tokens:
                    where = f" for {out / name} (a larger --validation?)" if validation else ""
                    raise DataError(f"{', '.join(map(str, inputs))}: no document left{where}")
            if out.exists():
                out.rmdir()
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from None
    return indices


def _write(
    writers: dict[str, ShardWriter],
    paths: list[Path],
    tokenizer: Tokenizer,
    field: str,
    validation: float,
    progress: Callable[[Sharded], None],
) -> None:
    stream = texts.documents(paths, field)
    documents = tokens = empty = 0
    while batch := list(_about(stream, 4_000_000)):
        kept = [one.text for one in batch if one.text]
        empty += len(batch) - len(kept)
        # The tokenizer spreads a batch over all cores by itself.
        encoded = tokenizer.encoder.encode_batch_fast(kept, add_special_tokens=False)
        for text, encoding in zip(kept, encoded, strict=True):
            ids = np.array([*encoding.ids, tokenizer.eos], dtype=np.uint32)
            held_out = validation and _uniform(text) < validation
            writers["val" if held_out else next(iter(writers))].write(ids)
            documents += 1
            tokens += len(ids)
        progress(Sharded(documents, tokens, batch[-1].read, empty))


def _about(stream: Iterator[texts.Text], characters: int) -> Iterator[texts.Text]:
    """Yields documents until about so many characters, so that a batch bounds the memory."""
    for one in islice(stream, 4096):
        yield one
        characters -= len(one.text)
        if characters <= 0:
            return


def _uniform(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
