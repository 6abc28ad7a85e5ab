"""Cores, memory, limits and compiler: which numbers are a problem, and those of this machine."""

import os
import resource
from dataclasses import replace

import pytest

from rewarm.diagnostics import host
from rewarm.diagnostics.host import Compiler, Cpu, Limits, Memory

GB = 10**9
CPU = Cpu("EPYC", installed=128, allowed=64, quota=None, load=1, omp_threads=8, gpus=8)
MEMORY = Memory(1000 * GB, 900 * GB, None, 500 * GB, 500 * GB, gpus=8)
LIMITS = Limits(1024, 1_048_576, None, ["mlx5_0"])


def remedies(finding):
    return [problem.remedy for problem in finding.problems()]


def test_a_healthy_server_has_no_problem():
    for finding in (CPU, MEMORY, LIMITS, Compiler("/usr/bin/gcc", "/usr/include/Python.h", 8)):
        assert finding.problems() == []


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"omp_threads": 65}, "export OMP_NUM_THREADS=64"),
        ({"omp_threads": None, "quota": 4.0, "gpus": 0}, "export OMP_NUM_THREADS=4"),
        ({"omp_threads": None, "quota": 0.5, "gpus": 0}, "export OMP_NUM_THREADS=1"),
        ({"allowed": 8}, "request more: --cpus-per-task in Slurm"),
    ],
)
def test_too_many_threads_or_gpus_for_the_cores(changes, remedy):
    (text,) = remedies(replace(CPU, **changes))
    assert text.startswith(remedy)


def test_a_quota_bounds_the_usable_cores():
    assert replace(CPU, quota=4.0).usable == 4
    assert replace(CPU, quota=100.0).usable == 64
    assert "limited to the time of 4 by the cgroup" in replace(CPU, quota=4.0).facts()["cores"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"limit": 16 * GB}, "16.00 GB of host memory, the cgroup's limit"),
        ({"available": 31 * GB}, "31.00 GB of host memory, what is available"),
        ({"available": GB // 2, "gpus": 0}, "500.00 MB of host memory, what is available"),
        ({"shared_total": 2**26}, "/dev/shm has 67.11 MB"),
    ],
)
def test_too_little_memory(changes, found):
    (problem,) = replace(MEMORY, **changes).problems()
    assert problem.found == found


def test_docker_s_shared_memory_is_enough_for_one_gpu():
    assert replace(MEMORY, shared_total=2**26, gpus=1).problems() == []


def test_low_limits():
    assert "ulimit -Hn" in remedies(replace(LIMITS, open_files_hard=1024))[0]
    assert "memlock=-1" in remedies(replace(LIMITS, locked_memory=65536))[0]
    assert replace(LIMITS, locked_memory=65536, infiniband=[]).problems() == []
    assert replace(LIMITS, open_files_hard=None).facts()["open files"] == (
        "1,024, can be raised to unlimited"
    )


def test_a_missing_compiler_matters_on_a_gpu_only():
    (problem,) = Compiler(None, None, 1).problems()
    assert problem.found == "not found: a C compiler and Python.h"
    assert Compiler(None, None, 0).problems() == []


def test_numbers_of_this_machine():
    cpu, memory, limits = host.examine_cpu(0), host.examine_memory(0), host.examine_limits()
    assert cpu.installed == os.sysconf("SC_NPROCESSORS_ONLN")
    assert cpu.allowed == len(os.sched_getaffinity(0))
    assert memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available <= memory.total
    assert 0 <= memory.shared_free <= memory.shared_total
    assert (limits.open_files, limits.open_files_hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_cc_names_the_compiler(monkeypatch, tmp_path):
    compiler = tmp_path / "my-cc"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert host.examine_compiler(0).command == str(compiler)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.examine_compiler(0).command is None
