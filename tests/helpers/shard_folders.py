"""Reads back what was written to a shard folder, and opens corpora."""

import hashlib
import io
import json
import tarfile
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


def write_old_shards(folder: Path, source: Path) -> Path:
    """Copies shards to a folder in the format rewarm-shards/1: each document is one sample."""
    folder.mkdir(parents=True)
    index = json.loads((source / "index.json").read_text())
    index["format"] = "rewarm-shards/1"
    shards = read_shard_index(source)
    for number, info in enumerate(shards.shards):
        path = folder / info.name
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for document, tokens in enumerate(Shard(source, info, shards.dtype)):
                buffer = io.BytesIO()
                np.save(buffer, tokens)
                member = tarfile.TarInfo(f"{number:05d}-{document:06d}.npy")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
        data = path.read_bytes()
        index["shards"][number] |= {
            "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()
        }  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return folder
