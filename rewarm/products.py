"""Products of activations and weights, by whichever of torch's two CPU libraries is the faster.

torch multiplies fp32 matrices by MKL, which is less than half as fast as oneDNN on CPUs that are
not Intel's. What torch leaves to oneDNN is convolutions, and a product is one of 1 × 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


class Linear(nn.Linear):
    """`nn.Linear`, in name, numbers and gradients but for the order in which fp32 is summed."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns x · Wᵀ + b."""
        if x_BTD.device.type == "cpu" and x_BTD.dtype is torch.float32 and BY_CONVOLUTION:
            return convolved(x_BTD, self.weight, self.bias)
        return super().forward(x_BTD)


def convolved(x_BTD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x · Wᵀ + b as a 1 × 1 convolution; (B, T, D) lies as its channels-last wants it."""
    image = x_BTD.unsqueeze(1).permute(0, 3, 1, 2)
    return functional.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).squeeze(1)


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
