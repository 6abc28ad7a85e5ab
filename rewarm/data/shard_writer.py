"""Writes texts as token shards: tokenized on all cores, in bounded memory, resumable after a kill.

```
 read_documents ──> batches ──> tokenizer (all cores) ──> train or val ──> 00000.tar, ...
```
Everything is written to DIR.partial, which is renamed to DIR when it is complete. Each finished tar
is recorded there in finished.json. After a kill, the same command reads the texts again, but only
tokenizes documents that are in no finished tar. The same input gives the same bytes, with or
without interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import ValidationError

from rewarm.data.document_readers import TextDocument, find_input_files, read_documents
from rewarm.data.prefetch import prefetch
from rewarm.data.shard_format import ShardIndex, ShardInfo, TokenizerInfo, Tokens
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import DataError
from rewarm.files import atomic_write, sync_to_disk

_BATCH_CHARACTERS = 4_000_000
_BATCH_DOCUMENTS = 4096
_FINISHED = "finished.json"
_JOB = "job.json"


class ShardingProgress(NamedTuple):
    """How far sharding has come."""

    documents: int
    """Documents read that are not empty."""
    tokens: int
    """Tokens written by this command, without those of an earlier command that was killed."""
    bytes_read: int
    """Bytes of the input files read so far."""
    empty_documents: int
    """Documents without content, which are left out."""
    finished_documents: int
    """Documents that an earlier run of the same command had already written."""


def write_shards(
    inputs: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    field: str = "text",
    shard_tokens: int = 16_000_000,
    validation: float = 0.0,
    progress: Callable[[ShardingProgress], None] = lambda _: None,
) -> dict[str, ShardIndex]:
    """Tokenizes texts into shards, and returns the index of each folder written, by name.

    `out` appears when everything is written. With a `validation` share, documents go to `out/val`
    or `out/train` by a hash of their content: the split does not depend on their order, and equal
    documents are on the same side. Without one, everything goes to `out`.

    Args:
        inputs: files, and folders of files.
        out: the folder to write; new or empty.
        tokenizer: to tokenize the texts with.
        field: the JSON field or table column that holds the text.
        shard_tokens: tokens after which a new tar begins.
        validation: the share of documents to hold out, from 0 to below 1.
        progress: called after each batch of documents.

    Raises:
        DataError: an input cannot be read, `out` is not empty, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: not empty; name another folder, or move this one away first")
    paths = find_input_files(inputs)
    partial = out.with_name(out.name + ".partial")
    job = {
        "inputs": [[str(path.absolute()), path.stat().st_size] for path in paths],
        "tokenizer": [tokenizer.digest, tokenizer.eos],
        "settings": [field, shard_tokens, validation],
    }
    try:
        _prepare_partial_folder(partial, job)
        documents = read_documents(paths, field)
        indices = _write_folders(partial, documents, tokenizer, shard_tokens, validation, progress)
        for name, index in indices.items():
            if not index.tokens:
                folder = f" for {out / name} (a larger --validation?)" if validation else ""
                raise DataError(f"{', '.join(map(str, inputs))}: no document left{folder}")
        _publish(partial, out)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)  # the input has to change, so none of it is kept
        raise
    except OSError as error:
        raise DataError(
            f"{partial}: cannot be written: {error.strerror}; when that is fixed, the same command "
            "continues after the last finished tar"
        ) from None
    return indices


def _prepare_partial_folder(partial: Path, job: dict[str, Any]) -> None:
    """Keeps what a killed run of the same command left, and deletes what another one left."""
    path = partial / _JOB
    if not path.is_file() or path.read_text(encoding="utf-8") != json.dumps(job):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        atomic_write(path, json.dumps(job))


def _publish(partial: Path, out: Path) -> None:
    """Renames the finished folder."""
    (partial / _JOB).unlink()
    if out.exists():
        out.rmdir()
    partial.rename(out)
    sync_to_disk(out.parent)


