"""Where shards are: a folder here, some tars of one, or an address read through a local cache.

```
data/pile                     a folder with an index.json
data/pile/{00000..00003}.tar  some of its tars, by braces
data/pile/0000*.tar           or by wildcards
https://host/pile             a folder elsewhere (also s3://, gs://, hf://), through fsspec
```
A tar from elsewhere is fetched when its blocks come up, checked against the index, and kept in
~/.cache/rewarm, which is kept below a size: what was not used for the longest time goes first.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from rewarm.data.shard_format import (
    MAX_INDEX_BYTES,
    ShardIndex,
    ShardInfo,
    parse_shard_index,
    read_shard_index,
)
from rewarm.errors import DataError
from rewarm.recipe.fields import URL_SCHEMES

Result = TypeVar("Result")
_CHUNK = 1 << 20
_PATTERN = re.compile(r"[{*?\[]")


class ShardSource:
    """The shards of one corpus: their index, and the way to each."""

    def __init__(
        self,
        said: str,
        *,
        cache_bytes: int = 64 * 10**9,
        attempts: int = 5,
        timeout: float = 60.0,
    ) -> None:
        """Reads the index.

        Args:
            said: a folder, a pattern of tars in one, or an address.
            cache_bytes: how large the cache of fetched tars may grow.
            attempts: how often a failed transfer is tried.
            timeout: seconds without a byte after which a transfer has failed.

        Raises:
            DataError: it is not there, cannot be read, or the pattern fits no tar.
        """
        self.said = said
        self._attempts, self._timeout, self._cache_bytes = attempts, timeout, cache_bytes
        folder, name = said.rstrip("/"), ""
        if _PATTERN.search(PurePosixPath(folder).name):
            folder, _, name = folder.rpartition("/")
        scheme, remote, _ = folder.partition("://")
        if remote and scheme not in URL_SCHEMES:
            raise DataError(
                f"{said}: {scheme}: cannot be read (there are: folders, {', '.join(URL_SCHEMES)})"
            )
        self._address = folder if remote else None
        if self._address:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            self._cache = root / "rewarm" / "shards"
            key = hashlib.sha256(self._address.encode()).hexdigest()[:16]
            self.folder = self._cache / key
            self.index = parse_shard_index(self._read("index.json"), f"{self._address}/index.json")
        else:
            self.folder = Path(folder or ".")
            self.index = read_shard_index(self.folder)
        if name:
            self.index = self._only(name)

    def __str__(self) -> str:
        return self.said

    def fetch(self, facts: ShardInfo) -> Path:
        """Returns the folder in which a tar lies now, having brought it there if need be.

        Raises:
            DataError: it is not there, or does not come whole.
        """
        target = self.folder / facts.name
        if self._address is None:
            return self.folder
        if target.is_file() and target.stat().st_size == facts.bytes:
            os.utime(target)
            return self.folder
        self._bring(facts.name, target, facts)
        self._make_room(target)
        return self.folder

    def tokenizer_folder(self) -> Path:
        """Returns a folder with the tokenizer.json that lies beside the index.

        Raises:
            DataError: it cannot be fetched.
        """
        target = self.folder / "tokenizer.json"
        if self._address and not target.is_file():
            self._bring("tokenizer.json", target, None)
        return self.folder

    def _only(self, pattern: str) -> ShardIndex:
        from braceexpand import braceexpand  # what webdataset expands its own names with

        try:
            wanted = list(braceexpand(pattern))
        except ValueError:
            raise DataError(f"{self.said}: its braces do not match") from None
        shards = []
        for one in wanted:
            found = [s for s in self.index.shards if fnmatch.fnmatchcase(s.name, one)]
            if not found:
                raise DataError(
                    f"{self.said}: no tar {one} in its index (there are "
                    f"{self.index.shards[0].name} to {self.index.shards[-1].name})"
                )
            shards += found
        return self.index.model_copy(update={"shards": shards})

    def _open(self, name: str) -> IO[bytes]:
        import fsspec

        options: dict[str, Any] = {}
        if str(self._address).startswith("http"):
            try:
                from aiohttp import ClientTimeout
            except ImportError:
                raise DataError(
                    f"{self._address}: reading it needs aiohttp: pip install 'rewarm[http]'"
                ) from None
            limit = ClientTimeout(sock_connect=self._timeout, sock_read=self._timeout)
            options = {"client_kwargs": {"timeout": limit}, "block_size": 0}
        try:
            opened: IO[bytes] = fsspec.open(f"{self._address}/{name}", "rb", **options).open()
        except ImportError as error:
            raise DataError(f"{self._address}: cannot be read: {error}") from None
        return opened

    def _read(self, name: str) -> bytes:
        def all_of(file: IO[bytes]) -> bytes:
            data = bytearray()
            while chunk := file.read(_CHUNK):
                data += chunk
                if len(data) > MAX_INDEX_BYTES:
                    raise DataError(
                        f"{self._address}/{name}: larger than {MAX_INDEX_BYTES:,} bytes; name a "
                        "folder that `rewarm shard` wrote"
                    )
            return bytes(data)

        return self._tried(name, all_of)

    def _bring(self, name: str, target: Path, facts: ShardInfo | None) -> None:
        partial = target.with_name(f"{name}.{os.getpid()}.partial")
        most = facts.bytes if facts else MAX_INDEX_BYTES

        def copy(file: IO[bytes]) -> None:
            digest, size = hashlib.sha256(), 0
            with partial.open("wb") as out:
                while chunk := file.read(_CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    if size > most:  # or a server could fill the disk
                        raise ConnectionError(f"more than {most:,} bytes came")
            if facts and size != facts.bytes:
                raise ConnectionError(f"{size:,} of {facts.bytes:,} bytes came")
            if facts and digest.hexdigest() != facts.sha256:
                raise ConnectionError("its sha256 is not the index's")

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._tried(name, copy)
            partial.rename(target)
        except OSError as error:
            raise DataError(f"{self._cache}: cannot be written: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)

    def _tried(self, name: str, use: Callable[[IO[bytes]], Result]) -> Result:
        """Returns what `use` makes of a file elsewhere; a transfer that fails is tried again."""
        where = f"{self._address}/{name}"
        reason = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(30.0, 0.5 * 2**attempt))
            try:
                with self._open(name) as file:
                    return use(file)
            except (FileNotFoundError, PermissionError) as error:
                raise DataError(f"{where}: {type(error).__name__}: {error}") from None
            except DataError:
                raise
            except Exception as error:  # every protocol has errors of its own
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise DataError(
            f"{where}: did not come in {self._attempts} attempts: {reason}; check the network, or "
            "copy the folder here and name it"
        )

    def _make_room(self, keep: Path) -> None:
        """Deletes what was not used for the longest time until the cache is small enough."""
        tars = sorted(self._cache.glob("*/*.tar"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in tars)
        for path in tars:
            if total <= self._cache_bytes:
                return
            if path != keep:  # one that is open stays readable: its map outlives its name
                total -= path.stat().st_size
                path.unlink(missing_ok=True)
