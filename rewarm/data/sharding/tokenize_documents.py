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
from itertools import accumulate, groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rewarm.data.inputs.document_readers import DEFAULT_OPTIONS, Document
from rewarm.data.sample_layout import Positions, check_in_vocabulary
from rewarm.data.text_encoder import TextEncoder
from rewarm.data.text_pieces import cut_text
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import DataError
from rewarm.reader_threads import ReaderThreads

_BYTES_PER_BYTE = 150
"""Memory that encoding takes for each byte of text."""
_BATCH_BYTES = 400_000  # tokenizing takes up to 100 times as much memory
_BATCH_DOCUMENTS = 16_384
_LARGE_BATCH_BYTES = 1_000_000  # one document; others wait, so that memory is bounded
_PIECE_CHARACTERS = 5_000  # from a processor's cache, tokenizing takes some percent less time
_THREADS = 2 if (os.cpu_count() or 1) <= 2 else 4  # each call uses all cores, but not to its end

_NO_END = b"no end-of-text"
"""Before the content of a document that gets no end-of-text."""

Mapped = TypeVar("Mapped")


class DocumentBatch(NamedTuple):
    """Some consecutive documents that are not empty."""

    documents: list[Document]
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


def batches_with_digests(documents: Iterator[Document]) -> Iterator[DocumentBatch]:
    """Yields the documents in batches of about `_BATCH_BYTES`, to limit memory use."""
    batch, digests, text_bytes = list[Document](), list[bytes](), list[int | None]()
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


def _content_bytes(document: Document) -> bytes:
    """Returns what decides a document's token ids."""
    content = document.content
    data = content.encode() if isinstance(content, str) else content.astype("<u4").tobytes()
    return data if document.ends else _NO_END + data


def _text_bytes(document: Document, content: bytes) -> int | None:
    """Returns the bytes of a document's text, given what `_content_bytes` returned."""
    if not isinstance(document.content, str):
        return None
    return len(content) - (0 if document.ends else len(_NO_END))


class _Piece(NamedTuple):
    """A text that is encoded at once: a document, a part of one, or several short ones."""

    text: str
    documents: int
    """Number of documents that end in it."""
    is_joined: bool = False
    """Whether `text` contains the end-of-text token after each of these documents."""


