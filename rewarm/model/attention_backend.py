"""The backend of `scaled_dot_product_attention`: chosen by rewarm, and recorded as it ran.

```
 cuDNN (Hopper only) ──refused──> flash ──refused──> efficient ──refused──> math
```
Backends differ in speed and in the last bits. PyTorch's own order depends on its version, on
cuDNN's and on the GPU. A backend refuses what it cannot compute: all but the last two need half
precision. Flex attention, which separates documents on a GPU, is none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, _sdpa_kernel

BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Each backend's name; the ones below it are its fallbacks, in this order."""

_OPERATORS = {
    "cudnn_attention": "cuDNN",
    "flash_attention": "flash",
    "efficient_attention": "efficient",
    "attention_math": "math",
}
"""A part of the names of a backend's operators."""

_HOPPER = (9, 0)
_CUDNN_9_15_1 = 91501


def cudnn_version() -> int:
    """Returns the version of cuDNN, 91501 for 9.15.1; 0 where there is none."""
    cudnn: Any = torch.backends.cudnn  # its functions have no types
    return cudnn.version() or 0


def preferred_backend(capability: tuple[int, int], cudnn: int, *, deterministic: bool) -> str:
    """Returns the backend to try first on a GPU: `cuDNN` or `flash`.

    cuDNN is faster on Hopper, and not on A100 or L40S (github.com/huggingface/transformers,
    pull request 48163). Its backward pass is not deterministic. Before 9.15.1 it is faulty where
    the context is not a multiple of 128 (github.com/pytorch/pytorch, issue 169849).

    Args:
        capability: the GPU's compute capability.
        cudnn: the version of cuDNN, 0 where there is none.
        deterministic: whether only deterministic operations are allowed.
    """
    uses_cudnn = capability == _HOPPER and cudnn >= _CUDNN_9_15_1 and not deterministic
    return "cuDNN" if uses_cudnn else "flash"


def choose_backend(device: torch.device, *, deterministic: bool) -> None:
    """Sets the order of backends for this process; a CPU has only flash, then math."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        set_first_backend(
            preferred_backend(capability, cudnn_version(), deterministic=deterministic)
        )


def set_first_backend(first: str) -> None:
    """Lets attention use a backend, else those below it in `BACKENDS`, and no others.

    Layers that are compiled already keep theirs.
    """
    names = list(BACKENDS)
    # The public context manager would restore PyTorch's order. The backends above are disabled, not
    # only tried last: the first attention on a GPU may put cuDNN first again.
    _sdpa_kernel([BACKENDS[name] for name in names[names.index(first) :]], set_priority=True)
    # A compiled layer contains the operator of one backend, and PyTorch's compile caches ignore the
    # order that it was chosen by (github.com/pytorch/pytorch, issue 185449).
    tag = os.environ.get("TORCH_COMPILE_CACHE_KEY_TAG", "")
    torch.compiler.config.cache_key_tag = f"{tag} {first} attention first"


def observed_backend(run: Callable[[], object]) -> str | None:
    """Returns the backend whose operators ran during `run()`, and None if no such operator ran.

    Flex attention has none, and a compiled layer contains the matmuls and softmax of `math`.
    """
    profiler: Any = torch.autograd.profiler_legacy  # torch.profiler prints when it starts and stops
    with profiler.profile() as profile:
        run()
    operators = {event.name for event in profile.function_events}
    backends = [
        backend
        for part, backend in _OPERATORS.items()
        if any(part in operator for operator in operators)
    ]
    return " and ".join(backends) or None
