"""Which format and compression a file has, by the ending of its name, in any case."""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple

from rewarm.data.inputs.decompression import CODECS

TEXT_FORMATS = ("jsonl", "ndjson", "json", "txt")
"""The formats that are read inside archives too. Each may be compressed, and so may a tar."""
READABLE_SUFFIXES = (
    *(".jsonl", ".ndjson", ".json", ".txt", ".tar", ".zip", ".parquet", ".arrow", ".feather"),
    *(".bin", ".npy"),
)
_COMPRESSIBLE = {*TEXT_FORMATS, "tar"}
_SHORT_NAMES = {
    ".tgz": ("tar", ".gz"),
    ".txz": ("tar", ".xz"),
    ".tbz2": ("tar", ".bz2"),
    ".tzst": ("tar", ".zst"),
}


class InputFormat(NamedTuple):
    """What a file is, by its name."""

    name: str
    """The ending without its dot: jsonl, tar, ..."""
    compression: str
    """A key of `CODECS`, or "" for none."""


def format_of(path: PurePath) -> InputFormat | None:
    """Returns the format of a file by the ending of its name; None if it is not read.

    >>> format_of(PurePath("c4-train.00000-of-01024.JSON.gz"))
    InputFormat(name='json', compression='.gz')
    """
    suffix, compression = path.suffix.lower(), ""
    if suffix in _SHORT_NAMES:
        return InputFormat(*_SHORT_NAMES[suffix])
    if suffix in CODECS:
        suffix, compression = PurePath(path.stem).suffix.lower(), suffix
    name = suffix[1:]
    if suffix not in READABLE_SUFFIXES or (compression and name not in _COMPRESSIBLE):
        return None
    return InputFormat(name, compression)


def stem_of(path: PurePath) -> str:
    """Returns the name of a file without the endings of its format and compression.

    >>> stem_of(PurePath("c4-train.00000-of-01024.JSON.gz"))
    'c4-train.00000-of-01024'
    """
    input_format = format_of(path)
    if input_format is None:
        return path.name
    has_two = input_format.compression and path.suffix.lower() not in _SHORT_NAMES
    return PurePath(path.stem).stem if has_two else path.stem


def readable_formats() -> str:
    """Returns the endings that are read, as error messages list them."""
    compressions = ", ".join(CODECS)
    return f"{', '.join(READABLE_SUFFIXES)}; text and tars also with {compressions}"


def ending_of(path: PurePath) -> str:
    """Returns the ending of a file's name, with that below a compression."""
    suffixes = [suffix for suffix in path.suffixes if len(suffix) <= 9][-2:]
    if suffixes and suffixes[-1].lower() not in CODECS:
        suffixes = suffixes[-1:]
    return "".join(suffixes) or "no ending"
