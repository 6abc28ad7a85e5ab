"""Writes texts as token shards, using all cores and bounded memory; can resume after a kill.

```
 read_documents ──> batches ──> tokenizer (all cores) ──> train or val ──> 00000.tar, ...
```
All files are written to DIR.partial, which is renamed to DIR when it is complete. Each finished
shard is recorded there in finished.json. After a kill, the same command reads the texts again, but
tokenizes only the documents that are in no finished shard. The same input gives the same bytes,
with or without interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import ValidationError

from rewarm.data.document_readers import (
    ReadOptions,
    SkippedInput,
    TextDocument,
    find_input_files,
    read_documents,
    refuse_record,
)
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
    """Counts of what was read and written so far."""

    documents: int
    """Non-empty documents read."""
    tokens: int
    """Tokens written by this command, not counting those of an earlier command that was killed."""
    bytes_read: int
    """Bytes of the input files read."""
    empty_documents: int
    """Documents without content, which are left out."""
    finished_documents: int
    """Documents that the same command had already written before it was killed."""


def write_shards(
    inputs: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    field: str = "text",
    shard_tokens: int = 16_000_000,
    validation: float = 0.0,
    split: str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - immutable
    on_bad_record: Callable[[SkippedInput], None] = refuse_record,
    on_skipped: Callable[[SkippedInput], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[ShardingProgress], None] = lambda _: None,
) -> dict[str, ShardIndex]:
    """Tokenizes texts into shards, and returns the index of each folder written, by name.

    `out` is created only when all files are complete. With a `validation` share, each document goes
    to `out/val` or `out/train` by a hash of its content: the split does not depend on the order of
    the documents, and equal documents go to the same folder. Without one, all go to `out` itself.

    Args:
        inputs: files, and folders of files, that contain the texts.
        out: the folder to write; new or empty.
        tokenizer: the tokenizer to use.
        field: the JSON field or table column that holds the text.
        shard_tokens: number of tokens after which a new shard is started.
        validation: the share of documents to hold out, from 0 to below 1.
        split: as of `find_input_files`.
        options: as of `read_documents`, as the next three.
        on_bad_record: called with each record that holds no text.
        on_skipped: called with each file, and each member of an archive, that is not read.
        on_notice: called with what a user should know about how a file is read.
        progress: function called after each batch of documents.

    Raises:
        DataError: an input cannot be read, `out` is not empty, or `out` cannot be written.
    """
    if "://" in str(out) or re.match(
        r"[a-z0-9]+:/[^/]", str(out)
    ):  # a Path has one / of a URL's two
        raise DataError(
            f"{out}: should be a folder on this machine; copy it to a storage afterwards"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: not empty; name another folder, or move this one first")
    paths, skipped = find_input_files(inputs, split=split)
    for skipped_input in skipped:
        on_skipped(skipped_input)
    partial = out.with_name(out.name + ".partial")
    job = {
        "inputs": [[str(path.absolute()), path.stat().st_size] for path in paths],
        "tokenizer": [tokenizer.digest, tokenizer.eos_token_id],
        "settings": [field, shard_tokens, validation, *options],
    }
    try:
        _prepare_partial_folder(partial, job)
        documents = read_documents(
            paths,
            field,
            on_bad_record=on_bad_record,
            on_skipped=on_skipped,
            on_notice=on_notice,
            options=options,
        )
        indices = _write_folders(partial, documents, tokenizer, shard_tokens, validation, progress)
        for name, index in indices.items():
            if not index.tokens:
                folder = f" for {out / name} (a larger --validation?)" if validation else ""
                raise DataError(f"{', '.join(map(str, inputs))}: no document left{folder}")
        _publish(partial, out)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)  # of no use: the input has to change
        raise
    except OSError as error:
        raise DataError(
            f"{partial}: cannot be written: {error.strerror}; when that is fixed, the same command "
            "continues after the last finished shard"
        ) from None
    return indices


def _prepare_partial_folder(partial: Path, job: dict[str, Any]) -> None:
    """Keeps the files of a killed run of the same command; deletes those of another command."""
    path = partial / _JOB
    if not path.is_file() or path.read_text(encoding="utf-8") != json.dumps(job):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        atomic_write(path, json.dumps(job))


def _publish(partial: Path, out: Path) -> None:
    """Renames the complete folder to `out`."""
    (partial / _JOB).unlink()
    if out.exists():
        out.rmdir()
    partial.rename(out)
    sync_to_disk(out.parent)


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
        self._dtype = np.dtype("uint16" if tokenizer.vocabulary <= 2**16 else "uint32")
        self._shard_tokens = shard_tokens
        self._shards = self._read_finished()
        self.finished_documents = sum(shard.documents for shard in self._shards)
        """Number of documents in the finished shards; the caller does not write these again."""
        self._tar: Any = None
        self._documents = self._tokens = 0  # in the shard being written

    def write(self, tokens: Tokens) -> None:
        """Adds one document; its last token is end-of-text."""
        import webdataset  # imports torch, which would slow down `--help`

        if self._tar is None:
            # A fixed mtime, so that the same text always gives the same bytes.
            # An open file: webdataset would run a path that looks like a command (`pipe:...`).
            self._file = (self.folder / self._file_name()).open("wb")
            self._tar = webdataset.TarWriter(self._file, mtime=0, user="", group="", mode=0o644)
        key = f"{len(self._shards):05d}-{self._documents:06d}"
        self._tar.write({"__key__": key, "npy": tokens.astype(self._dtype.newbyteorder("<"))})
        self._documents += 1
        self._tokens += len(tokens)
        if self._tokens >= self._shard_tokens:
            self._finish_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._tar is not None:
            # After an error: this shard is not recorded; the next run writes it again.
            self._close_tar()

    def finish(self) -> ShardIndex:
        """Finishes the last shard, writes index.json and tokenizer.json, and returns the index."""
        self._finish_shard()
        tokenizer_info = TokenizerInfo(
            digest=self._tokenizer.digest,
            vocabulary=self._tokenizer.vocabulary,
            eos=self._tokenizer.eos_token_id,
            eos_token=self._tokenizer.eos_token,
        )
        index = ShardIndex(tokenizer=tokenizer_info, dtype=self._dtype.name, shards=self._shards)
        atomic_write(self.folder / "tokenizer.json", self._tokenizer.encoder.to_str(pretty=True))
        atomic_write(self.folder / "index.json", index.model_dump_json(indent=1) + "\n")
        (self.folder / _FINISHED).unlink(missing_ok=True)
        return index

    def _file_name(self) -> str:
        return f"{len(self._shards):05d}.tar"

    def _read_finished(self) -> list[ShardInfo]:
        path = self.folder / _FINISHED
        try:
            shards = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            return [ShardInfo.model_validate(shard) for shard in shards]
        except (ValueError, ValidationError):
            return []

    def _close_tar(self) -> None:
        self._tar.close()
        self._file.close()
        self._tar = None

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._close_tar()
        path = self.folder / self._file_name()
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
    """Tokenizes and writes the documents that are in no finished shard, batch by batch."""
    documents_read = Counter[str]()  # per folder
    tokens = empty_documents = 0
    # A thread reads and decompresses the next batch while this one is tokenized.
    for batch in prefetch(_batches(documents), depth=2):
        nonempty = [document for document in batch if len(document.content)]
        empty_documents += len(batch) - len(nonempty)
        unwritten = []
        for document in nonempty:
            name = _folder_for(document, validation)
            documents_read[name] += 1
            if documents_read[name] > writers[name].finished_documents:
                unwritten.append((writers[name], document))
        token_ids = _tokenize([document for _, document in unwritten], tokenizer)
        for (writer, _), ids in zip(unwritten, token_ids, strict=True):
            writer.write(ids)
            tokens += len(ids)
        progress(
            ShardingProgress(
                documents=documents_read.total(),
                tokens=tokens,
                bytes_read=batch[-1].bytes_read,
                empty_documents=empty_documents,
                finished_documents=sum(
                    min(documents_read[name], writer.finished_documents)
                    for name, writer in writers.items()
                ),
            )
        )


def _folder_for(document: TextDocument, validation: float) -> str:
    """Returns the name of the folder that a document goes to."""
    if not validation:
        return "."
    return "val" if _uniform_hash(document) < validation else "train"


def _tokenize(documents: list[TextDocument], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Yields each document's token ids, ending with end-of-text; the library uses all cores."""
    texts = [document.content for document in documents if isinstance(document.content, str)]
    encodings = iter(tokenizer.encoder.encode_batch_fast(texts, add_special_tokens=False))
    for document in documents:
        if isinstance(document.content, str):
            yield np.array([*next(encodings).ids, tokenizer.eos_token_id], dtype=np.uint32)
        elif not document.ends or document.content[-1] == tokenizer.eos_token_id:
            yield document.content
        else:
            end_of_text = np.array(tokenizer.eos_token_id, document.content.dtype)
            yield np.append(document.content, end_of_text)


def _batches(documents: Iterator[TextDocument]) -> Iterator[list[TextDocument]]:
    """Yields the documents in batches of about `_BATCH_CHARACTERS`, to limit memory use."""
    batch: list[TextDocument] = []
    remaining = _BATCH_CHARACTERS
    for document in documents:
        batch.append(document)
        remaining -= len(document.content)
        if remaining <= 0 or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, remaining = [], _BATCH_CHARACTERS
    if batch:
        yield batch


def _uniform_hash(document: TextDocument) -> float:
    """Returns a number in [0, 1) that depends only on the content."""
    content = document.content
    data = content.encode() if isinstance(content, str) else content.astype("<u4").tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