class ShardWriter:
    """Writes documents into numbered tars of one folder, and its index when it is finished."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        """Starts a folder, or continues after the finished tars of one.

        Args:
            folder: where the tars go.
            tokenizer: which made the tokens.
            shard_tokens: tokens after which a new tar begins.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._tokenizer = tokenizer
        self._dtype = np.dtype("uint16" if tokenizer.vocabulary <= 2**16 else "uint32")
        self._shard_tokens = shard_tokens
        self._shards = self._read_finished()
        self.finished_documents = sum(shard.documents for shard in self._shards)
        """Documents that the finished tars hold, in order; they are not written again."""
        self._tar: Any = None
        self._documents = self._tokens = 0  # of the tar being written

    def write(self, tokens: Tokens) -> None:
        """Adds one document; its last token is end-of-text."""
        import webdataset  # imports torch, which `--help` should not wait for

        if self._tar is None:
            # A fixed mtime, so that the same text always gives the same bytes.
            path = str(self.folder / self._tar_name())
            self._tar = webdataset.TarWriter(path, mtime=0, user="", group="", mode=0o644)
        key = f"{len(self._shards):05d}-{self._documents:06d}"
        self._tar.write({"__key__": key, "npy": tokens.astype(self._dtype.newbyteorder("<"))})
        self._documents += 1
        self._tokens += len(tokens)
        if self._tokens >= self._shard_tokens:
            self._finish_tar()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._tar is not None:  # after an error: this tar is not recorded, and written again
            self._tar.close()

    def finish(self) -> ShardIndex:
        """Finishes the last tar, and writes index.json and tokenizer.json."""
        self._finish_tar()
        tokenizer_info = TokenizerInfo(
            digest=self._tokenizer.digest,
            vocabulary=self._tokenizer.vocabulary,
            eos=self._tokenizer.eos,
            eos_token=self._tokenizer.eos_token,
        )
        index = ShardIndex(tokenizer=tokenizer_info, dtype=self._dtype.name, shards=self._shards)
        atomic_write(self.folder / "tokenizer.json", self._tokenizer.encoder.to_str(pretty=True))
        atomic_write(self.folder / "index.json", index.model_dump_json(indent=1) + "\n")
        (self.folder / _FINISHED).unlink(missing_ok=True)
        return index

    def _tar_name(self) -> str:
        return f"{len(self._shards):05d}.tar"

    def _read_finished(self) -> list[ShardInfo]:
        path = self.folder / _FINISHED
        try:
            shards = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            return [ShardInfo.model_validate(shard) for shard in shards]
        except (ValueError, ValidationError):
            return []

    def _finish_tar(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        path = self.folder / self._tar_name()
        sync_to_disk(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard_info = ShardInfo(
            name=path.name,
            documents=self._documents,
            tokens=self._tokens,
            bytes=path.stat().st_size,
            sha256=digest,
        )
        self._shards.append(shard_info)
        self._documents = self._tokens = 0
        finished = json.dumps([shard.model_dump() for shard in self._shards])
        atomic_write(self.folder / _FINISHED, finished)


def _write_folders(
    partial: Path,
    documents: Iterator[TextDocument],
    tokenizer: Tokenizer,
    shard_tokens: int,
    validation: float,
    progress: Callable[[ShardingProgress], None],
) -> dict[str, ShardIndex]:
    """Writes all documents and returns the index of each folder, by name."""
    names = ("train", "val") if validation else (".",)
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(partial / name, tokenizer, shard_tokens))
            for name in names
        }
        _write_documents(documents, writers, tokenizer, validation, progress)
        return {name: writer.finish() for name, writer in writers.items()}


def _write_documents(
    documents: Iterator[TextDocument],
    writers: dict[str, ShardWriter],
    tokenizer: Tokenizer,
    validation: float,
    progress: Callable[[ShardingProgress], None],
) -> None:
    """Tokenizes documents and writes those that are in no finished tar, batch by batch."""
    read = Counter[str]()  # documents per folder
    tokens = empty = 0
    # One thread reads and unpacks the next batch while this one is tokenized.
    for batch in prefetch(_batches(documents), depth=2):
        filled = [document for document in batch if len(document.content)]
        empty += len(batch) - len(filled)
        unwritten = []
        for document in filled:
            name = _folder_of(document, validation)
            read[name] += 1
            if read[name] > writers[name].finished_documents:
                unwritten.append((writers[name], document))
        encoded = _tokenize([document for _, document in unwritten], tokenizer)
        for (writer, _), ids in zip(unwritten, encoded, strict=True):
            writer.write(ids)
            tokens += len(ids)
        finished = sum(
            min(read[name], writer.finished_documents) for name, writer in writers.items()
        )
        progress(ShardingProgress(read.total(), tokens, batch[-1].bytes_read, empty, finished))


def _folder_of(document: TextDocument, validation: float) -> str:
    """Returns the name of the folder that a document goes to."""
    if not validation:
        return "."
    return "val" if _uniform_hash(document) < validation else "train"


def _tokenize(documents: list[TextDocument], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Yields the ids of each document, end-of-text last; the tokenizer library uses all cores."""
    texts = [document.content for document in documents if isinstance(document.content, str)]
    encodings = iter(tokenizer.encoder.encode_batch_fast(texts, add_special_tokens=False))
    for document in documents:
        if isinstance(document.content, str):
            yield np.array([*next(encodings).ids, tokenizer.eos], dtype=np.uint32)
        elif document.content[-1] == tokenizer.eos:
            yield document.content
        else:
            yield np.append(document.content, np.array(tokenizer.eos, document.content.dtype))


def _batches(documents: Iterator[TextDocument]) -> Iterator[list[TextDocument]]:
    """Yields documents in lists of about `_BATCH_CHARACTERS`, which bounds the memory."""
    batch: list[TextDocument] = []
    left = _BATCH_CHARACTERS
    for document in documents:
        batch.append(document)
        left -= len(document.content)
        if left <= 0 or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, left = [], _BATCH_CHARACTERS
    if batch:
        yield batch


def _uniform_hash(document: TextDocument) -> float:
    """Returns a number in [0, 1) that depends on the content alone."""
    content = document.content
    data = content.encode() if isinstance(content, str) else content.astype("<u4").tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
