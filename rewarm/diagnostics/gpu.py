"""The GPUs and their driver."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rewarm.diagnostics.finding import MachineProblem, run_command, run_module
from rewarm.quantities import format_bytes
from rewarm.safe_loading import parse_json

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The first driver branch that runs a major version of CUDA:
https://docs.nvidia.com/deploy/cuda-compatibility/"""

_TORCH_SECONDS = 60.0
SMI_SECONDS = 20.0
_MIN_FREE_SHARE = 0.8


@dataclass(frozen=True)
class Device:
    """A GPU that PyTorch may use; `error` if it cannot."""

    name: str
    capability: tuple[int, int]
    memory: int
    free_memory: int | None
    error: str | None

    def describe(self) -> str:
        """Returns one line."""
        memory = format_bytes(self.memory)
        state = self.error or f"{format_bytes(self.free_memory or 0)} of {memory} free"
        return f"{self.name}, {self.architecture}, {state}"

    @property
    def architecture(self) -> str:
        """The compute capability, as compilers name it: sm_90."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class TorchView:
    """What PyTorch was built with and sees; `cuda_error` is why it cannot use any GPU."""

    version: str
    cuda: str | None
    cudnn: str | None
    nccl: str | None
    cuda_error: str | None
    architectures: list[str]
    devices: list[Device]
    without_peer_access: list[tuple[int, int]]


@dataclass(frozen=True)
class Gpus:
    """The NVIDIA driver, None where there is none, and what PyTorch sees."""

    driver: str | None
    torch: TorchView

    def facts(self) -> dict[str, str]:
        """Returns versions, and a line for each GPU."""
        torch = self.torch
        facts = {
            "torch": f"{torch.version}, CUDA {torch.cuda or 'none'}, cuDNN "
            f"{torch.cudnn or 'none'}, NCCL {torch.nccl or 'none'}",
            "driver": self.driver or "no NVIDIA driver",
        }
        if not torch.devices:
            return facts | {"devices": "no GPU"}
        return facts | {f"GPU {i}": device.describe() for i, device in enumerate(torch.devices)}

    def problems(self) -> list[MachineProblem]:
        """Returns why GPUs cannot be used, or not fully."""
        if self.driver is None:
            return []
        if self.torch.cuda is None:
            return [
                MachineProblem(
                    f"PyTorch {self.torch.version} is built without CUDA, and the NVIDIA driver "
                    f"{self.driver} is present",
                    "a build of PyTorch with CUDA, or training uses the CPU",
                    "pip install --force-reinstall torch, with the index that "
                    "https://pytorch.org/get-started/locally/ names for your CUDA version",
                )
            ]
        if problem := _driver_problem(self.driver, self.torch.cuda):
            return [problem]
        if not self.torch.devices:
            reason = f": {self.torch.cuda_error}" if self.torch.cuda_error else ""
            return [
                MachineProblem(
                    f"NVIDIA driver {self.driver}, and PyTorch sees no GPU{reason}",
                    "at least one visible GPU",
                    "nvidia-smi; is CUDA_VISIBLE_DEVICES empty, did the batch job request GPUs, "
                    "was the container started with them (--gpus all)?",
                )
            ]
        return [
            problem
            for index, device in enumerate(self.torch.devices)
            for problem in _device_problems(index, device, self.torch)
        ]


def _driver_problem(driver: str, cuda: str) -> MachineProblem | None:
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if oldest is None or int(driver.partition(".")[0]) >= oldest:
        return None
    return MachineProblem(
        f"NVIDIA driver {driver}, and PyTorch is built for CUDA {cuda}",
        f"driver {oldest} or later for this CUDA version",
        "update the driver, or install a build of PyTorch for an older CUDA version: "
        "https://pytorch.org/get-started/locally/",
    )


def _device_problems(index: int, device: Device, torch: TorchView) -> list[MachineProblem]:
    problems = []
    if device.error:
        problems.append(
            MachineProblem(
                f"GPU {index} ({device.name}) cannot be used: {device.error}",
                "a GPU that memory can be allocated on",
                "nvidia-smi -q and dmesg (Xid errors); leave it out with CUDA_VISIBLE_DEVICES, "
                "and report it to whoever runs the machine",
            )
        )
    elif (device.free_memory or 0) < _MIN_FREE_SHARE * device.memory:
        problems.append(
            MachineProblem(
                f"GPU {index}: {format_bytes(device.free_memory or 0)} of "
                f"{format_bytes(device.memory)} are free: another process uses it",
                "a GPU of your own",
                "find the process with nvidia-smi, or choose other GPUs with CUDA_VISIBLE_DEVICES",
            )
        )
    if not _has_kernels(device.capability, torch.architectures):
        problems.append(
            MachineProblem(
                f"GPU {index} ({device.name}) is {device.architecture}, and PyTorch "
                f"{torch.version} is built for {', '.join(torch.architectures)}",
                "a build of PyTorch with kernels for this GPU",
                "install another build: https://pytorch.org/get-started/locally/",
            )
        )
    return problems


def _has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Returns whether machine code (sm) or PTX (compute) of PyTorch runs on a GPU.

    Machine code runs on GPUs of the same major and the same or a later minor version, PTX on all
    later ones; not known if the list is empty.
    """
    built_for = [re.fullmatch(r"(sm|compute)_(\d+)(\d)\w?", name) for name in architectures]
    for match in built_for:
        if match is None:
            return True
        built = (int(match[2]), int(match[3]))
        is_same_major = match[1] == "compute" or built[0] == capability[0]
        if built <= capability and is_same_major:
            return True
    return not built_for


def examine_gpus() -> Gpus:
    """Returns the driver, and the GPUs that PyTorch sees."""
    view = parse_json(run_module("torch_view", _TORCH_SECONDS).encode())
    devices = [
        Device(**device | {"capability": tuple(device["capability"])})
        for device in view.pop("devices")
    ]
    pairs = [(first, second) for first, second in view.pop("without_peer_access")]
    return Gpus(_driver_version(), TorchView(**view, devices=devices, without_peer_access=pairs))


def _driver_version() -> str | None:
    """Returns the driver's version from the kernel, or from nvidia-smi (as in WSL)."""
    module = Path("/proc/driver/nvidia/version")
    if module.exists():
        match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", module.read_text())
        return match[1] if match else "of an unknown version"
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return run_command(query, SMI_SECONDS).split()[0]
    except (OSError, RuntimeError, IndexError):  # installed on a machine without a driver
        return None
