"""Triton's interpreter (TRITON_INTERPRET=1), which runs kernels on a CPU, and a mend to it."""

from __future__ import annotations

from typing import Any

import torch


def rounding() -> Any:
    """Returns what should stand in the place of `triton.runtime.interpreter._convert_float`.

    Triton 3.9's own forgets the carry when it rounds fp32 to 8 bits: 1.97 becomes 1, and not 2.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    kinds = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
    own = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if target not in kinds or source != tl.float32:
            return own(data, source, target, mode)
        found = torch.from_numpy(data.astype("float32", order="C")).to(kinds[target])
        return found.view(torch.uint8).numpy()

    return convert
