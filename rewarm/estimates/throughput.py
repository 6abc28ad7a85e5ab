"""How fast steps are taken, and where that is known from.

A table of what was measured, one line each. Another shape is reckoned at the same MFU (model FLOP/s
over the device's peak), which is said wherever its figure is shown.
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
    """A speed of training that was measured."""

    gpu: str
    """As `--gpu` calls it."""
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
    how: str

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


# `python benchmarks/step.py --model pythia-410m --microbatch 16` measures a line of it.
MEASURED_SPEEDS = (
    MeasuredSpeed(
        *("h100", "H100", 80 * 10**9, "pythia-410m", 16, 2048, "bf16", 174_000),
        "by a prototype of rewarm: plain kernels, compiled per layer, fused AdamW, one process",
    ),
)


class Speed(NamedTuple):
    """What is known of a run's speed on one device; seconds where nothing else is said."""

    step: float
    evaluated_per_second: float
    """Tokens, in an evaluation."""
    source: str
    """Where all this is known from."""
    start: float = 0.0
    """What is neither step, nor evaluation, nor save: imports, weights, compiling, leaving."""
    stall: float = 0.0
    """For which a save keeps training waiting."""
    save: float = 0.0
    """A whole save; the last one is waited for."""
    microbatch: int | None = None
    """What `microbatch: auto` came to."""
    memory: int | None = None
    """Bytes at the peak, where they were measured."""


SpeedOf = Callable[[Recipe, Architecture, int], Speed]
"""Says the speed of a recipe with a model of this shape, that evaluates on so many tokens."""


def measured_gpus() -> list[str]:
    """Returns the GPUs that something was measured on."""
    return list(dict.fromkeys(one.gpu for one in MEASURED_SPEEDS))


def gpu_memory(gpu: str) -> int:
    """Returns the bytes of a GPU in the table."""
    return next(one.memory for one in MEASURED_SPEEDS if one.gpu == gpu)


def speed_on_gpu(gpu: str) -> SpeedOf:
    """Returns what says speeds on a GPU in the table; see `on`."""
    return partial(speed_of_recipe, gpu)


def speed_of_recipe(gpu: str, recipe: Recipe, shape: Architecture, _evaluated: int = 0) -> Speed:
    """Returns a recipe's speed on a GPU in the table, from the measured model nearest in size.

    Raises:
        RecipeError: nothing was measured on it in the recipe's precision, with layers that are not
            compiled, with `memory: lean`, or with `deterministic: true`.
    """
    here = [one for one in MEASURED_SPEEDS if one.gpu == gpu]
    known = sorted({one.precision for one in here})
    unmeasured = ["not compiled"] * (not recipe.compile)
    unmeasured += ["memory: lean"] * (recipe.memory == "lean")
    unmeasured += ["deterministic"] * recipe.deterministic
    if recipe.precision not in known or unmeasured:
        how = ", ".join([recipe.precision, *unmeasured])
        raise RecipeError(
            [
                f"precision: no speed of {gpu} in {how} is known, only in {', '.join(known)}, "
                "compiled; measure it on such a machine (--measure), or see what the run would "
                f"take with --set precision={known[0]} --set compile=true --set memory=fast "
                "--set deterministic=false"
            ]
        )
    flops = shape.flops_per_token(recipe.data.context)
    best = min(
        (one for one in here if one.precision == recipe.precision),
        key=lambda one: abs(PRESETS[one.model].parameters - shape.parameters),
    )
    speed = best.flops_per_second / flops
    source = f"{speed:,.0f} tokens/s"
    setting = (PRESETS[best.model], best.microbatch, best.context)
    if (shape, recipe.batch.microbatch, recipe.data.context) != setting:
        source += (
            f", at an MFU of {best.mfu:.1%} that was not measured for this shape and microbatch: "
            f"it is that of {best.tokens_per_second:,.0f} tokens/s"
        )
    source += (
        f", {best.model} on one {gpu}, {best.microbatch} × {best.context:,} at once, measured "
        f"{best.how}"
    )
    return Speed(recipe.batch.tokens / speed, 3 * speed, source)