class DocumentTokenizer:
    """Turns documents into token ids, each ending with end-of-text; the library uses all cores.

    If the tokenizer allows it, long texts are cut, and short ones joined: both into texts of about
    `_PIECE_CHARACTERS`, for which the library takes up the least time and memory.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_piece_bytes: int = DEFAULT_OPTIONS.max_piece_bytes
    ) -> None:
        """Takes the tokenizer, and the bytes of the longest text that may be encoded at once.

        Raises:
            DataError: the tokenizer gives other tokens each time, or expands text without end.
        """
        self._tokenizer = tokenizer
        self._max_piece_bytes = max_piece_bytes
        self.encoder = TextEncoder(tokenizer)

    def tokenize(self, documents: list[Document]) -> TokenizedBatch:
        """Returns the token ids of documents.

        Raises:
            DataError: a text cannot be encoded, or not in pieces that are short enough; or a
                document of token ids has one outside the tokenizer's vocabulary.
        """
        batches = list[TokenizedBatch]()
        for is_text, group in groupby(
            documents, lambda document: isinstance(document.content, str)
        ):
            batches.append((self._tokenize_texts if is_text else self._join_tokens)(list(group)))
        return _concatenate(batches)

    def _tokenize_texts(self, documents: list[Document]) -> TokenizedBatch:
        batch = self._encode_texts(documents, may_join=self.encoder.can_join)
        if len(batch.ends) != len(documents):  # a text that is normalized to end-of-text
            batch = self._encode_texts(documents, may_join=False)
        return batch

    def _encode_texts(self, documents: list[Document], *, may_join: bool) -> TokenizedBatch:
        """Returns the token ids of texts, and as many ends as they have end-of-text tokens."""
        eos = self._tokenizer.eos_token_id
        batches = list[TokenizedBatch]()
        for piece, ids in self._encode(self._pieces(documents, may_join)):
            if piece.documents and not piece.is_joined:
                ids.append(eos)
            tokens = np.frombuffer(array("I", ids), np.uint32)
            if piece.is_joined:
                ends = np.flatnonzero(tokens == eos) + 1
            else:
                ends = np.array([len(ids)] * piece.documents, dtype=np.int64)
            batches.append(TokenizedBatch(tokens, ends))
        return _concatenate(batches)

    def _pieces(self, documents: list[Document], may_join: bool) -> Iterator[_Piece]:
        """Yields the texts in order, long ones in several pieces and short ones in one.

        Raises:
            DataError: a piece is too long.
        """
        short, characters = list[str](), 0
        for document in documents:
            text = str(document.content)
            is_short = may_join and len(text) <= _PIECE_CHARACTERS
            if is_short and not self.encoder.has_special_token(text):
                short.append(text)
                characters += len(text)
                if characters >= _PIECE_CHARACTERS:
                    yield self._join_texts(short)
                    short, characters = [], 0
                continue
            if short:
                yield self._join_texts(short)
                short, characters = [], 0
            end = 0
            for piece in (
                cut_text(text, _PIECE_CHARACTERS) if self.encoder.can_cut_texts else [text]
            ):
                self._check_size(piece, document.location)
                end += len(piece)
                yield _Piece(piece, documents=int(end == len(text)))
        if short:
            yield self._join_texts(short)

    def _join_texts(self, texts: list[str]) -> _Piece:
        eos = self._tokenizer.eos_token
        return _Piece(eos.join([*texts, ""]), len(texts), is_joined=True)

    def _check_size(self, piece: str, location: str) -> None:
        limit = self._max_piece_bytes
        if len(piece) > limit // 4 and (size := len(piece.encode())) > limit:
            raise DataError(
                f"{location}: {size:,} bytes of text that this tokenizer has to encode at once "
                f"(limit {limit:,}), which takes about {_BYTES_PER_BYTE * size / 1e6:,.0f} MB of "
                f"memory; allow it with --max-piece, or split the document"
            )

    def _encode(self, pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, list[int]]]:
        """Yields each piece with its token ids; some are encoded at a time."""
        while group := list(_up_to(_BATCH_BYTES, pieces)):
            joined = [piece.text for piece in group if piece.is_joined]
            others = [piece.text for piece in group if not piece.is_joined]
            ids_of_joined = iter(self.encoder.encode_joined(joined) if joined else [])
            ids_of_others = iter(self.encoder.encode(others) if others else [])
            for piece in group:
                yield piece, next(ids_of_joined if piece.is_joined else ids_of_others)

    def _join_tokens(self, documents: list[Document]) -> TokenizedBatch:
        """Returns the tokens of documents of token ids."""
        eos = self._tokenizer.eos_token_id
        batches = list[TokenizedBatch]()
        for document in documents:
            assert not isinstance(document.content, str)
            check_in_vocabulary(
                document.content,
                self._tokenizer.vocabulary,
                document.location,
                advice="name the tokenizer that the ids come from with --tokenizer",
            )
            tokens = document.content.astype(np.uint32)
            if document.ends and tokens[-1] != eos:
                tokens = np.append(tokens, np.uint32(eos))
            batches.append(TokenizedBatch(tokens, np.array([len(tokens)])))
        return _concatenate(batches)


def _concatenate(batches: list[TokenizedBatch]) -> TokenizedBatch:
    """Returns several batches as one."""
    starts = accumulate((len(batch.tokens) for batch in batches), initial=0)
    return TokenizedBatch(
        np.concatenate([np.empty(0, np.uint32), *(batch.tokens for batch in batches)]),
        np.concatenate(
            [
                np.empty(0, np.int64),
                *(batch.ends + start for batch, start in zip(batches, starts, strict=False)),
            ]
        ),
    )


def _up_to(characters: int, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
    """Yields pieces until they have so many characters."""
    for piece in pieces:
        yield piece
        characters -= len(piece.text)
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
