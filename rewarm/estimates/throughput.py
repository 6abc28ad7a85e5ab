"""Throughput: how fast a GPU takes steps, and where that is known from.

A table of what was measured, one entry each. Another model or microbatch is estimated at the same
MFU (model FLOP/s over the device's peak), which is stated wherever its figure is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from rewarm.errors import RecipeError
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.recipe.recipe import Recipe

# Dense bf16 matrix FLOP/s that the vendors state, by a part of the device's name.
_PEAK = {
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "GH200": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362.05e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def peak_flops(device_name: str) -> float | None:
    """Returns a device's dense bf16 FLOP/s by its name, or None where it is not known."""
    return next((peak for name, peak in _PEAK.items() if name in device_name), None)


class MeasuredSpeed(NamedTuple):
    """A training speed that was measured."""

    gpu: str
    """The name for `--gpu`."""
    device: str
    """A part of the device's name, with a peak above."""
    memory: int
    """Bytes that the vendor states."""
    model: str
    """A preset."""
    microbatch: int
    context: int
    precision: str
    tokens_per_second: float
    method: str

    @property
    def flops_per_second(self) -> float:
        """Model FLOP/s."""
        return self.tokens_per_second * PRESETS[self.model].flops_per_token(self.context)

    @property
    def mfu(self) -> float:
        """Model FLOP/s over the device's peak."""
        peak = peak_flops(self.device)
        assert peak
        return self.flops_per_second / peak


# `python benchmarks/training_step.py --model pythia-410m --microbatch 16` measures a line of it.
MEASURED_SPEEDS = (
    MeasuredSpeed(
        *("h100", "H100", 80 * 10**9, "pythia-410m", 16, 2048, "bf16", 174_000),
        "by a prototype of rewarm: plain kernels, compiled per layer, fused AdamW, one process",
    ),
)


class Speed(NamedTuple):
    """The speed of a run on one device; in seconds where no other unit is given."""

    step: float
    evaluated_per_second: float
    """Tokens, in an evaluation."""
    source: str
    """Where all this is known from."""
    start: float = 0.0
    """What is neither step, evaluation nor save: imports, weights, compiling, exiting."""
    stall: float = 0.0
    """How long training waits for a save."""
    save: float = 0.0
    """A whole save; the last one is waited for."""
    microbatch: int | None = None
    """What `microbatch: auto` became."""
    memory: int | None = None
    """Bytes at the peak, where they were measured."""


SpeedOf = Callable[[Recipe, Architecture, int], Speed]
"""Returns the speed of a recipe with a model of this architecture and evaluations of so many
tokens."""


def measured_gpus() -> list[str]:
    """Returns the GPUs that a speed was measured on."""
    return list(dict.fromkeys(measured.gpu for measured in MEASURED_SPEEDS))


def gpu_memory(gpu: str) -> int:
    """Returns the bytes of a GPU in the table."""
    return next(measured.memory for measured in MEASURED_SPEEDS if measured.gpu == gpu)


def speed_on_gpu(gpu: str) -> SpeedOf:
    """Returns a function that estimates speeds on a GPU in the table."""
    return partial(speed_of_recipe, gpu)


def speed_of_recipe(
    gpu: str, recipe: Recipe, architecture: Architecture, _evaluated: int = 0
) -> Speed:
    """Returns a recipe's speed on a GPU in the table, from the measured model nearest in size.

    Raises:
        RecipeError: nothing was measured on it in the recipe's precision, with layers that are not
            compiled, with `memory: lean`, or with `deterministic: true`.
    """
    on_gpu = [measured for measured in MEASURED_SPEEDS if measured.gpu == gpu]
    _check_measured(gpu, on_gpu, recipe)
    nearest = min(
        (measured for measured in on_gpu if measured.precision == recipe.precision),
        key=lambda measured: abs(PRESETS[measured.model].parameters - architecture.parameters),
    )
    speed = nearest.flops_per_second / architecture.flops_per_token(recipe.data.context)
    source = f"{speed:,.0f} tokens/s"
    setting = (PRESETS[nearest.model], nearest.microbatch, nearest.context)
    if (architecture, recipe.batch.microbatch, recipe.data.context) != setting:
        source += (
            f", at an MFU of {nearest.mfu:.1%} that was not measured for this architecture and "
            f"microbatch: it is that of {nearest.tokens_per_second:,.0f} tokens/s"
        )
    source += (
        f", {nearest.model} on one {gpu}, {nearest.microbatch} × {nearest.context:,} at once, "
        f"measured {nearest.method}"
    )
    return Speed(recipe.batch.tokens / speed, 3 * speed, source)


def _check_measured(gpu: str, on_gpu: list[MeasuredSpeed], recipe: Recipe) -> None:
    known = sorted({measured.precision for measured in on_gpu})
    unmeasured = ["not compiled"] * (not recipe.compile)
    unmeasured += ["memory: lean"] * (recipe.memory == "lean")
    unmeasured += ["deterministic"] * recipe.deterministic
    if recipe.precision not in known or unmeasured:
        settings = ", ".join([recipe.precision, *unmeasured])
        raise RecipeError(
            [
                f"precision: the speed of {gpu} in {settings} was not measured, only in "
                f"{', '.join(known)}, compiled; measure it on such a machine (--measure), or see "
                f"the cost with --set precision={known[0]} --set compile=true --set memory=fast "
                "--set deterministic=false"
            ]
        )
