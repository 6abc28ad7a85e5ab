"""Folders at URLs (https, s3, gs, hf), read through fsspec and a cache on this machine.

A failed download is retried, also if the server cannot be reached, or the size or sha256 of what it
sent is wrong; not if it answers that the file does not exist or may not be read.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

from rewarm.download_cache import DownloadCache
from rewarm.errors import DataError, hide_credentials
from rewarm.files import FileStamp, sync_to_disk
from rewarm.once_per_node import record_sha256
from rewarm.reader_threads import pause_reading

URL_SCHEMES = ("http", "https", "s3", "gs", "hf")
DEFAULT_CACHE_BYTES = 64 * 10**9

Result = TypeVar("Result")
_CHUNK = 1 << 20
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_TEMPORARY_STATUSES = (408, 425, 429)
"""HTTP's timeout, too early, too many requests: a later attempt may succeed."""


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


class RemoteFile(NamedTuple):
    """What a storage states about a file."""

    bytes: int
    version: str
    """What changes with its content: a digest, or the time of its last modification."""
    sha256: str | None


def list_files(url: str) -> dict[str, RemoteFile]:
    """Returns the files in a folder at a URL and in the folders there, by name, in order.

    The name is relative to the folder; it is empty if the URL is that of a file.

    Raises:
        DataError: the folder does not exist, is empty, or cannot be listed.
    """
    import fsspec

    try:
        storage, root = fsspec.core.url_to_fs(url)
        listed = storage.find(root, detail=True)
    except ImportError as error:
        raise DataError(f"{url}: cannot be read: {error}") from None
    except Exception as error:  # each protocol raises its own errors
        raise DataError(
            f"{url}: cannot be listed: {_describe(error)}; check the address and the network, or "
            "copy the folder to this machine and name its path"
        ) from None
    files = {path[len(root) :].strip("/"): info for path, info in sorted(listed.items())}
    if not files or any(".." in PurePosixPath(name).parts for name in files):
        raise DataError(f"{url}: no file there; check the address")
    return {name: _remote_file(info) for name, info in files.items()}


def _remote_file(info: Mapping[str, Any]) -> RemoteFile:
    sha256 = (info.get("lfs") or {}).get("sha256")  # of the hub's large files
    version = sha256 or next(
        (info[key] for key in ("blob_id", "ETag", "etag", "mtime") if info.get(key)), ""
    )
    return RemoteFile(info["size"], str(version), sha256)


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

    def open(self, name: str, *, size: int, sha256: str) -> int:
        """Returns the descriptor of a file in the cache, which is downloaded if it is not there.

        The file stays in the cache until the descriptor is closed. A download is verified, a file
        that was already there is not.

        Raises:
            DataError: the file is missing, its size or sha256 is wrong, the download failed, or
                the cache cannot be read or written.
        """
        download = partial(self._download, name, max_bytes=size, sha256=sha256)
        return self._download_cache.open(self.local_folder / name, size, download)

    def fetch_unverified(self, name: str, *, max_bytes: int) -> Path:
        """Returns the path in the cache of a file whose size and sha256 are not known in advance.

        Raises:
            DataError: the file is missing or larger than `max_bytes`, the download failed, or the
                cache cannot be read or written.
        """
        path = self.local_folder / name
        download = partial(self._download, name, max_bytes=max_bytes, sha256=None)
        os.close(self._download_cache.open(path, None, download))
        return path

    def discard(self, name: str, damaged: FileStamp) -> None:
        """Deletes a damaged file in the cache, unless another process has already replaced it."""
        self._download_cache.discard(self.local_folder / name, damaged)

    @property
    def _download_cache(self) -> DownloadCache:
        return DownloadCache(
            folder=self.cache, evictable_files=self.evictable_files, max_bytes=self.cache_bytes
        )

    def _download(self, name: str, path: Path, *, max_bytes: int, sha256: str | None) -> None:
        """Downloads a file to `path`, and verifies it if `sha256` is given."""

        def copy(file: IO[bytes]) -> None:
            out.seek(0)
            out.truncate()
            digest, size = hashlib.sha256(), 0
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

        with path.open("wb") as out:
            self._with_retries(name, copy)
        sync_to_disk(path)
        if sha256 is not None:
            record_sha256(FileStamp.of(path.stat()), sha256)

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
            except DataError:
                raise
            except Exception as error:  # each protocol raises its own errors
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if _is_final(error):
                    raise DataError(f"{location}: {_describe(error)}") from None
                reason = _describe(error)
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


def _is_final(error: BaseException) -> bool:
    """Returns whether a server answered that a file does not exist, or may not be read.

    fsspec raises FileNotFoundError also if the server cannot be reached: then an error of the
    network is among its causes.
    """
    causes = list(_causes(error))
    for status in filter(None, map(_http_status, causes)):
        return 400 <= status < 500 and status not in _TEMPORARY_STATUSES
    missing = (FileNotFoundError, PermissionError)
    return isinstance(error, missing) and not any(
        isinstance(cause, OSError) and not isinstance(cause, missing) for cause in causes
    )


def _describe(error: BaseException) -> str:
    """Returns an error and the first of those that caused it."""
    *_, first = _causes(error)
    parts = [f"{type(part).__name__}: {part}".rstrip(": ") for part in (error, first)]
    return ": ".join(dict.fromkeys(parts))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and those that it was raised from or after."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _http_status(error: BaseException) -> int | None:
    """Returns the status in an error of aiohttp, requests or httpx, else None."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None
