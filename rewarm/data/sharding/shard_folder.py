"""Writes the numbered shards of one folder, and records each that is finished.

The record of a finished shard is one line that is appended to finished.jsonl. It holds a digest of
all documents up to the shard's end, so that what a later command reads is known to be the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewarm.data.sample_layout import (
    END_OF_TAR,
    SAMPLE_TOKENS,
    Positions,
    check_in_vocabulary,
    encode_sample,
)
from rewarm.data.shard_format import ShardIndex, ShardInfo, TokenizerInfo
from rewarm.data.sharding.dataset_card import CARD, dataset_card
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import DataError
from rewarm.files import atomic_write

FINISHED = "finished.jsonl"


class InputChangedError(DataError):
    """The documents are other ones than those of the finished shards."""


class _FinishedShard(BaseModel):
    """One line of finished.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: ShardInfo
    content: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """sha256 over the digests of all documents of the folder, up to the end of this shard."""


class ShardWriter:
    """Writes documents into the numbered shards of one folder, and at the end its index."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        """Creates the folder, or continues after the shards that are finished in it.

        Args:
            folder: folder to write the shards to.
            tokenizer: tokenizer that the tokens come from, which is recorded in the index.
            shard_tokens: number of tokens after which a new shard is started.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._tokenizer = tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")
        self._shard_tokens = shard_tokens
        self._finished = read_finished(folder)
        if self._finished:  # without an incomplete last line, so that others can follow
            atomic_write(folder / FINISHED, "".join(map(_line, self._finished)))
        self.finished_documents = sum(record.shard.documents for record in self._finished)
        """Documents in the shards that an earlier command finished; they are not written again."""
        self.documents_read = 0
        """Documents given to `check_finished` and `write` so far."""
        self._content_at = self._contents_by_documents()
        self._content = hashlib.sha256()  # over the digests of all documents read
        self._tar: _TarFile | None = None
        self._text_bytes: int | None = 0  # of the shard that is being written; None of token ids
        self._reset_shard()
        self._reset_sample()

    def check_finished(self, digest: bytes) -> None:
        """Compares the next document with those in the finished shards; it is not written again.

        Args:
            digest: of its content.

        Raises:
            InputChangedError: these are other documents than when the shards were written.
        """
        self._content.update(digest)
        self.documents_read += 1
        expected = self._content_at.get(self.documents_read)
        if expected and expected != self._content.hexdigest():
            raise self._input_changed(f"up to document {self.documents_read:,}")

    def check_all_finished_read(self) -> None:
        """Checks that the input had all documents of the finished shards; call it at its end.

        Raises:
            InputChangedError: it had fewer.
        """
        if self.documents_read < self.finished_documents:
            raise self._input_changed(f"it ends after {self.documents_read:,}")

    def write(
        self,
        tokens: npt.NDArray[np.integer[Any]],
        ends: Positions,
        digests: Sequence[bytes],
        text_bytes: Sequence[int | None],
    ) -> None:
        """Adds documents.

        Args:
            tokens: their tokens, joined.
            ends: for each document, the number of tokens up to its end.
            digests: for each document, a digest of its content.
            text_bytes: for each document, the bytes of its text; None for token ids.

        Raises:
            DataError: a token is outside the tokenizer's vocabulary.
        """
        check_in_vocabulary(
            tokens, self._tokenizer.vocabulary, str(self.folder), advice="use its own tokenizer"
        )
        document = start = 0
        while document < len(ends):
            # Up to the document with which the sample or the shard is complete.
            capacity = min(SAMPLE_TOKENS - self._sample_tokens, self._shard_tokens - self._tokens)
            last = int(np.searchsorted(ends, start + capacity))
            next_document = min(last + 1, len(ends))
            group_ends = ends[document:next_document]
            end = int(group_ends[-1])
            self._content.update(b"".join(digests[document:next_document]))
            self._sample.append(tokens[start:end])
            self._sample_ends.append(group_ends - start + self._sample_tokens)
            self._sample_tokens += end - start
            self._tokens += end - start
            self._documents += len(group_ends)
            self._text_bytes = _sum_if_known(
                [self._text_bytes, *text_bytes[document:next_document]]
            )
            if self._sample_tokens >= SAMPLE_TOKENS:
                self._write_sample()
            if self._tokens >= self._shard_tokens:
                self._finish_shard()
            document, start = next_document, end
        self.documents_read += len(ends)

    def write_document(self, tokens: npt.NDArray[np.integer[Any]]) -> None:
        """Adds one document, of which no digest of the content is recorded."""
        self.write(tokens, np.array([len(tokens)]), [b""], [None])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._tar is not None:
            # After an error: this shard is not recorded; the next run writes it again.
            self._tar.close()

    def finish(self) -> ShardIndex:
        """Finishes the last shard, writes index.json and what is beside it; returns the index."""
        self._finish_shard()
        tokenizer_info = TokenizerInfo(
            digest=self._tokenizer.digest,
            vocabulary=self._tokenizer.vocabulary,
            eos=self._tokenizer.eos_token_id,
            eos_token=self._tokenizer.eos_token,
        )
        shards = [record.shard for record in self._finished]
        index = ShardIndex(tokenizer=tokenizer_info, dtype=self._dtype.name, shards=shards)
        atomic_write(self.folder / "tokenizer.json", self._tokenizer.encoder.to_str(pretty=True))
        atomic_write(self.folder / CARD, dataset_card({"train": "*.tar"}))
        atomic_write(self.folder / "index.json", index.to_json())
        return index

    def _contents_by_documents(self) -> dict[int, str]:
        """Returns the recorded digests, by the number of documents up to them."""
        contents, documents = {}, 0
        for record in self._finished:
            documents += record.shard.documents
            contents[documents] = record.content
        return contents

    def _input_changed(self, where: str) -> InputChangedError:
        return InputChangedError(
            f"{self.folder}: the input has changed since its first {len(self._finished):,} shards "
            f"were written ({self.finished_documents:,} documents; {where}); restore the input, "
            "or delete the folder to write all shards again"
        )

    def _reset_shard(self) -> None:
        self._documents = self._tokens = 0
        self._text_bytes = 0

    def _reset_sample(self) -> None:
        self._sample: list[npt.NDArray[np.integer[Any]]] = []
        self._sample_ends: list[Positions] = []
        self._sample_tokens = 0

    def _write_sample(self) -> None:
        number = len(self._finished)
        if self._tar is None:
            self._tar = _TarFile(self.folder / f"{number:05d}.tar")
        key = f"{number:05d}-{self._tar.samples:06d}"
        tokens = np.concatenate(self._sample).astype(self._dtype)
        self._tar.write_sample(encode_sample(key, tokens, np.concatenate(self._sample_ends)))
        self._reset_sample()

    def _finish_shard(self) -> None:
        if self._sample:
            self._write_sample()
        if self._tar is None:
            return
        size, sha256 = self._tar.finish()
        shard_info = ShardInfo(
            name=self._tar.path.name,
            documents=self._documents,
            tokens=self._tokens,
            bytes=size,
            sha256=sha256,
            text_bytes=self._text_bytes,
        )
        self._tar = None
        record = _FinishedShard(shard=shard_info, content=self._content.hexdigest())
        self._finished.append(record)
        self._reset_shard()
        # Not synced to the disk: a line that a power loss takes costs one shard, written again.
        with (self.folder / FINISHED).open("a", encoding="utf-8") as file:
            file.write(_line(record))


