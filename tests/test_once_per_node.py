"""The processes of one launch download each shard once and compute its sha256 once."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from http_folder import FaultyServer, serve
from shard_folders import flip_bit

from rewarm import once_per_node as module
from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.errors import DataError
from rewarm.once_per_node import once_per_node
from rewarm.reader_threads import ReadAbandonedError, ReaderThreads

PROCESSES = 4
SHARDS = ["00000.tar", "00001.tar", "00002.tar"]

# Starts processes as torchrun does, and waits for them.
LAUNCHER = f"""
import os, subprocess, sys
environment = os.environ | {{"LOCAL_WORLD_SIZE": "{PROCESSES}"}}
command = [sys.executable, "-c", *sys.argv[1:]]
processes = [subprocess.Popen(command, env=environment) for _ in range({PROCESSES})]
for process in processes:
    process.wait()
"""

# Opens and reads shards, and logs when it computes a sha256.
READER = f"""
import os, sys, time
from pathlib import Path
from rewarm.data.shard_format import Shard
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError

log, location, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
compute_sha256 = Shard._sha256

def write(*words):
    with log.open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

def logged_sha256(shard):
    write("hashes", shard.path.name, os.getpid())
    time.sleep(seconds)  # so that the others come while it is computed
    return compute_sha256(shard)

Shard._sha256 = logged_sha256
source = ShardSource(location, attempts=2)
write("ready")
while log.read_text().count("ready") % {PROCESSES}:
    time.sleep(0.005)
for number, shard_info in enumerate(source.index.shards):
    try:
        tokens = sum(map(len, source.open_shard(number)))
    except DataError as error:
        write("refuses", shard_info.name, error)
    else:
        assert tokens == shard_info.tokens
        write("reads", shard_info.name)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a launch that reads three shards of a folder or URL, and logs to `log`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "log").touch()
    launchers = []

    def start(location, seconds=0.1):
        shards = f"{location}/{{00000..00002}}.tar"
        arguments = [READER, str(tmp_path / "log"), shards, str(seconds)]
        launchers.append(subprocess.Popen([sys.executable, "-c", LAUNCHER, *arguments]))
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.wait(timeout=120)


def lines_of(tmp_path, event):
    """The words after an event, of each of its lines in the log."""
    lines = (tmp_path / "log").read_text().splitlines()
    return [line.split(maxsplit=2)[1:] for line in lines if line.startswith(event)]


def counts_of(tmp_path, event):
    return Counter(words[0] for words in lines_of(tmp_path, event))


def each_shard(count):
    return dict.fromkeys(SHARDS, count)


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def leftovers(tmp_path):
    """The names of locks and partial files in the cache."""
    files = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return [name for name in files if name.endswith((".lock", ".partial"))]


def test_a_local_shard_is_hashed_once_per_launch(start, tmp_path, corpora):
    for launches in (1, 2):  # a later launch trusts no earlier one
        assert start(corpora / "upstream" / "train").wait(timeout=120) == 0
        assert counts_of(tmp_path, "hashes") == each_shard(launches)
        assert counts_of(tmp_path, "reads") == each_shard(launches * PROCESSES)
    assert leftovers(tmp_path) == []


def test_a_remote_shard_is_downloaded_once_and_hashed_as_it_arrives(start, tmp_path, corpora):
    with serve(corpora) as url:
        start(f"{url}/upstream/train").wait(timeout=120)
        downloads = Counter(name for name in FaultyServer.requests if name.endswith(".tar"))
        assert downloads == each_shard(1)
        assert counts_of(tmp_path, "hashes") == {}
        assert counts_of(tmp_path, "reads") == each_shard(PROCESSES)
        start(f"{url}/upstream/train").wait(timeout=120)  # reads what the first launch downloaded
        assert len(FaultyServer.requests) == 2 * PROCESSES + len(SHARDS)  # with each index.json
        assert counts_of(tmp_path, "hashes") == each_shard(1)
    assert leftovers(tmp_path) == []


def test_every_process_finds_a_damaged_shard(start, tmp_path, corpora):
    folder = shutil.copytree(corpora / "upstream" / "train", tmp_path / "train")
    flip_bit(folder / "00001.tar")
    start(folder, seconds=0).wait(timeout=120)
    assert counts_of(tmp_path, "reads") == {"00000.tar": PROCESSES, "00002.tar": PROCESSES}
    refusals = lines_of(tmp_path, "refuses")
    assert len(refusals) == PROCESSES
    assert all("00001.tar: changed since it was written" in message for _, message in refusals)


def test_a_kill_while_a_shard_is_hashed_blocks_no_other_process(start, tmp_path, corpora):
    launcher = start(corpora / "upstream" / "train", seconds=0.5)
    wait_until(lambda: lines_of(tmp_path, "hashes"))
    os.kill(int(lines_of(tmp_path, "hashes")[0][1]), signal.SIGKILL)
    launcher.wait(timeout=120)
    assert counts_of(tmp_path, "hashes") == each_shard(1) | {"00000.tar": 2}
    assert counts_of(tmp_path, "reads") == each_shard(PROCESSES - 1)
    assert leftovers(tmp_path) == []


