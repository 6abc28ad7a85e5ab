"""What a process with PyTorch reports: here of its CPU, in the fields that `gpu` reads."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rewarm.diagnostics.gpu import TorchView, examine_gpus
from rewarm.diagnostics.torch_view import _dotted_cudnn_version, describe_torch


def test_the_process_prints_the_fields_of_a_torch_view():
    words = [sys.executable, "-m", "rewarm.diagnostics.torch_view"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    view = json.loads(ended.stdout)
    assert set(view) == {field.name for field in dataclasses.fields(TorchView)}
    assert view["version"] == torch.__version__
    assert view["cuda"] == torch.version.cuda
    assert len(view["devices"]) == torch.cuda.device_count()


def test_gpus_are_those_of_the_process():
    finding = examine_gpus()
    assert finding.torch.version == torch.__version__
    assert len(finding.torch.devices) == torch.cuda.device_count()


def test_cudnn_version_is_dotted():
    assert _dotted_cudnn_version(91002) == "9.10.2"
    assert _dotted_cudnn_version(None) is None


@pytest.fixture
def two_gpus(monkeypatch):
    """A PyTorch with two GPUs, the second of which fails when memory is allocated on it."""

    def memory(index: int) -> tuple[int, int]:
        if index == 1:
            raise RuntimeError("CUDA error: uncorrectable ECC error\nCompile with ...")
        return (84, 85)

    gpu = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=85)
    cuda = SimpleNamespace(
        init=lambda: None,
        device_count=lambda: 2,
        nccl=SimpleNamespace(version=lambda: (2, 27, 5)),
        get_arch_list=lambda: ["sm_90"],
        get_device_properties=lambda _: gpu,
        mem_get_info=memory,
        can_device_access_peer=lambda *_: False,
    )
    fake = SimpleNamespace(
        __version__="2.11.0+cu128",
        version=SimpleNamespace(cuda="12.8"),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91002)),
        distributed=SimpleNamespace(is_nccl_available=lambda: True),
        cuda=cuda,
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_every_gpu_is_described_although_one_is_broken(two_gpus):
    view = describe_torch()
    assert (view["nccl"], view["architectures"]) == ("2.27.5", ["sm_90"])
    first, second = view["devices"]
    assert (first["capability"], first["free_memory"], first["error"]) == ((9, 0), 84, None)
    assert (second["free_memory"], second["error"]) == (None, "CUDA error: uncorrectable ECC error")
    assert view["without_peer_access"] == [(0, 1)]


def test_why_no_gpu_can_be_used(two_gpus):
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    two_gpus.cuda.init = fail
    view = describe_torch()
    assert view["devices"] == []
    assert view["cuda_error"].startswith("The NVIDIA driver on your system is too old")
