"""Compiles every kernel for a Hopper GPU, without one, as a training step launches it.

test_selection.py runs it in a process of its own, because it replaces the driver
by which Triton finds the GPU. Nothing is computed.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rewarm.model.architecture import Architecture
from rewarm.model.kernels.selection import triton_kernels
from rewarm.model.neox import NeoX, initialize_weights


class HopperDriver:
    """What Triton asks of a GPU's driver before it compiles for it."""

    def get_current_device(self):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_stream(self, device=0):
        return 0


compiled = []
original_run = JITFunction.run


def compile_only(self, *arguments, grid, warmup, **options):
    kernel = original_run(self, *arguments, grid=grid, warmup=True, **options)
    compiled.append(kernel)
    return kernel


SHAPES = [
    {"hidden": 1024, "heads": 16},
    {"hidden": 160, "heads": 2, "activation": "gelu_new"},  # heads of 80, as Pythia-2.8B's
    {"hidden": 128, "heads": 1},
]

if __name__ == "__main__":
    driver.set_active(HopperDriver())
    JITFunction.run = compile_only
    for shape in SHAPES:
        model = NeoX(Architecture(layers=1, vocabulary=96, positions=16, **shape))
        initialize_weights(model, 0)
        tokens = torch.zeros(2, 17, dtype=torch.long)
        for precision in ("bf16", "fp8"):
            model.configure(triton_kernels(), precision=precision)
            with torch.autocast("cpu", torch.bfloat16):
                model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    print(f"Triton {triton.__version__}")
    for kernel in compiled:
        assert ".target sm_90" in kernel.asm["ptx"]
        assert kernel.asm["cubin"]
        print(f"{kernel.metadata.name:24} {kernel.metadata.num_warps:2} warps")
