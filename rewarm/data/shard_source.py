"""The shards of one corpus: all or some of those in a local folder or at a URL.

```
data/pile                     a folder with an index.json
data/pile/{00000..00003}.tar  some of its shards, by braces
data/pile/0000*.tar           or by wildcards
https://host/pile             a folder at a URL (also s3://, gs://, hf://)
```
A shard at a URL is downloaded when its first block is read, verified against the index, and kept in
~/.cache/rewarm/shards, for all processes on this node. A copy that is damaged there is downloaded
again.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from functools import partial
from pathlib import Path, PurePosixPath

from rewarm.data.shard_format import (
    MAX_INDEX_BYTES,
    Shard,
    ShardIndex,
    parse_shard_index,
    read_shard_index,
    unusable_shard,
)
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError
from rewarm.files import FileStamp, cache_dir
from rewarm.remote_storage import (
    DEFAULT_CACHE_BYTES,
    RemoteFolder,
    check_no_credentials,
    is_url,
)

_PATTERN = re.compile(r"[{*?\[]")
_WILDCARD = re.compile(r"[*?\[]")
_NUMBERS = re.compile(r"(-?\d{1,4000})\.\.(-?\d{1,4000})(?:\.\.-?(\d{1,4000}))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")

_logger = logging.getLogger(__name__)


class ShardSource:
    """The index of one corpus, and access to each of its shards."""

    def __init__(
        self,
        location: str,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        attempts: int = 5,
        timeout: float = 60.0,
    ) -> None:
        """Reads the index.

        Args:
            location: a folder, a pattern of shard files in a folder, or the URL of either.
            cache_bytes: upper bound on the size of the cache of downloaded shards.
            attempts: maximum number of attempts per download.
            timeout: seconds without any data received after which an attempt fails.

        Raises:
            DataError: the index is missing or cannot be read, or the pattern matches no shard.
        """
        self.location = location
        folder, pattern = _split_pattern(location)
        self._remote = None
        try:
            check_no_credentials(location)
            if is_url(folder):
                self._remote = RemoteFolder(
                    url=folder,
                    cache=cache_dir() / "shards",
                    evictable_files="*.tar",
                    cache_bytes=cache_bytes,
                    attempts=attempts,
                    timeout=timeout,
                )
        except ValueError as error:
            raise DataError(f"{location}: {error}") from None
        if self._remote:
            self.folder = self._remote.local_folder
            data = self._remote.read("index.json", max_bytes=MAX_INDEX_BYTES)
            self.index = parse_shard_index(data, f"{folder}/index.json")
        else:
            self.folder = Path(folder or ".")
            self.index = read_shard_index(self.folder)
        if pattern:
            self.index = self._select_shards(pattern)

    def __str__(self) -> str:
        return self.location

    def check_sizes(self) -> None:
        """Checks that each shard in a local folder is as long as the index says; reads none.

        Raises:
            DataError: a shard is missing or has another size.
        """
        for shard in [] if self._remote else self.index.shards:
            path = self.folder / shard.name
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise unusable_shard(path, "missing") from None
            except OSError as error:
                raise unusable_shard(path, f"cannot be read: {error.strerror}") from None
            if size != shard.bytes:
                raise unusable_shard(
                    path, f"{size:,} bytes long, and the index says {shard.bytes:,}"
                )

    def open_shard(
        self, shard_number: int, *, verify: bool = True, verified: FileStamp | None = None
    ) -> Shard:
        """Opens a shard of the index, which is downloaded first if necessary.

        Args:
            shard_number: zero-based position of the shard in the index.
            verify: as of `Shard`.
            verified: as of `Shard`.

        Raises:
            DataError: the shard is missing, cannot be downloaded, or differs from the index.
        """
        shard_info = self.index.shards[shard_number]
        open_shard = partial(
            Shard, self.folder, shard_info, self.index.dtype, verify=verify, verified=verified
        )
        if self._remote is None:
            return open_shard()
        fetch = partial(
            self._remote.open, shard_info.name, size=shard_info.bytes, sha256=shard_info.sha256
        )
        descriptor = fetch()
        stamp = FileStamp.of(os.fstat(descriptor))
        try:
            return open_shard(cached=descriptor)
        except DataError as error:
            _logger.warning("warning: %s", error)
        self._remote.discard(shard_info.name, stamp)
        try:
            return open_shard(cached=fetch())
        except DataError as error:
            raise DataError(
                f"{error}; it was downloaded again a moment ago: check the disk of the cache, or "
                "move the cache (XDG_CACHE_HOME)"
            ) from None

    def tokenizer_folder(self) -> Path:
        """Returns a local folder that holds the tokenizer.json of the shards.

        Raises:
            DataError: the file is missing, cannot be downloaded, or is another tokenizer than that
                of the index.
        """
        if self._remote:
            self._fetch_tokenizer(self._remote)
        elif not (self.folder / "tokenizer.json").is_file():
            raise DataError(
                f"{self.folder}: no tokenizer.json in this folder, which checkpoints need; copy "
                "the one that its shards were written with, or write the folder again with "
                "`rewarm shard`"
            )
        return self.folder

    def _fetch_tokenizer(self, remote: RemoteFolder) -> None:
        """Downloads the tokenizer, also if its copy in the cache is damaged or out of date."""
        path = remote.fetch_unverified("tokenizer.json", max_bytes=MAX_INDEX_BYTES)
        stamp = FileStamp.of(path.stat())
        if not self._has_tokenizer(path):
            _logger.warning(
                "warning: %s: not the tokenizer of the shards, in the download cache; it is "
                "downloaded again",
                path,
            )
            remote.discard(path.name, stamp)
            remote.fetch_unverified("tokenizer.json", max_bytes=MAX_INDEX_BYTES)
            if not self._has_tokenizer(path):
                raise DataError(
                    f"{remote.url}/tokenizer.json: not the tokenizer of the index.json beside it; "
                    "copy both again, or write the folder again with `rewarm shard`"
                )

    def _has_tokenizer(self, path: Path) -> bool:
        """Returns whether a tokenizer.json is that which the shards were written with."""
        expected = self.index.tokenizer
        try:
            return load_tokenizer(str(path), expected.eos_token).digest == expected.digest
        except DataError:
            return False

    def _select_shards(self, pattern: str) -> ShardIndex:
        """Returns the index of the shards that match a pattern of braces and wildcards."""
        from braceexpand import braceexpand  # webdataset expands its shard names with it

        count, most = count_names(pattern), len(self.index.shards)
        if count > most:  # a few braces can stand for millions of names: they are not expanded
            number = f"{count:,}" if count < 10**15 else "more than 10^15"
            raise DataError(
                f"{self.location}: its braces stand for {number} names, and its index lists "
                f"{most:,} shards ({self.index.shards[0].name} to {self.index.shards[-1].name}); "
                "name each shard once"
            )
        try:
            names = list(braceexpand(pattern))
        except ValueError:
            raise DataError(f"{self.location}: its braces do not match") from None
        by_name = {shard.name: shard for shard in self.index.shards}
        shards = []
        for name in names:
            if _WILDCARD.search(name):
                matches = [s for s in self.index.shards if fnmatch.fnmatchcase(s.name, name)]
            else:
                matches = [by_name[name]] if name in by_name else []
            if not matches:
                raise DataError(
                    f"{self.location}: no shard {name} in its index (which lists "
                    f"{self.index.shards[0].name} to {self.index.shards[-1].name})"
                )
            shards += matches
        return self.index.model_copy(update={"shards": shards})


def count_names(pattern: str) -> int:
    """Returns the number of names that a pattern of braces stands for, without expanding it.

    1 if the braces do not match.
    """
    outer: list[tuple[int, int, int]] = []
    names, alternatives, start = 1, 0, 0  # of the innermost open brace, and where its text starts
    characters = enumerate(pattern)
    for i, character in characters:
        if character == "\\":
            next(characters, None)
        elif character == "{":
            outer.append((names, alternatives, start))
            names, alternatives, start = 1, 0, i + 1
        elif character == "," and outer:
            names, alternatives = 1, alternatives + names
        elif character == "}":
            if not outer:
                return 1
            inside = _count_range(pattern[start:i]) or alternatives + names
            names, alternatives, start = outer.pop()
            names *= inside
    return 1 if outer else names


def _count_range(text: str) -> int | None:
    """Returns the number of names in `0..9`, `00..98..2` or `a..z`; None if it is no range."""
    if match := _NUMBERS.fullmatch(text):
        first, last = int(match[1]), int(match[2])
    elif match := _LETTERS.fullmatch(text):
        first, last = ord(match[1]), ord(match[2])
    else:
        return None
    return abs(last - first) // (int(match[3] or 1) or 1) + 1


def names_some_shards(location: str) -> bool:
    """Returns whether a location is a pattern of shards in a folder: data/x/{00000..00003}.tar."""
    return bool(_split_pattern(location)[1])


def _is_folder(location: str) -> bool:
    try:
        return Path(location).is_dir()
    except OSError:  # a long pattern is no name of a file
        return False


def _split_pattern(location: str) -> tuple[str, str]:
    """Returns the folder, and the pattern of shard files at its end; "" if there is none."""
    folder, pattern = location.rstrip("/"), ""
    if _PATTERN.search(PurePosixPath(folder).name) and not _is_folder(folder):
        folder, _, pattern = folder.rpartition("/")
    return folder, pattern
