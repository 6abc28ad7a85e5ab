"""Limits of control groups, in files as the kernel writes them."""

import pytest

from rewarm.diagnostics.cgroup import cpu_quota, memory_limit


@pytest.fixture
def machine(tmp_path):
    def write(group: str, **files: str):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(group)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def test_version_2_takes_the_lowest_limit_of_all_groups(machine):
    root = machine(
        "0::/slurm/job_7/step_0\n",
        **{
            "slurm/job_7/step_0/memory.max": "max\n",
            "slurm/job_7/memory.max": "64000000000\n",
            "slurm/memory.max": "128000000000\n",
            "slurm/job_7/cpu.max": "400000 100000\n",
            "slurm/job_7/step_0/cpu.max": "max 100000\n",
        },
    )
    assert memory_limit(root) == 64_000_000_000
    assert cpu_quota(root) == 4


def test_version_2_inside_a_container(machine):
    root = machine("0::/\n", **{"memory.max": "8000000000", "cpu.max": "150000 100000"})
    assert memory_limit(root) == 8_000_000_000
    assert cpu_quota(root) == 1.5


def test_version_1(machine):
    root = machine(
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
        **{
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/docker/abc/memory.limit_in_bytes": "16000000000",
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        },
    )
    assert memory_limit(root) == 16_000_000_000
    assert cpu_quota(root) == 2


def test_no_limit(machine):
    root = machine("0::/user.slice\n", **{"user.slice/memory.max": "max"})
    assert memory_limit(root) is None
    assert cpu_quota(root) is None
    assert memory_limit(root / "no-proc") is None
