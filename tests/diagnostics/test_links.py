"""Connections from what nvidia-smi prints, and which speeds are a problem; no GPU is needed."""

import pytest

from rewarm.diagnostics.gpu import Device, TorchView
from rewarm.diagnostics.links import Links, count_connections, examine_links, measure_all_reduce

TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tSYS\tSYS\tPXB\t0-51\t0\tN/A
GPU1\tNV18\t X \tSYS\tSYS\tNODE\t0-51\t0\tN/A
GPU2\tSYS\tSYS\t X \tNV18\tSYS\t52-103\t1\tN/A
GPU3\tSYS\tSYS\tNV18\t X \tSYS\t52-103\t1\tN/A
NIC0\tPXB\tNODE\tSYS\tSYS\t X

Legend:

  X    = Self
"""


def test_connections_are_counted_by_pair():
    assert count_connections(TOPOLOGY) == {"NV18": 2, "SYS": 4}


def found(links):
    return [problem.found for problem in links.problems()]


def test_slow_and_failed_links_are_found():
    nvlink = {"NV18": 28}
    assert Links(nvlink, [], 370e9, None, []).problems() == []
    assert Links({"PHB": 1}, [], 11e9, None, []).problems() == []
    assert found(Links(nvlink, [], 12e9, None, [])) == ["an all-reduce reaches 12.0 GB/s"]
    assert found(Links({"PHB": 1}, [], 2e9, None, [])) == ["an all-reduce reaches 2.0 GB/s"]
    assert Links({"NV4": 2, "SYS": 4}, [], 12e9, None, []).problems() == []  # pairs, over PCIe
    failed = Links(None, [(0, 1)], None, "no answer within 90 s", [])
    assert found(failed) == ["an all-reduce over the visible GPUs failed: no answer within 90 s"]
    facts = Links(nvlink | {"SYS": 1}, [(0, 1)], 370e9, None, []).facts()
    assert facts["connection"] == "NV18 (28 pairs), SYS (1 pair)"
    assert facts["peer access"] == "not between 0-1"
    assert facts["all-reduce"] == "370.0 GB/s bus bandwidth (256 MB, fp32)"


def test_links_of_full_gpus_are_not_measured():
    free, full = (Device("H100", (9, 0), 80 * 10**9, n * 10**9, None) for n in (79, 1))
    links = examine_links(TorchView("2.11.0", "12.8", None, None, None, [], [free, full], []))
    assert links.facts()["all-reduce"] == "not measured: too little memory is free on GPU 1"
    assert links.problems() == []


def test_two_processes_measure_an_all_reduce():
    """With gloo, on this CPU, in the processes of link_speed.py."""
    assert 1e5 < measure_all_reduce(2, "gloo", 2**20) < 1e12


def test_why_an_all_reduce_failed_is_the_last_line_of_its_error():
    with pytest.raises(RuntimeError, match=r"^\w+: .*bogus"):
        measure_all_reduce(2, "bogus", 2**20)
