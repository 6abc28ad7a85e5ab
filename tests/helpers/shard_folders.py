"""Reads back what was written to a shard folder, and opens corpora."""

from pathlib import Path

import numpy as np

from rewarm.data.corpus import Corpus
from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.data.shard_source import ShardSource

CONTEXT = 16


def documents_of(folder: Path) -> list[np.ndarray]:
    """Returns the tokens of each document, in the stored order."""
    index = read_shard_index(folder)
    return [tokens for info in index.shards for tokens in Shard(folder, info, index.dtype)]


def file_contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file in a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_bit(path: Path, at: int = 700) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def open_corpus(corpora: Path, name: str, *, seed=1, lanes=2, context=CONTEXT) -> Corpus:
    """Returns the training part of one of the session's corpora."""
    source = ShardSource(str(corpora / name / "train"))
    return Corpus(name, source, context=context, seed=seed, lanes=lanes)
