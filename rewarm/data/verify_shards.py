"""Reads every shard of a folder whole, and finds documents that two folders share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rewarm.data.shard_format import Shard, ShardIndex, read_shard_index
from rewarm.errors import DataError


class ShardFolderReport(NamedTuple):
    """What `verify` found in one folder."""

    folder: Path
    held: ShardIndex
    """What the folder should hold."""
    bad: list[str]
    """A line for each shard that is not what the index says."""


def verify_shards(folder: Path) -> list[ShardFolderReport]:
    """Returns what is wrong with the shards of a folder, or of its train and val parts.

    Every tar is read whole: its sha256, its members, its counts, and that every token is inside the
    tokenizer's vocabulary.

    Raises:
        DataError: there is no index to verify against.
    """
    parts = [part for name in ("train", "val") if (part := folder / name).is_dir()]
    return [_verified(part) for part in parts or [folder]]


def _verified(folder: Path) -> ShardFolderReport:
    index, bad = read_shard_index(folder), []
    for facts in index.shards:
        try:
            shard = Shard(folder, facts, index.dtype)
            highest = max(int(tokens.max()) for tokens in shard)
            if highest >= index.tokenizer.vocabulary:
                raise DataError(
                    f"{shard.path}: token {highest} is outside the vocabulary of "
                    f"{index.tokenizer.vocabulary:,}"
                )
        except DataError as error:
            bad.append(str(error))
    return ShardFolderReport(folder, index, bad)


def find_overlap(one: Path, other: Path) -> list[tuple[str, str]]:
    """Returns the documents that stand in both folders, as pairs of tar/number places.

    Compares tokens, so it finds what a model would see twice, whatever the files were.

    Raises:
        DataError: a shard is missing or damaged.
    """
    first = {digest: place for place, digest in _documents(one)}
    return [(first[d], place) for place, d in _documents(other) if d in first]


def _documents(folder: Path) -> Iterator[tuple[str, bytes]]:
    index = read_shard_index(folder)
    for facts in index.shards:
        shard = Shard(folder, facts, index.dtype)
        for number, tokens in enumerate(shard):
            said = tokens.astype("<u4").tobytes()
            yield f"{shard.path}:{number}", hashlib.blake2b(said, digest_size=16).digest()
