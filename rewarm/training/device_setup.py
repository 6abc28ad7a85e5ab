"""The device that a process computes on: its precision, determinism, memory and description."""

from __future__ import annotations

import platform
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch

from rewarm.freed_memory import keep_freed_blocks
from rewarm.model.attention_backend import choose_backend, cudnn_version
from rewarm.version import __version__


def find_device() -> torch.device:
    """Returns the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Returns the common name of a device: `NVIDIA H200`, `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def cpu_threads(device: torch.device) -> int | None:
    """Returns how many threads compute on a CPU; None on a GPU, whose results need none.

    They divide sums among them, so the last bits of a result depend on their number.
    """
    return torch.get_num_threads() if device.type == "cpu" else None


def describe_environment(device: torch.device, attention: str) -> dict[str, str]:
    """Returns the versions, device and attention that a run's numbers may depend on."""
    threads = cpu_threads(device)
    return {
        "device": device_name(device) + (f", {threads} threads" if threads else ""),
        "attention": attention,
        "rewarm": __version__,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "cuDNN": str(cudnn_version() or "none"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which forward passes run at this precision."""
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
    return torch.autocast(device.type, halves.get(precision), enabled=precision in halves)


def set_up_device(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Sets how a GPU computes from here on; a CPU has no such choices.

    All are set either way: PyTorch keeps them for the process, and an earlier run may have set
    them differently. The order of attention's backends follows from the GPU.

    Args:
        device: where a run starts, with nothing computed yet.
        tf32: whether fp32 matmuls round their operands to TF32.
        deterministic: whether only operations are used that give the same bits each time. Of those
            in a step, only attention's backward pass does not by itself.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # The compiler recommends TF32; whoever wants it has set `tf32`.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    choose_backend(device, deterministic=deterministic)
    torch.use_deterministic_algorithms(deterministic)
    # It would also fill all new memory, which is a pass over each tensor.
    settings: Any = torch.utils.deterministic  # its declared type lacks this attribute
    settings.fill_uninitialized_memory = False


def keep_freed_memory(*, layers_are_gathered: bool = False) -> None:
    """Makes glibc keep large freed blocks: on a CPU, logits are allocated and freed at every step.

    Returning them to the system and clearing them again cost 35 to 80 % of the speed of a small
    model on two cores.

    Args:
        layers_are_gathered: whether weights are divided among processes. Large blocks are returned
            then: smaller ones would take parts of a freed layer, so that the next layer needs new
            memory. A process with half of 85 million parameters took 2.1 GB instead of 0.6.
    """
    keep_freed_blocks(2**20 if layers_are_gathered else 2**30)
