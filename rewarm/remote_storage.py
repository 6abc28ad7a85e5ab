"""Folders at URLs (https, s3, gs, hf), read through fsspec and a local cache of bounded size.

A failed download is retried, also if its size or sha256 is wrong. Of the processes on a node, one
downloads a file, and the others wait for it. If the cache grows too large, the least recently used
files are deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from rewarm.errors import DataError, hide_credentials
from rewarm.files import FileStamp, sync_to_disk
from rewarm.once_per_node import once_per_node, record_sha256
from rewarm.reader_threads import pause_reading

URL_SCHEMES = ("http", "https", "s3", "gs", "hf")
DEFAULT_CACHE_BYTES = 64 * 10**9

Result = TypeVar("Result")
_CHUNK = 1 << 20
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_ABANDONED_S = 3600.0
"""Seconds without any data received after which a partial file belongs to no process."""


def is_url(address: str) -> bool:
    """Returns whether an address is a URL; False for a path on this machine.

    Raises:
        ValueError: the URL's scheme is not supported.
    """
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in URL_SCHEMES:
        raise ValueError(
            f"{scheme}: cannot be read (supported: local folders, {', '.join(URL_SCHEMES)})"
        )
    return bool(separator)


def check_no_credentials(address: str) -> None:
    """Checks that an address is not a URL with a user, a password or a query such as `?token=...`.

    Recipes are copied into checkpoints and reports, and with them every address.

    Raises:
        ValueError: it is one; the message does not contain the address.
    """
    if hide_credentials(address) != address:
        raise ValueError(
            "should be a URL without user, password and query, since recipes are copied into "
            "checkpoints and reports; give credentials in the environment, or in fsspec's "
            "configuration (docs/data.md, Credentials)"
        )


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A folder at a URL, and its copy in a cache on this machine.

    Several folders may share a cache: each has its own subfolder, and `cache_bytes` limits their
    total size.
    """

    url: str
    cache: Path
    """Directory of the cache, under `rewarm.files.cache_dir()`."""
    evictable_files: str
    """Pattern of the file names that may be deleted if the cache is too large: `*.tar`."""
    cache_bytes: int = DEFAULT_CACHE_BYTES
    attempts: int = 5
    """Maximum number of attempts per download."""
    timeout: float = 60.0
    """Seconds without any data received after which an attempt fails."""

    @property
    def local_folder(self) -> Path:
        """The cache's subfolder for this URL."""
        return self.cache / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Returns the content of a small file without caching it.

        Raises:
            DataError: the file is missing or larger than `max_bytes`, or the download failed.
        """

        def read_all(file: IO[bytes]) -> bytes:
            data = bytearray()
            while chunk := file.read(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise DataError(
                        f"{self.url}/{name}: larger than {max_bytes:,} bytes; check the URL"
                    )
            return bytes(data)

        return self._with_retries(name, read_all)

    def fetch(self, name: str, *, size: int, sha256: str) -> Path:
        """Returns the path of a file in the cache; downloads and verifies it if it is not there.

        Raises:
            DataError: the file is missing, its size or sha256 is wrong, the download failed, or
                the cache cannot be written.
        """
        target = self.local_folder / name

        def is_cached() -> bool:
            try:
                return target.stat().st_size == size
            except OSError:
                return False

        def download() -> bool:
            self._download(name, target, max_bytes=size, sha256=sha256)
            self._evict_least_recently_used(keep=target)
            return True

        once_per_node(_lock_of(target), is_cached, download)
        with contextlib.suppress(FileNotFoundError):  # another process evicted it
            # Eviction goes by the access time: a new modification time would mean other content.
            os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        return target

    def fetch_unverified(self, name: str, *, max_bytes: int) -> Path:
        """Returns the path in the cache of a file whose size and sha256 are not known in advance.

        Raises:
            DataError: the file is missing or larger than `max_bytes`, the download failed, or the
                cache cannot be written.
        """
        target = self.local_folder / name

        def download() -> bool:
            self._download(name, target, max_bytes=max_bytes, sha256=None)
            return True

        once_per_node(_lock_of(target), target.is_file, download)
        return target

    def _download(self, name: str, target: Path, *, max_bytes: int, sha256: str | None) -> None:
        """Downloads a file to `target`, and verifies it if `sha256` is given."""
        partial = target.with_name(f"{name}.{os.getpid()}.partial")

        def copy(file: IO[bytes]) -> None:
            digest, size = hashlib.sha256(), 0
            with partial.open("wb") as out:
                while chunk := file.read(_CHUNK):
                    pause_reading(0)
                    out.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    if size > max_bytes:  # otherwise a server could fill the disk
                        raise ConnectionError(f"received more than {max_bytes:,} bytes")
            if sha256 is None:
                return
            if size != max_bytes:
                raise ConnectionError(f"received {size:,} of {max_bytes:,} bytes")
            if digest.hexdigest() != sha256:
                raise ConnectionError(
                    f"its sha256 is {digest.hexdigest()[:12]}, expected {sha256[:12]}"
                )

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._with_retries(name, copy)
            sync_to_disk(partial)
            if sha256 is not None:
                record_sha256(FileStamp.of(partial.stat()), sha256)
            partial.rename(target)
        except OSError as error:
            raise DataError(f"{self.cache}: cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _with_retries(self, name: str, read_from: Callable[[IO[bytes]], Result]) -> Result:
        """Returns `read_from(file)`; opens the file again after a failed transfer."""
        location = f"{self.url}/{name}"
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                pause_reading(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1)))
            try:
                with self._open(location) as file:
                    return read_from(file)
            except (FileNotFoundError, PermissionError) as error:
                raise DataError(f"{location}: {type(error).__name__}: {error}") from None
            except DataError:
                raise
            except Exception as error:  # each protocol raises its own errors
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise DataError(
            f"{location}: download failed after {self.attempts} attempts: {reason}; check the "
            "network, or copy the folder to this machine and name its path"
        )

    def _open(self, location: str) -> IO[bytes]:
        import fsspec

        options: dict[str, Any] = {}
        if location.startswith("http"):
            try:
                from aiohttp import ClientTimeout
            except ImportError:
                raise DataError(
                    f"{self.url}: reading it needs aiohttp: pip install 'rewarm[http]'"
                ) from None
            limit = ClientTimeout(sock_connect=self.timeout, sock_read=self.timeout)
            scheme = location.partition(":")[0]
            configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
            options = {"client_kwargs": {**configured, "timeout": limit}, "block_size": 0}
        try:
            opened: IO[bytes] = fsspec.open(location, "rb", **options).open()
        except ImportError as error:
            raise DataError(f"{self.url}: cannot be read: {error}") from None
        return opened

    def _evict_least_recently_used(self, *, keep: Path) -> None:
        """Deletes the least recently used files until the cache is within its limit."""
        for path, status in _statuses(self.cache.glob("*/*.partial")).items():
            if status.st_mtime < time.time() - _ABANDONED_S:  # its process was killed
                path.unlink(missing_ok=True)
        files = _statuses(self.cache.glob(f"*/{self.evictable_files}"))
        total = sum(status.st_size for status in files.values())
        for path, status in sorted(files.items(), key=lambda item: item[1].st_atime_ns):
            if total <= self.cache_bytes:
                return
            if path != keep:  # an open file stays readable after it is deleted
                total -= status.st_size
                path.unlink(missing_ok=True)


def _lock_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _statuses(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Returns the status of each file that exists: other processes may remove some."""
    statuses = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            statuses[path] = path.stat()
    return statuses
