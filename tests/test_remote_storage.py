"""Files at a URL, downloaded from a real HTTP server that fails on demand."""

import hashlib
import http.server
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import pytest
from http_folder import FaultyServer, serve

from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError
from rewarm.files import FileStamp
from rewarm.remote_storage import RemoteFolder, is_url

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Returns a function that opens the served folder, with a cache for this test."""
    monkeypatch.setattr("rewarm.remote_storage._FIRST_WAIT_S", 0.01)
    (tmp_path / "served").mkdir()
    for number in range(4):
        (tmp_path / "served" / f"{number}.tar").write_bytes(CONTENT)
    (tmp_path / "served" / "index.json").write_text('{"a": 1}')
    with serve(tmp_path / "served") as url:

        def open_remote(**settings):
            return RemoteFolder(
                url=url,
                cache=tmp_path / "cache",
                evictable_files="*.tar",
                attempts=2,
                timeout=1.0,
                **settings,
            )

        yield open_remote


def fetch(remote, name, **expected):
    """Downloads a file, closes it, and returns its path."""
    os.close(remote.open(name, **({"size": len(CONTENT), "sha256": SHA256} | expected)))
    return remote.local_folder / name


def cached_files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_file_is_downloaded_once(remote, tmp_path):
    for _ in range(2):
        path = fetch(remote(), "0.tar")
        assert path.read_bytes() == CONTENT
    assert FaultyServer.requests == ["0.tar"]
    assert cached_files(tmp_path) == ["0.tar"]


def test_a_cached_file_keeps_its_stamp(remote):
    """Other processes that have it open would read all of it again."""
    stamps = []
    for _ in range(2):
        path = fetch(remote(), "0.tar")
        stamps.append(FileStamp.of(path.stat()))
        time.sleep(0.02)
    assert stamps[0] == stamps[1]


@pytest.mark.parametrize("fault", ["500", "cut", "stall"])
def test_a_failed_download_is_retried(remote, fault):
    FaultyServer.faults["0.tar"] = [fault]
    path = fetch(remote(), "0.tar")
    assert path.read_bytes() == CONTENT
    assert FaultyServer.requests == ["0.tar"] * 2


def test_a_server_that_restarts_does_not_end_a_download(remote, tmp_path, monkeypatch):
    """It is down for three seconds, at a tenth of the time."""
    monkeypatch.setattr("rewarm.remote_storage._FIRST_WAIT_S", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    restarted = replace(remote(), url=f"http://127.0.0.1:{port}", attempts=1)
    with pytest.raises(DataError, match="ConnectionRefusedError"):
        fetch(restarted, "0.tar")
    with ThreadPoolExecutor() as threads:
        download = threads.submit(fetch, replace(restarted, attempts=5), "0.tar")
        time.sleep(0.3)
        with serve(tmp_path / "served", port=port):
            assert download.result().read_bytes() == CONTENT


def refused():
    return ConnectionRefusedError(111, "Connect call failed")


class StatusError(Exception):
    def __init__(self, status):
        super().__init__(f"{status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "cause", "is_final"),
    [
        (FileNotFoundError("x"), None, True),  # s3fs, gcsfs
        (PermissionError("x"), None, True),
        (FileNotFoundError("x"), StatusError(404), True),  # of fsspec, caused by one of aiohttp
        (StatusError(403), None, True),
        (FileNotFoundError("x"), StatusError(503), False),
        (StatusError(429), None, False),
        (FileNotFoundError("x"), refused(), False),
        (FileNotFoundError("x"), socket.gaierror(-2, "Name or service not known"), False),
        (ConnectionResetError("x"), None, False),
        (ValueError("x"), None, False),
    ],
)
def test_only_the_answer_of_a_server_ends_a_download(remote, monkeypatch, error, cause, is_final):
    attempts = []

    def open_file(*_):
        attempts.append(1)
        raise error from cause

    monkeypatch.setattr(RemoteFolder, "_open", open_file)
    with pytest.raises(DataError, match=str(error)):
        remote().read("index.json", max_bytes=8)
    assert len(attempts) == (1 if is_final else 2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("404", "FileNotFoundError"), ("cut", "download failed after 2 attempts"), ("500", "500")],
)
def test_a_download_that_keeps_failing_is_named_and_leaves_nothing(
    remote, tmp_path, fault, message
):
    FaultyServer.faults["0.tar"] = [fault] * 9
    with pytest.raises(DataError, match=r"0\.tar") as error:
        fetch(remote(), "0.tar")
    assert message in str(error.value)
    assert cached_files(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "sha256", "message"),
    [
        (len(CONTENT), "0" * 64, f"its sha256 is {SHA256[:12]}, expected 000000000000"),
        (len(CONTENT) + 1, SHA256, "received 10,240 of 10,241 bytes"),
        (len(CONTENT) - 1, SHA256, "received more than 10,239 bytes"),
    ],
)
def test_a_file_that_is_not_as_expected_is_refused(remote, tmp_path, size, sha256, message):
    with pytest.raises(DataError, match=message):
        fetch(remote(), "0.tar", size=size, sha256=sha256)
    assert cached_files(tmp_path) == []


def test_a_small_file_is_read_without_the_cache(remote, tmp_path):
    assert remote().read("index.json", max_bytes=8) == b'{"a": 1}'
    assert not (tmp_path / "cache").exists()


def test_a_small_file_that_is_too_large_is_refused(remote, tmp_path):
    with pytest.raises(DataError, match=r"index\.json: larger than 7 bytes"):
        remote().read("index.json", max_bytes=7)
    with pytest.raises(DataError, match="received more than 7 bytes"):
        remote().fetch_unverified("index.json", max_bytes=7)
    assert cached_files(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(remote, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match="cache: cannot be written"):
        fetch(remote(), "0.tar")


def test_only_known_url_schemes_are_accepted():
    assert is_url("https://host/a")
    assert is_url("s3://bucket/a")
    assert not is_url("data/a")
    with pytest.raises(ValueError, match=r"ftp: cannot be read \(supported: local folders, http"):
        is_url("ftp://host/a")


def test_headers_and_client_settings_of_fsspecs_configuration_are_used(remote, monkeypatch):
    received = []

    def do_get(self):
        received.append((self.headers["Authorization"], self.headers["User-Agent"]))
        http.server.SimpleHTTPRequestHandler.do_GET(self)

    monkeypatch.setattr(FaultyServer, "do_GET", do_get)
    configured = {
        "headers": {"Authorization": "Bearer secret"},
        "client_kwargs": {"headers": {"User-Agent": "of the configuration"}},
    }
    monkeypatch.setitem(fsspec.config.conf, "http", configured)
    assert remote().read("index.json", max_bytes=100) == b'{"a": 1}'
    assert set(received) == {("Bearer secret", "of the configuration")}


@pytest.mark.parametrize("url", ["https://me:secret@host/pile", "gs://bucket/pile?token=secret"])
def test_shards_at_a_url_with_credentials_are_refused(url):
    with pytest.raises(
        DataError, match="should be a URL without user, password and query"
    ) as error:
        ShardSource(url)
    assert "secret" not in str(error.value)
