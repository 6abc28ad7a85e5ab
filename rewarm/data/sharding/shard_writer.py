"""Writes texts as token shards, using all cores and bounded memory; can resume after a kill.

```
 read_documents ──> batches ──> tokenizer (all cores) ──> train or val ──> 00000.tar, ...
```
All files are written to DIR.partial, which is renamed to DIR when it is complete. Each finished
shard is recorded there. After a kill or an error in the input, the same command reads the texts
again, makes sure that they are still those of the finished shards, and tokenizes only what is in
none of them. The same input gives the same bytes, with or without interruptions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from rewarm.data.inputs.document_readers import (
    DEFAULT_OPTIONS,
    Document,
    ReadOptions,
    SkippedInput,
    find_input_files,
    read_documents,
    refuse_record,
)
from rewarm.data.prefetch import prefetch
from rewarm.data.shard_format import ShardIndex
from rewarm.data.sharding.bad_records import BadRecordsFile
from rewarm.data.sharding.dataset_card import CARD, dataset_card
from rewarm.data.sharding.shard_folder import ShardWriter
from rewarm.data.sharding.shard_job import JobSettings, ShardJob
from rewarm.data.sharding.tokenize_documents import (
    DocumentBatch,
    DocumentTokenizer,
    TokenizedBatch,
    batches_with_digests,
    map_ahead,
)
from rewarm.data.sharding.validation_split import SplitInputChangedError, ValidationSplit
from rewarm.data.tokenizer import Tokenizer, document_digest
from rewarm.errors import DataError
from rewarm.files import atomic_write

SHARD_TOKENS = 16_000_000
"""Tokens after which a new shard is started, by default."""


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
    special_tokens: int = 0
    """How often the texts contain a special token, such as `<|endoftext|>`; encoded as text."""
    end_of_text_tokens: int = 0
    """How often that was not possible, so that the text contains an end-of-text token."""
    removed_files: int = 0
    """Files of the killed command that were unfinished, and were removed."""


def write_shards(
    inputs: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    validation: float = 0.0,
    split: str | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    on_bad_record: Callable[[SkippedInput], None] = refuse_record,
    on_skipped: Callable[[SkippedInput], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
    on_left_out: Callable[[str], None] = lambda _: None,
    progress: Callable[[ShardingProgress], None] = lambda _: None,
) -> dict[str, ShardIndex]:
    """Tokenizes texts into shards, and returns the index of each folder written, by name.

    `out` is created only when all files are complete. With a `validation` share, each document goes
    to `out/val` or `out/train` by a hash of its content: the split does not depend on the order of
    the documents, and equal documents go to the same folder. Each folder gets at least one if there
    are two different documents. Without a share, all go to `out` itself.

    Args:
        inputs: files, and folders of files, that contain the texts.
        out: the folder to write; new or empty.
        tokenizer: the tokenizer to use.
        field: the JSON field or table column that holds the text.
        shard_tokens: number of tokens after which a new shard is started.
        validation: the share of documents to hold out, from 0 to below 1.
        split: as of `find_input_files`.
        options: as of `read_documents`, as `on_skipped` and `on_notice`.
        on_bad_record: called with each record that holds no text; if it returns, the record is
            listed in `out`/skipped-records.jsonl.
        on_skipped: called with each file, and each member of an archive, that is not read.
        on_notice: called with what a user should know about how a file is read.
        on_left_out: called with the field and value of each document that `where` leaves out.
        progress: function called after each batch of documents.

    Raises:
        DataError: an input cannot be read, or has changed since an earlier command wrote its first
            shards; `out` is not empty, cannot be written, or another process is writing it. Shards
            that are finished stay for the next command.
    """
    _check_name(out)
    settings = JobSettings(
        tokenizer=document_digest(tokenizer.encoder),
        eos=tokenizer.eos_token_id,
        shard_tokens=shard_tokens,
        validation=validation,
        where=options.where,
    )
    try:
        job = ShardJob(out, settings)
    except OSError as error:
        raise _unwritable(out.with_name(out.name + ".partial"), error) from None
    with job, BadRecordsFile(job.folder, on_bad_record) as bad_records:
        try:
            paths, skipped = find_input_files(inputs, split=split)
            own_folder = job.folder.resolve()
            for skipped_input in skipped:
                if Path(skipped_input.location).resolve() != own_folder:
                    on_skipped(skipped_input)
            paths = [path for path in paths if own_folder not in path.resolve().parents]

            readings = count()

            def read() -> Iterator[Document]:
                bad_records.restart()
                is_first = next(readings) == 0
                return read_documents(
                    paths,
                    field,
                    on_bad_record=bad_records.add,
                    on_skipped=on_skipped,
                    on_notice=on_notice,
                    on_left_out=on_left_out if is_first else lambda _: None,
                    options=options,
                )

            indices = _write_folders(
                job, read, tokenizer, options, shard_tokens, validation, on_notice, progress
            )
            bad_records.finish()
            job.publish()
        except DataError as error:
            raise _with_finished_shards(error, job) from None
        except OSError as error:
            raise _with_finished_shards(_unwritable(job.folder, error), job) from None
    return indices


def _check_name(out: Path) -> None:
    if "://" in str(out) or re.match(
        r"[a-z0-9]+:/[^/]", str(out)
    ):  # a Path has one / of a URL's two
        raise DataError(
            f"{out}: should be a folder on this machine; copy it to a storage afterwards"
        )
    if out.name in ("", ".."):
        raise DataError(
            f"{out}: name a folder in it; while shards are written, they are in a folder beside it"
        )


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: cannot be written: {error.strerror}; free disk space, or check the permissions"
    )


def _with_finished_shards(error: DataError, job: ShardJob) -> DataError:
    """Returns the error with what is kept; removes the folder if it has no finished shard."""
    finished = job.finished_shards
    if not finished:
        with contextlib.suppress(OSError):  # which may be the error
            job.remove()
        return error
    error.args = (
        f"{error}; the {finished:,} finished shards in {job.folder} are kept: the same command "
        "continues after them",
    )
    return error


def _write_folders(
    job: ShardJob,
    read: Callable[[], Iterator[Document]],
    tokenizer: Tokenizer,
    options: ReadOptions,
    shard_tokens: int,
    validation: float,
    on_notice: Callable[[str], None],
    progress: Callable[[ShardingProgress], None],
) -> dict[str, ShardIndex]:
    """Writes all documents and returns the index of each folder, by name.

    Raises:
        DataError: as `write_shards`.
    """
    indices = None
    while indices is None:  # the input is read again if the split changes
        split = ValidationSplit(validation, job.split_limit)
        try:
            indices = _write_split(job, read, split, tokenizer, options, shard_tokens, progress)
        except SplitInputChangedError:
            on_notice(
                "the input has changed since an earlier reading of it, which decided which "
                "documents to hold out: all of it is split and written again"
            )
            job.restart(None)
    if not any(index.tokens for index in indices.values()):
        raise DataError("no document left: all that the inputs hold is empty, or was skipped")
    for name, index in indices.items():
        if not index.tokens:
            count = sum(index.documents for index in indices.values())
            what = "there is only one document" if count == 1 else "all documents are the same"
            raise DataError(
                f"no document left for {job.out / name}: {what}, and equal ones are held out "
                "together, or not at all; give more text, or leave out --validation"
            )
    if validation:
        card = dataset_card({"train": "train/*.tar", "validation": "val/*.tar"})
        atomic_write(job.folder / CARD, card)
    return indices


def _write_split(
    job: ShardJob,
    read: Callable[[], Iterator[Document]],
    split: ValidationSplit,
    tokenizer: Tokenizer,
    options: ReadOptions,
    shard_tokens: int,
    progress: Callable[[ShardingProgress], None],
) -> dict[str, ShardIndex] | None:
    """Writes all documents; returns None if another split has to be made, with the job's limit.

    Raises:
        SplitInputChangedError: the job's limit is that of another input.
        DataError: as `write_shards`.
    """
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(job.folder / name, tokenizer, shard_tokens))
            for name in split.folders
        }
        # A thread reads and decompresses the next batches while these are tokenized.
        batches = stack.enter_context(
            contextlib.closing(
                prefetch(batches_with_digests(read()), depth=1, is_large=DocumentBatch.is_large)
            )
        )
        document_tokenizer = DocumentTokenizer(tokenizer, options.max_piece_bytes)
        _write_documents(batches, writers, split, document_tokenizer, job.removed_files, progress)
        for writer in writers.values():
            writer.check_all_finished_read()
        split.check_input()
        limit = split.limit_for_empty_folder()
        if limit is None:
            return {name: writer.finish() for name, writer in writers.items()}
    job.restart(limit)
    return None


class _WriterPart(NamedTuple):
    """The documents of a batch that one writer has to write."""

    writer: ShardWriter
    documents: list[Document]
    digests: list[bytes]
    text_bytes: list[int | None]


def _write_documents(
    batches: Iterator[DocumentBatch],
    writers: dict[str, ShardWriter],
    split: ValidationSplit,
    document_tokenizer: DocumentTokenizer,
    removed_files: int,
    progress: Callable[[ShardingProgress], None],
) -> None:
    """Tokenizes and writes the documents that are in no finished shard, batch by batch."""

    def tokenize_unwritten(
        batch: DocumentBatch, unwritten: list[_WriterPart]
    ) -> tuple[DocumentBatch, list[tuple[_WriterPart, TokenizedBatch]]]:
        return batch, [(part, document_tokenizer.tokenize(part.documents)) for part in unwritten]

    documents = tokens = empty_documents = 0
    # Documents are compared with the finished shards before they are given to the threads.
    unwritten = ((batch, _unwritten_parts(batch, writers, split)) for batch in batches)
    for batch, parts in map_ahead(tokenize_unwritten, unwritten, lambda call: call[0].is_large()):
        for part, token_batch in parts:
            part.writer.write(token_batch.tokens, token_batch.ends, part.digests, part.text_bytes)
            tokens += len(token_batch.tokens)
        documents += len(batch.documents)
        empty_documents += batch.empty_documents
        progress(
            ShardingProgress(
                documents=documents,
                tokens=tokens,
                bytes_read=batch.bytes_read,
                empty_documents=empty_documents,
                finished_documents=sum(
                    min(writer.documents_read, writer.finished_documents)
                    for writer in writers.values()
                ),
                special_tokens=document_tokenizer.encoder.special_tokens.total(),
                end_of_text_tokens=document_tokenizer.encoder.end_of_text_tokens,
                removed_files=removed_files,
            )
        )


def _unwritten_parts(
    batch: DocumentBatch, writers: dict[str, ShardWriter], split: ValidationSplit
) -> list[_WriterPart]:
    """Returns the documents that are in no finished shard, after comparing those that are.

    Raises:
        DataError: the documents differ from those in the finished shards.
    """
    parts = {name: _WriterPart(writer, [], [], []) for name, writer in writers.items()}
    contents = zip(batch.documents, batch.digests, batch.text_bytes, strict=True)
    for document, digest, text_bytes in contents:
        part = parts[split.folder_of(digest)]
        if part.writer.documents_read < part.writer.finished_documents:
            part.writer.check_finished(digest)
        else:
            part.documents.append(document)
            part.digests.append(digest)
            part.text_bytes.append(text_bytes)
    return [part for part in parts.values() if part.documents]
