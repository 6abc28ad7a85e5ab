"""Which documents are held out: a function of their content only."""

from __future__ import annotations

_HASHES = 2**64


class ValidationSplit:
    """Sends each document to a folder by its hash: below a share of all hashes, it is held out.

    So the split does not depend on the order of the documents, and equal ones stay together. Where
    a small input has no document below the share, or none above it, `limit_for_empty_folder` is the
    hash that moves one there.
    """

    def __init__(self, share: float, hash_limit: int | None = None) -> None:
        """Takes the share of documents to hold out, or the hash below which to hold them out."""
        self._share = share
        self._hash_limit = hash_limit
        self._lowest, self._highest = _HASHES, -1
        self._empty = {"train", "val"} if share else set[str]()

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the folders."""
        return ("train", "val") if self._share else (".",)

    def folder_of(self, digest: bytes) -> str:
        """Returns the name of the folder that a document goes to, by the sha256 of its content."""
        if not self._share:
            return "."
        content_hash = int.from_bytes(digest[:8], "big")
        self._lowest = min(self._lowest, content_hash)
        self._highest = max(self._highest, content_hash)
        if self._hash_limit is None:
            held_out = content_hash / _HASHES < self._share
        else:
            held_out = content_hash < self._hash_limit
        name = "val" if held_out else "train"
        self._empty.discard(name)
        return name

    def limit_for_empty_folder(self) -> int | None:
        """Returns the hash limit that fills an empty folder; None if there is none, or no way.

        It moves one document, or all that are equal to it, and leaves the others.
        """
        if not self._empty or self._lowest >= self._highest:
            return None
        return self._lowest + 1 if "val" in self._empty else self._highest
