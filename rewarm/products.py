"""Products of activations and weights, by whichever of torch's two CPU libraries is the faster.

torch multiplies fp32 matrices by MKL, which is less than half as fast as oneDNN on CPUs that are
not Intel's. What torch leaves to oneDNN is convolutions, and a product is one of 1 × 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

_PARTS = 16
"""Images that the rows are dealt to: with one thread, torch gives fewer than 16 not to oneDNN."""
_ROWS = 1024
"""Rows from which a convolution was the faster at every width that was measured."""


class Linear(nn.Linear):
    """`nn.Linear`, in name, numbers and gradients but for the order in which fp32 is summed."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ + b."""
        if BY_CONVOLUTION and x.device.type == "cpu" and x.dtype is torch.float32:
            rows = x.numel() // self.in_features
            # Under autocast the product is one of bf16, which torch gives to oneDNN anyway.
            half = torch.is_autocast_enabled("cpu")
            if rows >= _ROWS and rows % _PARTS == 0 and not half:
                return convolved(x, self.weight, self.bias)
        return super().forward(x)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x · Wᵀ + b as a 1 × 1 convolution of 16 images, which lie channels-last already."""
    images = x.reshape(_PARTS, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    out = functional.conv2d(images, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _by_convolution() -> bool:
    """Returns whether convolutions are this machine's faster products: the vendor decides.

    A measurement might decide otherwise tomorrow, and a resumed run would give other bits.
    """
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (has_mkl and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False


BY_CONVOLUTION = _by_convolution()
