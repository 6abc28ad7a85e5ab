"""The disk: which numbers are a problem, and those of this machine."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rewarm.diagnostics import disk
from rewarm.diagnostics.disk import Disk, examine_disk

DISK = Disk("/data", "lustre", 10**12, 10**13, 10**6, 5e8, True, None, "/home/u/.cache/rewarm")


def test_a_large_fast_disk_has_no_problem():
    assert DISK.problems() == []
    assert DISK.facts()["write speed"] == "500.00 MB/s, fsync included"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"free": 10**9}, "/data: 1.00 GB are free"),
        ({"free_inodes": 12}, "/data: 12 more files can be created"),
        ({"write_speed": 2e6}, "/data: 2.00 MB/s are written"),
        ({"can_lock": False}, "/data: files cannot be locked on lustre"),
        ({"file_system": "tmpfs"}, "/data is in memory (tmpfs)"),
        (
            {"error": "Read-only file system", "write_speed": None},
            "/data: nothing can be written: Read-only file system",
        ),
    ],
)
def test_what_is_wrong_is_found(changes, found):
    (problem,) = replace(DISK, **changes).problems()
    assert problem.found == found


def test_a_folder_of_this_machine(tmp_path):
    finding = examine_disk(tmp_path)
    assert finding.folder == str(tmp_path)
    assert finding.total == shutil.disk_usage(tmp_path).total
    assert finding.write_speed > 1e5
    assert finding.can_lock
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_yet_is_not_created(tmp_path):
    assert examine_disk(tmp_path / "runs" / "x").folder == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_reported():
    finding = examine_disk(Path("/proc/self"))
    assert finding.write_speed is None
    assert finding.error


def test_the_innermost_mount_names_the_file_system(tmp_path):
    mounts = f"""\
/dev/sda / ext4 rw 0 0
tmpfs {tmp_path.parent} tmpfs rw 0 0
server:/x {tmp_path}/with\\040space nfs4 rw 0 0
"""
    assert disk._file_system_type(tmp_path, mounts) == "tmpfs"
    assert disk._file_system_type(tmp_path / "with space" / "runs", mounts) == "nfs4"
    assert disk._file_system_type(Path("/var"), mounts) == "ext4"
