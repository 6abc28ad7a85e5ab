"""Several processes on one cache. Two descriptors of one process lock each other out as well."""

import contextlib
import errno
import fcntl
import logging
import os
import time

import pytest

from rewarm.download_cache import DownloadCache
from rewarm.errors import DataError
from rewarm.files import FileStamp

SIZE = 100


@pytest.fixture
def cache(tmp_path):
    """Returns a function that opens a file of a cache with room for two."""
    downloads = []

    def open_file(name, *, files=2):
        def download(path):
            downloads.append(name)
            path.write_bytes(bytes(SIZE))

        cache = DownloadCache(
            folder=tmp_path / "cache", evictable_files="*.tar", max_bytes=files * SIZE
        )
        return cache.open(tmp_path / "cache" / "pile" / name, SIZE, download)

    open_file.downloads = downloads
    return open_file


def cached_files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "pile").iterdir())


def test_the_least_recently_used_files_are_evicted(cache, tmp_path):
    for name in ("0.tar", "1.tar", "0.tar", "2.tar", "0.tar"):
        os.close(cache(name))
        time.sleep(0.01)
    assert cache.downloads == ["0.tar", "1.tar", "2.tar"]
    assert cached_files(tmp_path) == ["0.tar", "2.tar"]


def test_files_of_another_kind_are_not_evicted(cache, tmp_path):
    for name in ("tokenizer.json", "0.tar", "1.tar"):
        os.close(cache(name, files=1))
    assert cached_files(tmp_path) == ["1.tar", "tokenizer.json"]


def test_a_file_in_use_is_not_evicted(cache, tmp_path):
    in_use = [cache(name, files=1) for name in ("0.tar", "1.tar", "2.tar")]
    assert cached_files(tmp_path) == ["0.tar", "1.tar", "2.tar"]
    os.close(in_use.pop(1))
    in_use.append(cache("3.tar", files=1))
    assert cached_files(tmp_path) == ["0.tar", "2.tar", "3.tar"]
    for descriptor in in_use:
        os.close(descriptor)
    os.close(cache("1.tar", files=1))
    assert cached_files(tmp_path) == ["1.tar"]


@pytest.mark.parametrize("files_to_evict", [2, 0])
def test_a_full_disk_evicts_what_is_not_in_use(tmp_path, files_to_evict):
    cache = DownloadCache(folder=tmp_path / "cache", evictable_files="*.tar", max_bytes=9 * SIZE)
    folder = tmp_path / "cache" / "pile"
    capacity = 3

    def download(path):
        if len(list(folder.glob("*.tar"))) >= capacity:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(bytes(SIZE))

    in_use = [
        cache.open(folder / f"{number}.tar", SIZE, download)
        for number in range(capacity - files_to_evict)
    ]
    for number in range(files_to_evict):
        os.close(cache.open(folder / f"{number + 3}.tar", SIZE, download))
    if files_to_evict:
        os.close(cache.open(folder / "9.tar", SIZE, download))
        assert cached_files(tmp_path) == ["0.tar", "9.tar"]
    else:
        with pytest.raises(DataError, match="cache: cannot be written: No space left on device"):
            cache.open(folder / "9.tar", SIZE, download)
        assert cached_files(tmp_path) == ["0.tar", "1.tar", "2.tar"]
    for descriptor in in_use:
        os.close(descriptor)


def test_a_file_that_cannot_be_deleted_ends_no_run(cache, tmp_path, monkeypatch):
    os.close(cache("0.tar"))

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    os.close(cache("1.tar", files=1))
    assert {"0.tar", "1.tar"} <= set(cached_files(tmp_path))


@pytest.mark.parametrize("evictions", [3, 1000])
def test_a_file_that_is_deleted_before_it_is_opened_is_downloaded_again(
    cache, monkeypatch, evictions
):
    """Only another program does that: rewarm locks a file before it has its name."""
    from rewarm import download_cache

    os.close(cache("0.tar"))
    open_shared, opened = download_cache._open_shared, []

    def evict(path):
        opened.append(path)
        if len(opened) <= evictions:
            return None
        return open_shared(path)

    monkeypatch.setattr(download_cache, "_open_shared", evict)
    monkeypatch.setattr(download_cache, "_POLL_SECONDS", 0)
    if evictions == 3:
        os.close(cache("0.tar"))
        return
    with pytest.raises(DataError, match=r"0\.tar: deleted before it was opened, 100 times"):
        cache("0.tar")


def test_what_ended_processes_left_is_removed_and_counted(cache, tmp_path, caplog):
    os.close(cache("0.tar"))
    folder = tmp_path / "cache" / "pile"
    for name in ("1.tar.7.partial", "1.tar.8.partial", "2.tar.7.partial"):
        (folder / name).write_bytes(bytes(1000))
    (folder / "3.tar.lock").touch()
    with (folder / "2.tar.lock").open("w") as lock, caplog.at_level(logging.WARNING):
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.close(cache("4.tar", files=9))
        assert cached_files(tmp_path) == ["0.tar", "2.tar.7.partial", "2.tar.lock", "4.tar"]
    assert "partial downloads of ended processes removed: 2 (2,000 B)" in caplog.text
    os.close(cache("5.tar", files=9))
    assert cached_files(tmp_path) == ["0.tar", "4.tar", "5.tar"]


def test_where_there_are_no_locks_an_old_partial_file_is_removed(cache, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    os.close(cache("0.tar"))
    folder = tmp_path / "cache" / "pile"
    for name, age in (("1.tar.7.partial", 4000), ("2.tar.7.partial", 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    os.close(cache("3.tar", files=1))
    files = [name for name in cached_files(tmp_path) if not name.endswith(".lock")]
    assert files == ["2.tar.7.partial", "3.tar"]


def test_a_damaged_file_is_discarded_unless_it_was_replaced(cache, tmp_path):
    descriptor = cache("0.tar")
    damaged = FileStamp.of(os.fstat(descriptor))
    path = tmp_path / "cache" / "pile" / "0.tar"
    other = DownloadCache(folder=tmp_path / "cache", evictable_files="*.tar", max_bytes=0)
    other.discard(path, damaged)
    assert not path.exists()
    replacement = cache("0.tar")
    other.discard(path, damaged)
    assert path.exists()
    for opened in (descriptor, replacement):
        os.close(opened)


def test_a_truncated_copy_is_reported_and_downloaded_again(cache, tmp_path, caplog):
    path = tmp_path / "cache" / "pile" / "0.tar"
    os.close(cache("0.tar"))
    assert not caplog.records
    os.truncate(path, SIZE - 1)
    os.close(cache("0.tar"))
    assert path.stat().st_size == SIZE
    assert f"{path}: 99 bytes long in the download cache, and it should be 100" in caplog.text


def test_a_failed_download_leaves_nothing(tmp_path):
    def fail(path):
        path.write_bytes(b"half")
        raise DataError("no network")

    cache = DownloadCache(folder=tmp_path / "cache", evictable_files="*.tar", max_bytes=SIZE)
    with contextlib.suppress(DataError):
        cache.open(tmp_path / "cache" / "pile" / "0.tar", SIZE, fail)
    assert cached_files(tmp_path) == []
