"""The passes of a training step that move the most memory, each in plain PyTorch and in Triton.

```
               pytorch_reference.py             Triton, if it works
rotary         rotate, concatenate       ──>    rotate a quarter of q and k in place
norms          two layer norms           ──>    one mean and variance for both
mlp            bias, then GELU           ──>    both in one pass; backward, the bias's gradient too
cross_entropy  all logits in fp32        ──>    chunks of logits, turned into gradients in place
```
Kernels sum in an order that depends on shapes alone, without atomics, so the same run gives the
same bits; the amax of fp8 uses an atomic maximum, where order does not matter. They are called as
`torch.library` operators, so that a compiled layer stays one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rewarm.model.kernels import pytorch_reference
from rewarm.model.kernels.fp8 import pytorch_reference as fp8_reference


class Kernels(NamedTuple):
    """One function per pass; all implementations of a pass compute the same result."""

    rotary: Callable[[Tensor, nn.Linear, int, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    norms: Callable[[Tensor, nn.LayerNorm, nn.LayerNorm], tuple[Tensor, Tensor, Tensor]]
    linear_layer: Callable[[Tensor, nn.Linear], Tensor]
    mlp: Callable[[Tensor, nn.Linear, nn.Linear, str], Tensor]
    cross_entropy: Callable[[Tensor, nn.Linear, Tensor, str, float], Tensor]

    def without(self, *names: str) -> Kernels:
        """Returns these kernels with the named ones in plain PyTorch: `kernels.without("mlp")`."""
        return self._replace(**{name: getattr(PYTORCH_KERNELS, name) for name in names})


KERNEL_NAMES = Kernels._fields
"""The names by which kernels can be replaced one by one."""

PYTORCH_KERNELS = Kernels(
    pytorch_reference.rotary,
    pytorch_reference.norms,
    pytorch_reference.linear_layer,
    pytorch_reference.mlp,
    pytorch_reference.cross_entropy,
)


def triton_kernels() -> Kernels:
    """Returns all kernels in Triton.

    Raises:
        ImportError: Triton is not installed.
    """
    from rewarm.model.kernels import cross_entropy, gelu, layer_norm, rotary

    return Kernels(
        rotary.rotary,
        layer_norm.norms,
        pytorch_reference.linear_layer,
        gelu.mlp,
        cross_entropy.cross_entropy,
    )


def fp8_kernels(kernels: Kernels) -> Kernels:
    """Returns the kernels with a layer's linear layers in fp8, with the scales of `Fp8Scaling`.

    Each stays in plain PyTorch or in Triton; `linear_layer` is in Triton if any other kernel is.
    """
    fp8_linear: Any = fp8_reference
    if {kernels.rotary, kernels.norms, kernels.mlp} - set(PYTORCH_KERNELS):
        from rewarm.model.kernels.fp8 import linear as fp8_linear
    return kernels._replace(
        rotary=(fp8_reference if kernels.rotary is PYTORCH_KERNELS.rotary else fp8_linear).rotary,
        linear_layer=fp8_linear.linear_layer,
        mlp=(fp8_reference if kernels.mlp is PYTORCH_KERNELS.mlp else fp8_linear).mlp,
    )


def choose_kernels(setting: str, device: torch.device) -> tuple[Kernels, str]:
    """Returns the kernels for a device, and a note to append to the name of the device.

    Args:
        setting: `auto` (Triton on a GPU if it works, else plain PyTorch) or `plain`.
        device: the device of the model.
    """
    if setting == "plain" or device.type != "cuda":
        return PYTORCH_KERNELS, ""
    try:
        kernels = triton_kernels()
        _check_kernels_run(kernels, device)
    # Triton is missing, the GPU is too old for it, there is no C compiler, ...: any exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return (
            PYTORCH_KERNELS,
            f", with plain kernels, slower: Triton does not work here ({reason})",
        )
    return kernels, ", with Triton kernels"


def _check_kernels_run(kernels: Kernels, device: torch.device) -> None:
    """Runs one small kernel; a machine that compiles it compiles the others too.

    Raises:
        Exception: the kernel cannot be compiled or run, or its result is wrong.
    """
    with torch.no_grad():
        x = torch.arange(16.0, device=device).view(1, 2, 8)
        norm = nn.LayerNorm(8, device=device)  # draws no random numbers
        expected = PYTORCH_KERNELS.norms(x, norm, norm)
        torch.testing.assert_close(kernels.norms(x, norm, norm), expected)
