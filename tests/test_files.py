import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rewarm import files
from rewarm.files import atomic_write, cache_dir, exchange, sync_to_disk, try_lock


def run_python(script, *arguments, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], text=True, **settings
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_created_and_replaced(tmp_path):
    path = tmp_path / "file.json"
    atomic_write(path, "old ×")
    atomic_write(path, "new ×")
    assert path.read_text(encoding="utf-8") == "new ×"
    assert names(tmp_path) == ["file.json"]


def test_file_and_folder_are_on_the_disk_in_this_order(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, type(tmp_path).rename
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (calls.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)),
    )
    monkeypatch.setattr(
        type(tmp_path), "rename", lambda a, b: (calls.append("rename"), rename(a, b))
    )
    path = tmp_path / "file.json"
    atomic_write(path, "new")
    assert calls == [f"{path}.{os.getpid()}.partial", "rename", str(tmp_path)]


@pytest.mark.parametrize("error", [OSError("disk is full"), KeyboardInterrupt()], ids=repr)
def test_an_error_before_the_rename_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    path = tmp_path / "file.json"
    atomic_write(path, "old")

    def fail(_):
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(type(error)):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_text_that_cannot_be_encoded_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_kill_between_write_and_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    script = """\
import os, signal, sys
from pathlib import Path
from rewarm.files import atomic_write
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
atomic_write(Path(sys.argv[1]), "new")
"""
    assert run_python(script, path).wait() == -signal.SIGKILL
    assert path.read_text() == "old"
    atomic_write(path, "newer")  # the partial file of the killed process does not matter
    assert path.read_text() == "newer"


def test_a_link_at_the_name_of_the_partial_file_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("untouched")
    path = tmp_path / "file.json"
    path.with_name(f"file.json.{os.getpid()}.partial").symlink_to(other)
    atomic_write(path, "new")
    assert (path.read_text(), other.read_text()) == ("new", "untouched")
    assert not path.is_symlink()


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "file.json", "new")
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "missing" / "lock")
    with pytest.raises(FileNotFoundError):
        sync_to_disk(tmp_path / "missing")


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path):
    path = tmp_path / "lock"
    script = """\
import sys
from pathlib import Path
from rewarm.files import try_lock
lock = try_lock(Path(sys.argv[1]))
print("locked" if lock else "refused", flush=True)
sys.stdin.read()
"""
    holder = run_python(script, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == "locked\n"
        assert try_lock(path) is None
    finally:
        holder.kill()
        holder.communicate()
    with try_lock(path) as lock:
        assert lock is not None
        assert try_lock(path) is None
        second = run_python(script, path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert second.communicate()[0] == "refused\n"
    released = try_lock(path)
    assert released is not None
    released.close()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("/scratch/cache", "/scratch/cache/rewarm"), ("", "/home/me/.cache/rewarm")],
)
def test_the_cache_directory_follows_xdg_cache_home(monkeypatch, setting, expected):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", setting)
    assert str(cache_dir()) == expected


def test_the_cache_directory_without_xdg_cache_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache_dir()) == "/home/me/.cache/rewarm"


@pytest.mark.parametrize("at_once", [True, False])
def test_two_folders_are_exchanged(tmp_path, monkeypatch, at_once):
    if not at_once:  # another system, which cannot
        monkeypatch.setattr(files.ctypes, "CDLL", lambda _: object())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["of b"], ["of a"])
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "missing")
    assert names(tmp_path) == ["a", "b"]
