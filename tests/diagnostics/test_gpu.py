"""GPUs of an H100 server, as dataclasses; no GPU is needed."""

import re
from dataclasses import replace

import pytest

from rewarm.diagnostics import gpu
from rewarm.diagnostics.gpu import Device, Gpus, TorchView

H100 = Device("NVIDIA H100 80GB HBM3", (9, 0), 85_029_158_912, 84_000_000_000, None)
BUILD = TorchView("2.11.0+cu128", "12.8", "9.10.2", "2.27.5", None, ["sm_80", "sm_90"], [], [])


def server(driver="570.86.15", devices=(H100, H100), **build):
    return Gpus(driver, replace(BUILD, devices=list(devices), **build))


def found(finding):
    return [problem.found for problem in finding.problems()]


def test_a_healthy_server_has_no_problem():
    machine = server()
    assert machine.problems() == []
    assert machine.facts() == {
        "torch": "2.11.0+cu128, CUDA 12.8, cuDNN 9.10.2, NCCL 2.27.5",
        "driver": "570.86.15",
        "GPU 0": "NVIDIA H100 80GB HBM3, sm_90, 84.00 GB of 85.03 GB free",
        "GPU 1": "NVIDIA H100 80GB HBM3, sm_90, 84.00 GB of 85.03 GB free",
    }


def test_a_machine_without_a_gpu_is_not_a_problem():
    machine = server(driver=None, devices=(), cuda=None, cuda_error="not compiled with CUDA")
    assert machine.problems() == []
    assert machine.facts()["devices"] == "no GPU"


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (server(cuda=None, devices=()), r"built without CUDA, .* driver 570\.86\.15 is present"),
        (server(driver="470.82.01", devices=()), r"driver 470\.82\.01, .* built for CUDA 12\.8"),
        (server(cuda="13.0", driver="570.86.15"), r"driver 570\.86\.15, .* CUDA 13\.0"),
        (server(devices=(), cuda_error="No CUDA GPUs are available"), "sees no GPU: No CUDA GPUs"),
        (
            server(devices=(H100, Device("H100", (9, 0), 85, 85, "CUDA error: ECC"))),
            r"GPU 1 \(H100\) cannot be used: CUDA error: ECC",
        ),
        (
            server(devices=(Device("H100", (9, 0), 80 * 10**9, 12 * 10**9, None),)),
            r"GPU 0: 12\.00 GB of 80\.00 GB are free",
        ),
        (
            server(devices=(Device("Tesla P100", (6, 0), 16, 16, None),)),
            r"\(Tesla P100\) is sm_60, and PyTorch .* is built for sm_80, sm_90",
        ),
    ],
)
def test_what_is_wrong_is_found(machine, message):
    (problem,) = found(machine)
    assert re.search(message, problem), problem


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), ["sm_80", "sm_90"], True),  # the same major version, an earlier minor one
        ((8, 0), ["sm_86", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # PTX is compiled for later GPUs
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_100", "sm_120"], True),
        ((9, 0), [], True),
    ],
)
def test_which_builds_run_on_a_gpu(capability, architectures, runs):
    device = Device("GPU", capability, 10, 10, None)
    assert (server(devices=(device,), architectures=architectures).problems() == []) is runs


def test_the_driver_is_asked_from_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86.15\necho 570.86.15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu._driver_version() == "570.86.15"
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    assert gpu._driver_version() is None