def _sum_if_known(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _line(record: _FinishedShard) -> str:
    return record.model_dump_json(exclude_none=True) + "\n"


class _TarFile:
    """The tar of one shard while it is written, and its size and sha256."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0
        self._file: IO[bytes] = path.open("wb")
        self._size = 0
        self._sha256 = hashlib.sha256()

    def write_sample(self, members: bytes) -> None:
        """Adds the members of a sample."""
        self._write(members)
        self.samples += 1

    def finish(self) -> tuple[int, str]:
        """Waits until the tar is on the disk; returns its size and its sha256."""
        self._write(END_OF_TAR)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return self._size, self._sha256.hexdigest()

    def close(self) -> None:
        """Closes the file, as it is."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)


def read_finished(folder: Path) -> list[_FinishedShard]:
    """Returns the records of the finished shards of a folder, up to the first incomplete one.

    A kill or a power loss may leave an incomplete last line.
    """
    path = folder / FINISHED
    finished: list[_FinishedShard] = []
    if not path.exists():
        return finished
    for line in path.read_bytes().splitlines():
        try:
            record = _FinishedShard.model_validate_json(line)
        except ValidationError:
            break
        tar = folder / record.shard.name
        if not tar.is_file() or tar.stat().st_size != record.shard.bytes:
            break
        finished.append(record)
    return finished
