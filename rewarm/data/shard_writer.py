"""Texts in, token shards out: tokenized on all cores, in bounded memory, resumed after a kill.

```
 texts.documents ──> batches ──> tokenizer (all cores) ──> train or val ──> 00000.tar, ...
```
Everything is written beside the folder asked for, as DIR.partial, and renamed when whole. Each tar
that is finished is noted there; the same command, started again after a kill, reads the texts again
but tokenizes only what is not in a finished tar. Same input, same bytes, whatever happened between.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import ValidationError

from rewarm.data.document_readers import TextDocument, find_input_files, read_documents
from rewarm.data.shard_format import ShardIndex, ShardInfo, TokenizerInfo, Tokens
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import DataError

Item = TypeVar("Item")
_BATCH = 4_000_000  # characters that are tokenized at once
_NOTES = "finished.json"


class ShardingProgress(NamedTuple):
    """How far sharding has come."""

    documents: int
    tokens: int
    """Tokens written by this command; what an earlier one wrote before a kill is not among them."""
    read: int
    """Bytes of the input files behind it."""
    empty: int
    """Documents without content, which are left out."""
    finished: int
    """Documents that an earlier start of the same command had already written."""


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

    Nothing appears under `out` before everything is written. With a `validation` share, documents
    go to `out/val` or `out/train` by a hash of their content, so the split does not depend on
    order, and a document never stands on both sides; else everything goes to `out`.

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
        _same_job(partial, job)
        names = ("train", "val") if validation else (".",)
        with contextlib.ExitStack() as stack:
            writers = {
                name: stack.enter_context(ShardWriter(partial / name, tokenizer, shard_tokens))
                for name in names
            }
            _write(writers, paths, tokenizer, field, validation, progress)
            indices = {name: writer.finish() for name, writer in writers.items()}
        for name, index in indices.items():
            if not index.tokens:
                where = f" for {out / name} (a larger --validation?)" if validation else ""
                raise DataError(f"{', '.join(map(str, inputs))}: no document left{where}")
        (partial / "job.json").unlink()
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)  # the input will change, so nothing here will do
        raise
    except OSError as error:
        raise DataError(
            f"{partial}: cannot be written: {error.strerror}; when that is mended, the same "
            "command goes on where it stopped"
        ) from None
    return indices


def _same_job(partial: Path, job: dict[str, Any]) -> None:
    """Keeps what a killed command left of the very same job, and clears what another left."""
    path = partial / "job.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != json.dumps(job):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        path.write_text(json.dumps(job), encoding="utf-8")


class ShardWriter:
    """Writes documents into numbered tars of one folder, and its index when it is finished."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        """Starts a folder, or goes on behind the finished tars of one.

        Args:
            folder: where the tars go.
            tokenizer: which made the tokens.
            shard_tokens: a new tar begins after so many.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._tokenizer = tokenizer
        self._dtype = np.dtype("uint16" if tokenizer.vocabulary <= 2**16 else "uint32")
        self._shard_tokens = shard_tokens
        self._shards = self._finished()
        self.finished = sum(shard.documents for shard in self._shards)
        """Documents that need not be written again: those of the finished tars, in order."""
        self._sink: Any = None
        self._documents = self._tokens = 0

    def write(self, tokens: Tokens) -> None:
        """Adds one document; its last token is end-of-text."""
        import webdataset  # it imports torch, for which `--help` should not wait

        if self._sink is None:
            # A fixed mtime, so that the same text always gives the same bytes.
            path = str(self.folder / self._name())
            self._sink = webdataset.TarWriter(path, mtime=0, user="", group="", mode=0o644)
        key = f"{len(self._shards):05d}-{self._documents:06d}"
        self._sink.write({"__key__": key, "npy": tokens.astype(self._dtype.newbyteorder("<"))})
        self._documents += 1
        self._tokens += len(tokens)
        if self._tokens >= self._shard_tokens:
            self._finish_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._sink is not None:  # an error: the tar begun is not noted, and written again
            self._sink.close()

    def finish(self) -> ShardIndex:
        """Finishes the last tar, and writes index.json and tokenizer.json."""
        self._finish_shard()
        told = self._tokenizer
        facts = TokenizerInfo(
            digest=told.digest, vocabulary=told.vocabulary, eos=told.eos, eos_token=told.eos_token
        )
        index = ShardIndex(tokenizer=facts, dtype=self._dtype.name, shards=self._shards)
        told.encoder.save(str(self.folder / "tokenizer.json"))
        (self.folder / "index.json").write_text(index.model_dump_json(indent=1) + "\n")
        (self.folder / _NOTES).unlink(missing_ok=True)
        return index

    def _name(self) -> str:
        return f"{len(self._shards):05d}.tar"

    def _finished(self) -> list[ShardInfo]:
        path = self.folder / _NOTES
        try:
            notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            return [ShardInfo.model_validate(one) for one in notes]
        except (ValueError, ValidationError):
            return []

    def _finish_shard(self) -> None:
        if self._sink is None:
            return
        self._sink.close()
        self._sink = None
        path = self.folder / self._name()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        facts = ShardInfo(
            name=path.name,
            documents=self._documents,
            tokens=self._tokens,
            bytes=path.stat().st_size,
            sha256=digest,
        )
        self._shards.append(facts)
        self._documents = self._tokens = 0
        notes = self.folder / f"{_NOTES}.new"
        notes.write_text(json.dumps([shard.model_dump() for shard in self._shards]))
        notes.rename(self.folder / _NOTES)


