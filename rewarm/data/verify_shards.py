"""Verifies every shard of a folder, and finds documents that two folders share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rewarm.data.sample_layout import check_in_vocabulary
from rewarm.data.shard_format import Shard, ShardIndex, read_shard_index
from rewarm.errors import DataError


class ShardFolderReport(NamedTuple):
    """The result of verifying one folder."""

    folder: Path
    shard_index: ShardIndex
    problems: list[str]
    """One error message for each shard that differs from the index."""


def verify_shards(folder: Path) -> list[ShardFolderReport]:
    """Verifies the shards of a folder, or of its subfolders train and val; returns the results.

    Each shard is read completely, to check its sha256, members and counts, and that each token is
    in the tokenizer's vocabulary.

    Raises:
        DataError: a folder has no index, or the index is damaged.
    """
    subfolders = [path for name in ("train", "val") if (path := folder / name).is_dir()]
    return [_verify_folder(path) for path in subfolders or [folder]]


def _verify_folder(folder: Path) -> ShardFolderReport:
    index, problems = read_shard_index(folder), []
    vocabulary = index.tokenizer.vocabulary
    for shard_info in index.shards:
        try:
            shard = Shard(folder, shard_info, index.dtype)
            first = 0
            for tokens in shard.joined_documents():
                check_in_vocabulary(tokens, vocabulary, str(shard.path), first=first)
                first += len(tokens)
        except DataError as error:
            problems.append(str(error))
    return ShardFolderReport(folder, index, problems)


def find_overlap(first: Path, second: Path) -> list[tuple[str, str]]:
    """Returns the documents that are in both folders, as pairs of `shard path:document number`.

    Documents are the same if their tokens are, whatever files they were read from.

    Raises:
        DataError: a shard is missing or damaged.
    """
    in_first = {digest: location for location, digest in _document_digests(first)}
    return [
        (in_first[digest], location)
        for location, digest in _document_digests(second)
        if digest in in_first
    ]


def _document_digests(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields `shard path:document number` and the digest of its tokens, for each document."""
    index = read_shard_index(folder)
    for shard_info in index.shards:
        shard = Shard(folder, shard_info, index.dtype)
        for number, tokens in enumerate(shard):
            data = tokens.astype("<u4").tobytes()
            yield f"{shard.path}:{number}", hashlib.blake2b(data, digest_size=16).digest()