def test_a_kill_during_a_download_leaves_a_working_cache(start, tmp_path, corpora):
    with serve(corpora) as url:
        FaultyServer.faults["00000.tar"] = ["hang"]
        launcher = start(f"{url}/upstream/train")
        wait_until(lambda: "00000.tar" in FaultyServer.requests)
        (partial,) = (tmp_path / "cache").rglob("*.partial")
        os.kill(int(partial.name.split(".")[-2]), signal.SIGKILL)
        launcher.wait(timeout=120)
        downloads = Counter(name for name in FaultyServer.requests if name.endswith(".tar"))
    assert downloads == each_shard(1) | {"00000.tar": 2}
    assert counts_of(tmp_path, "reads") == each_shard(PROCESSES - 1)
    assert leftovers(tmp_path) == []


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Makes this process one of a launch; returns a function that makes it one of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def change(name):
        monkeypatch.setattr(module, "_launch", lambda: name)

    change("first")
    return change


@pytest.fixture
def hashed(monkeypatch):
    """The names of the shards whose sha256 is computed, in order."""
    names, compute_sha256 = [], Shard._sha256

    def counted(shard):
        names.append(shard.path.name)
        return compute_sha256(shard)

    monkeypatch.setattr(Shard, "_sha256", counted)
    return names


def test_a_shard_that_changes_after_it_was_verified_is_verified_again(
    launch, hashed, corpora, tmp_path
):
    folder = shutil.copytree(corpora / "upstream" / "train", tmp_path / "train")
    index = read_shard_index(folder)
    for _ in range(2):
        Shard(folder, index.shards[0], index.dtype)
    assert hashed == ["00000.tar"]
    launch("second")
    Shard(folder, index.shards[0], index.dtype)
    assert hashed == ["00000.tar"] * 2
    flip_bit(folder / "00000.tar")
    for _ in range(2):
        with pytest.raises(DataError, match="its sha256 differs from the index"):
            Shard(folder, index.shards[0], index.dtype)
    assert hashed == ["00000.tar"] * 4


def test_another_sha256_in_the_index_is_compared_again(launch, hashed, corpora):
    folder = corpora / "upstream" / "train"
    index = read_shard_index(folder)
    Shard(folder, index.shards[0], index.dtype)
    other = index.shards[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(DataError, match="its sha256 differs from the index"):
        Shard(folder, other, index.dtype)


def test_a_process_of_its_own_hashes_each_shard_and_records_nothing(
    launch, hashed, corpora, tmp_path
):
    launch(None)
    folder = corpora / "upstream" / "train"
    index = read_shard_index(folder)
    for _ in range(2):
        Shard(folder, index.shards[0], index.dtype)
    assert hashed == ["00000.tar"] * 2
    assert not (tmp_path / "cache").exists()


def test_without_local_processes_there_is_no_launch(monkeypatch):
    for size, expected in (("1", True), ("2", False)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", size)
        assert (module._launch.__wrapped__() is None) == expected


@pytest.mark.usefixtures("launch")
def test_records_are_removed_after_a_week(corpora, tmp_path):
    folder = corpora / "upstream" / "train"
    index = read_shard_index(folder)
    Shard(folder, index.shards[0], index.dtype)
    (record,) = (tmp_path / "cache" / "rewarm" / "verified").iterdir()
    os.utime(record, (1, 1))
    module._remove_old_records.cache_clear()
    Shard(folder, index.shards[1], index.dtype)
    records = list((tmp_path / "cache" / "rewarm" / "verified").iterdir())
    assert len(records) == 1
    assert records != [record]


def test_a_stop_ends_the_wait_for_another_process(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threads = ReaderThreads(1, "reader")
        waiting = threads.submit(once_per_node, tmp_path / "lock", lambda: False, lambda: True)
        time.sleep(0.1)
        assert not waiting.done()
        threads.close()
        with pytest.raises(ReadAbandonedError):
            waiting.result(timeout=1)


def test_after_an_error_the_next_one_does_the_work(tmp_path):
    lock = tmp_path / "cache" / "lock"
    with pytest.raises(ZeroDivisionError):
        once_per_node(lock, lambda: False, lambda: 1 / 0)
    assert not lock.exists()
    assert once_per_node(lock, lambda: False, lambda: True)
    assert not once_per_node(lock, lambda: False, lambda: False)


def test_work_that_is_done_when_the_lock_is_free_is_not_repeated(tmp_path):
    answers = iter([False, True])
    assert once_per_node(tmp_path / "lock", lambda: next(answers), lambda: pytest.fail("repeated"))


def test_the_lock_of_a_file_that_was_removed_counts_for_nothing(tmp_path, monkeypatch):
    """Its last holder removes it; a third process may hold the lock of the next file."""
    path, flock, locked = tmp_path / "lock", fcntl.flock, []

    def flock_of_a_removed_file(file, operation):
        flock(file, operation)
        if not locked:
            path.unlink()
            path.touch()
        locked.append(file)

    def work():
        with path.open("w") as file, pytest.raises(BlockingIOError):
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True

    monkeypatch.setattr(fcntl, "flock", flock_of_a_removed_file)
    assert once_per_node(path, lambda: False, work)
    assert len(locked) == 2


@pytest.mark.parametrize("problem", ["no locks", "no folder"])
def test_where_nothing_can_be_locked_each_process_works(tmp_path, monkeypatch, problem):
    if problem == "no folder":
        (tmp_path / "cache").touch()
    else:

        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    assert once_per_node(tmp_path / "cache" / "lock", lambda: False, lambda: True)
