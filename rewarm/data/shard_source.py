"""The shards of one corpus: all or some of those in a local folder or at a URL.

```
data/pile                     a folder with an index.json
data/pile/{00000..00003}.tar  some of its shards, by braces
data/pile/0000*.tar           or by wildcards
https://host/pile             a folder at a URL (also s3://, gs://, hf://)
```
A shard at a URL is downloaded when its first block is read, verified against the index, and kept in
~/.cache/rewarm/shards.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path, PurePosixPath

from rewarm.data.shard_format import (
    MAX_INDEX_BYTES,
    ShardIndex,
    ShardInfo,
    parse_shard_index,
    read_shard_index,
)
from rewarm.errors import DataError
from rewarm.files import cache_dir
from rewarm.remote_storage import (
    DEFAULT_CACHE_BYTES,
    RemoteFolder,
    check_no_credentials,
    is_url,
)

_PATTERN = re.compile(r"[{*?\[]")


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

    def fetch_shard(self, shard_info: ShardInfo) -> Path:
        """Returns the local folder that holds a shard, which is downloaded first if necessary.

        Raises:
            DataError: the shard cannot be downloaded, or differs from the index.
        """
        if self._remote:
            self._remote.fetch(shard_info.name, size=shard_info.bytes, sha256=shard_info.sha256)
        return self.folder

    def tokenizer_folder(self) -> Path:
        """Returns a local folder that holds the tokenizer.json of the shards.

        Raises:
            DataError: the file cannot be downloaded.
        """
        if self._remote:
            self._remote.fetch_unverified("tokenizer.json", max_bytes=MAX_INDEX_BYTES)
        return self.folder

    def _select_shards(self, pattern: str) -> ShardIndex:
        """Returns the index of the shards that match a pattern of braces and wildcards."""
        from braceexpand import braceexpand  # webdataset expands its shard names with it

        try:
            names = list(braceexpand(pattern))
        except ValueError:
            raise DataError(f"{self.location}: its braces do not match") from None
        shards = []
        for name in names:
            matches = [s for s in self.index.shards if fnmatch.fnmatchcase(s.name, name)]
            if not matches:
                raise DataError(
                    f"{self.location}: no shard {name} in its index (which lists "
                    f"{self.index.shards[0].name} to {self.index.shards[-1].name})"
                )
            shards += matches
        return self.index.model_copy(update={"shards": shards})


def _split_pattern(location: str) -> tuple[str, str]:
    """Returns the folder, and the pattern of shard files at its end; "" if there is none."""
    folder, pattern = location.rstrip("/"), ""
    if _PATTERN.search(PurePosixPath(folder).name):
        folder, _, pattern = folder.rpartition("/")
    return folder, pattern