def _write(
    writers: dict[str, ShardWriter],
    paths: list[Path],
    tokenizer: Tokenizer,
    field: str,
    validation: float,
    progress: Callable[[ShardingProgress], None],
) -> None:
    met = dict.fromkeys(writers, 0)
    documents = tokens = empty = 0
    # One thread reads and unpacks the next batch while this one is tokenized.
    for batch in prefetch(_batches(read_documents(paths, field)), depth=2):
        wanted: list[tuple[str, TextDocument]] = []
        for one in batch:
            if not len(one.content):
                empty += 1
                continue
            name = "val" if validation and _uniform(one) < validation else next(iter(writers))
            met[name] += 1
            if met[name] > writers[name].finished:
                wanted.append((name, one))
        encoded = _tokens([one for _, one in wanted], tokenizer)
        for (name, _), ids in zip(wanted, encoded, strict=True):
            writers[name].write(ids)
            tokens += len(ids)
        documents = sum(met.values())
        finished = sum(min(met[name], writer.finished) for name, writer in writers.items())
        progress(ShardingProgress(documents, tokens, batch[-1].read, empty, finished))


def _tokens(documents: list[TextDocument], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Yields the ids of each document, end-of-text last; the tokenizer uses all cores by itself."""
    said = [one.content for one in documents if isinstance(one.content, str)]
    encoded = iter(tokenizer.encoder.encode_batch_fast(said, add_special_tokens=False))
    for one in documents:
        if isinstance(one.content, str):
            yield np.array([*next(encoded).ids, tokenizer.eos], dtype=np.uint32)
        elif one.content[-1] == tokenizer.eos:
            yield one.content
        else:
            yield np.append(one.content, np.array(tokenizer.eos, one.content.dtype))


def _batches(documents: Iterator[TextDocument]) -> Iterator[list[TextDocument]]:
    """Yields documents in lists of about `_BATCH` characters, which bounds the memory."""
    batch: list[TextDocument] = []
    left = _BATCH
    for one in documents:
        batch.append(one)
        left -= len(one.content)
        if left <= 0 or len(batch) == 4096:
            yield batch
            batch, left = [], _BATCH
    if batch:
        yield batch


def _uniform(document: TextDocument) -> float:
    """Returns a number in [0, 1) that depends on the content alone."""
    content = document.content
    said = content.encode() if isinstance(content, str) else content.astype("<u4").tobytes()
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") / 2**64


def prefetch(items: Iterator[Item], depth: int = 4) -> Generator[Item]:
    """Yields the same items, made ahead of time by one thread; an error is raised in its turn."""
    ready: queue.Queue[Future[Item] | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: Future[Item] | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                made = Future[Item]()
                made.set_result(item)
                if not put(made):
                    return
        except BaseException as error:
            failed = Future[Item]()
            failed.set_exception(error)
            put(failed)
        else:
            put(None)

    thread = threading.Thread(target=work, name="rewarm-prefetch", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            yield entry.result()
    finally:
        stop.set()
        thread.join()
