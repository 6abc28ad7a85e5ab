"""Tokenizes documents in batches: one thread reads, others tokenize, and the order stays.

```
 documents ──> batches with digests (a thread) ──> token ids (threads; all cores) ──> caller
```
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rewarm.data.document_readers import TextDocument
from rewarm.data.sample_layout import Positions, Tokens, check_in_vocabulary
from rewarm.data.text_encoder import TextEncoder
from rewarm.data.text_pieces import can_cut_texts, cut_text
from rewarm.data.tokenizer import Tokenizer
from rewarm.reader_threads import ReaderThreads

_BATCH_BYTES = 400_000  # tokenizing takes up to 100 times as much memory
_BATCH_DOCUMENTS = 16_384
_LARGE_BATCH_BYTES = 4_000_000  # one document; others wait, so that memory is bounded
_PIECE_CHARACTERS = 5_000  # from a processor's cache, tokenizing takes some percent less time
_THREADS = 2 if (os.cpu_count() or 1) <= 2 else 4  # each call uses all cores, but not to its end

_NO_END = b"no end-of-text"
"""Before the content of a document that gets no end-of-text."""

Mapped = TypeVar("Mapped")


class DocumentBatch(NamedTuple):
    """Some consecutive documents that are not empty."""

    documents: list[TextDocument]
    digests: list[bytes]
    """sha256 of each document's content."""
    size: int
    """Bytes of their content."""
    text_bytes: list[int | None]
    """Bytes of each document's text in UTF-8; None for token ids."""
    empty_documents: int
    """Documents without content among them, which are left out."""
    bytes_read: int
    """Bytes of all input files up to the end of the batch."""

    def is_large(self) -> bool:
        """Returns whether no other batch should be in memory, where that can be helped."""
        return self.size >= _LARGE_BATCH_BYTES


class TokenizedBatch(NamedTuple):
    """The token ids of some documents."""

    tokens: npt.NDArray[np.uint32]
    """Those of all documents, joined."""
    ends: Positions
    """For each document, the number of tokens up to its end."""


def batches_with_digests(documents: Iterator[TextDocument]) -> Iterator[DocumentBatch]:
    """Yields the documents in batches of about `_BATCH_BYTES`, to limit memory use."""
    batch, digests, text_bytes = list[TextDocument](), list[bytes](), list[int | None]()
    empty = size = count = bytes_read = 0
    for document in documents:
        bytes_read = document.bytes_read
        count += 1
        if len(document.content):
            data = _content_bytes(document)
            size += len(data)
            batch.append(document)
            digests.append(hashlib.sha256(data).digest())
            text_bytes.append(_text_bytes(document, data))
            del data
        else:
            empty += 1
        if size >= _BATCH_BYTES or count == _BATCH_DOCUMENTS:
            yield DocumentBatch(batch, digests, size, text_bytes, empty, bytes_read)
            batch, digests, text_bytes, empty, size, count = [], [], [], 0, 0, 0
            del document
    if count:
        yield DocumentBatch(batch, digests, size, text_bytes, empty, bytes_read)


def _content_bytes(document: TextDocument) -> bytes:
    """Returns what decides a document's token ids."""
    content = document.content
    data = content.encode() if isinstance(content, str) else content.astype("<u4").tobytes()
    return data if document.ends else _NO_END + data


def _text_bytes(document: TextDocument, content: bytes) -> int | None:
    """Returns the bytes of a document's text, given what `_content_bytes` returned."""
    if not isinstance(document.content, str):
        return None
    return len(content) - (0 if document.ends else len(_NO_END))


class DocumentTokenizer:
    """Turns documents into token ids, each ending with end-of-text; the library uses all cores."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes the tokenizer; texts of more than `_PIECE_CHARACTERS` are cut if it allows that.

        Raises:
            DataError: the tokenizer gives other tokens each time, or expands text without end.
        """
        self._tokenizer = tokenizer
        self.encoder = TextEncoder(tokenizer)
        self._can_cut_texts = can_cut_texts(tokenizer.encoder)

    def tokenize(self, documents: list[TextDocument]) -> TokenizedBatch:
        """Returns the token ids of documents.

        Raises:
            DataError: a text cannot be encoded, or a document of token ids has one outside the
                tokenizer's vocabulary.
        """
        ids_of_pieces = self._encode(self._cut(documents))
        eos = self._tokenizer.eos_token_id
        tokens, ends = array("I"), array("q")
        for document in documents:
            if isinstance(document.content, str):
                for ids, is_last in ids_of_pieces:
                    tokens.fromlist(ids)
                    if is_last:
                        break
                tokens.append(eos)
            else:
                self._check(document.content, document.location)
                tokens.frombytes(document.content.astype(np.uint32).tobytes())
                if document.ends and document.content[-1] != eos:
                    tokens.append(eos)
            ends.append(len(tokens))
        return TokenizedBatch(np.frombuffer(tokens, np.uint32), np.frombuffer(ends, np.int64))

    def _cut(self, documents: list[TextDocument]) -> Iterator[tuple[str, bool]]:
        """Yields the pieces of all texts, and whether each is the last one of its text."""
        for document in documents:
            text = document.content
            if not isinstance(text, str):
                continue
            if self._can_cut_texts and len(text) > _PIECE_CHARACTERS:
                end = 0
                for piece in cut_text(text, _PIECE_CHARACTERS):
                    end += len(piece)
                    yield piece, end == len(text)
            else:
                yield text, True

    def _encode(self, pieces: Iterator[tuple[str, bool]]) -> Iterator[tuple[list[int], bool]]:
        """Yields the token ids in place of each piece, which are tokenized some at a time."""
        while group := list(_up_to(_BATCH_BYTES, pieces)):
            texts, is_last = zip(*group, strict=True)
            yield from zip(self.encoder.encode(list(texts)), is_last, strict=True)

    def _check(self, tokens: Tokens, location: str) -> None:
        check_in_vocabulary(
            tokens,
            self._tokenizer.vocabulary,
            location,
            advice="name the tokenizer that the ids come from with --tokenizer",
        )


def _up_to(characters: int, pieces: Iterator[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Yields pieces until they have so many characters."""
    for piece in pieces:
        yield piece
        characters -= len(piece[0])
        if characters <= 0:
            return


def map_ahead(
    function: Callable[..., Mapped],
    arguments: Iterable[tuple[Any, ...]],
    is_large: Callable[[tuple[Any, ...]], bool] = lambda _: False,
) -> Iterator[Mapped]:
    """Yields the function's results in order; threads compute some of them ahead of time.

    While that of large arguments is computed, no other is.
    An error of the function is raised here after all results before it; one of the arguments, at
    once: the results that are missing then are computed again by the next command.
    """
    threads = ReaderThreads(_THREADS, "rewarm-tokenize")
    pending = deque[Future[Mapped]]()
    try:
        for call in arguments:
            is_alone = is_large(call)
            while is_alone and pending:
                yield pending.popleft().result()
            pending.append(threads.submit(function, *call))
            del call
            if is_alone or len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.close()
