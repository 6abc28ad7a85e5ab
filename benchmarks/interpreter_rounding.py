"""Rounds to 8 bits correctly in Triton's interpreter (TRITON_INTERPRET=1), which runs kernels on a
CPU."""

from __future__ import annotations

from typing import Any

import torch


def rounding() -> Any:
    """Returns a replacement for `triton.runtime.interpreter._convert_float`.

    Triton 3.9's own loses the carry when it rounds fp32 to 8 bits: 1.97 becomes 1 instead of 2.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    torch_dtypes = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
    original = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if target not in torch_dtypes or source != tl.float32:
            return original(data, source, target, mode)
        rounded = torch.from_numpy(data.astype("float32", order="C")).to(torch_dtypes[target])
        return rounded.view(torch.uint8).numpy()

    return convert
