"""Which documents are held out: a function of their content only."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

_HASHES = 2**64


class SplitLimit(BaseModel):
    """The hash below which the documents of one input are held out, and which input that is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hash: int
    documents: int
    content: str
    """sha256 over the digests of all documents."""


class SplitInputChangedError(Exception):
    """The documents are not those that a `SplitLimit` was made for."""


class ValidationSplit:
    """Sends each document to a folder by its hash: below a share of all hashes, it is held out.

    So the split does not depend on the order of the documents, and equal ones stay together. Where
    a small input has no document below the share, or none above it, `limit_for_empty_folder` is the
    hash that moves one there. For other documents it would be another share: it holds only for the
    same input.
    """

    def __init__(self, share: float, limit: SplitLimit | None = None) -> None:
        """Takes the share of documents to hold out, and the limit to use instead for an input."""
        self._share = share
        self._limit = limit
        self._lowest, self._highest = _HASHES, -1
        self._empty = {"train", "val"} if share else set[str]()
        self._documents = 0
        self._content = hashlib.sha256()  # over the digests of all documents

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the folders."""
        return ("train", "val") if self._share else (".",)

    def folder_of(self, digest: bytes) -> str:
        """Returns the name of the folder that a document goes to, by the sha256 of its content.

        Raises:
            SplitInputChangedError: there are more documents than the limit was made for.
        """
        if not self._share:
            return "."
        self._documents += 1
        self._content.update(digest)
        if self._limit and self._documents > self._limit.documents:
            raise SplitInputChangedError
        content_hash = int.from_bytes(digest[:8], "big")
        self._lowest = min(self._lowest, content_hash)
        self._highest = max(self._highest, content_hash)
        if self._limit is None:
            held_out = content_hash / _HASHES < self._share
        else:
            held_out = content_hash < self._limit.hash
        name = "val" if held_out else "train"
        self._empty.discard(name)
        return name

    def check_input(self) -> None:
        """Checks that the documents are those that the limit was made for; call it at their end.

        Raises:
            SplitInputChangedError: they are not.
        """
        if self._limit and self._limit != self._limit_at(self._limit.hash):
            raise SplitInputChangedError

    def limit_for_empty_folder(self) -> SplitLimit | None:
        """Returns the hash limit that fills an empty folder; None if there is none, or no way.

        It moves one document, or all that are equal to it, and leaves the others.
        """
        if not self._empty or self._lowest >= self._highest:
            return None
        return self._limit_at(self._lowest + 1 if "val" in self._empty else self._highest)

    def _limit_at(self, content_hash: int) -> SplitLimit:
        return SplitLimit(
            hash=content_hash, documents=self._documents, content=self._content.hexdigest()
        )
