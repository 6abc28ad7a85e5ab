"""Finds how many sequences a GPU runs at once, for `batch.microbatch: auto`.

```
 microbatch: auto ── recorded by this run ──> remembered on this machine ──> searched by trial steps
```
The number is written into the run's own recipe: how a gradient is split into parts changes its last
bits, so a resume uses the number that the run was started with.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from rewarm.errors import RecipeError
from rewarm.estimates.memory import estimate_recipe_memory
from rewarm.files import atomic_write, cache_dir
from rewarm.model.architecture import Architecture
from rewarm.model.kernels.fp8.scaling import check_fp8_device
from rewarm.model.kernels.selection import PYTORCH_KERNELS, Kernels, choose_kernels
from rewarm.model.neox import NeoX
from rewarm.recipe.batch_split import divisors, microbatch_on_cpu
from rewarm.recipe.recipe import Recipe
from rewarm.runs.resolve_run import ResolvedRun
from rewarm.safe_loading import read_json
from rewarm.training.device_setup import autocast, device_name, find_device
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass
from rewarm.training.processes import ALONE, Processes

_USABLE_MEMORY = 0.95
"""The share of the free memory that a step may use: the rest is lost to fragmentation."""
_ESTIMATED_MEMORY = 0.85
"""The share that it may use by arithmetic alone, which leaves NCCL's buffers out."""


def resolve_microbatch(
    resolved: ResolvedRun, processes: Processes = ALONE
) -> tuple[ResolvedRun, list[str]]:
    """Returns a run whose recipe has a number for `microbatch: auto`, and what to print about it.

    On a CPU it follows from the batch alone: see `microbatch_on_cpu`. On a GPU it is the largest
    with which a step was seen to fit in memory, on each GPU of a run; where the weights are divided
    among GPUs, the largest that fits by arithmetic.

    Raises:
        RecipeError: not even one sequence fits.
    """
    recipe = resolved.recipe
    if recipe.batch.microbatch is not None:
        return resolved, []
    device = find_device()
    if resolved.resume_state and resolved.resume_state.microbatch:
        microbatch, source = resolved.resume_state.microbatch, "as the run was started"
    elif device.type == "cpu":
        microbatch = microbatch_on_cpu(recipe.sequences_per_step, recipe.data.context)
        source = "the rule for a CPU"
    else:
        assert resolved.architecture
        if recipe.parallel.shard_size(processes.size) > 1:
            microbatch, source = _estimated(recipe, resolved.architecture, device, processes.size)
        else:
            microbatch, source = _remembered_or_searched(recipe, resolved.architecture, device)
    microbatch = min(processes.gather(microbatch))
    at_most = "at most " if processes.size > 1 else ""
    tokens = f"{at_most}{microbatch} × {recipe.data.context:,} tokens at once"
    line = f"batch   {tokens} (auto: {source})"
    return resolved.with_recipe(recipe.with_microbatch(microbatch)), [line]


def largest_that_fits(
    choices: Sequence[int], guess: int, fits: Callable[[int], bool]
) -> int | None:
    """Returns the largest choice that fits, searched from a guess; None where none does.

    Whatever is smaller than a choice that fits is assumed to fit too.
    """
    index = choices.index(guess)
    if fits(choices[index]):
        while index + 1 < len(choices) and fits(choices[index + 1]):
            index += 1
        return choices[index]
    while index > 0:
        index -= 1
        if fits(choices[index]):
            return choices[index]
    return None


def _remembered_or_searched(
    recipe: Recipe, architecture: Architecture, device: torch.device
) -> tuple[int, str]:
    """Returns a number that fits on such a device, and where it is known from."""
    if recipe.precision == "fp8":
        check_fp8_device(device)
    name, choices = device_name(device), divisors(recipe.sequences_per_step)
    key, path = _cache_key(recipe, architecture, name), cache_dir() / "microbatch.json"
    remembered = _read_cache(path)
    if (microbatch := remembered.get(key)) in choices:
        return microbatch, f"it fitted {name} before, says {path}"
    gc.collect()
    torch.cuda.empty_cache()  # of an earlier run in this process
    free = int(_USABLE_MEMORY * torch.cuda.mem_get_info(device)[0])
    kernels, _ = choose_kernels(recipe.kernels, device)
    largest = largest_that_fits(
        choices,
        _largest_estimated(recipe, architecture, free, kernels) or choices[0],
        lambda n: _fits(recipe, architecture, n, device, free, kernels),
    )
    if largest is None:
        raise _nothing_fits(recipe, free, name)
    _write_cache(path, remembered | {key: largest})
    return largest, f"the largest that fits {name}"


def _cache_key(recipe: Recipe, architecture: Architecture, device: str) -> str:
    """Returns everything that decides how many sequences fit, as one string."""
    settings = [recipe.precision, "compiled" if recipe.compile else "eager", recipe.data.documents]
    settings += [recipe.kernels, recipe.memory, str(recipe.deterministic)]
    settings += [] if recipe.optimizer.ema is None else ["average"]
    sizes = [architecture.model_dump(), device, recipe.data.context]
    return json.dumps([*sizes, *settings, recipe.sequences_per_step])


def _estimated(
    recipe: Recipe, architecture: Architecture, device: torch.device, gpus: int
) -> tuple[int, str]:
    """Returns what fits by arithmetic, and its source: a trial would take all GPUs at once."""
    free, name = torch.cuda.mem_get_info(device)[0], device_name(device)
    kernels, _ = choose_kernels(recipe.kernels, device)
    usable = int(_ESTIMATED_MEMORY * free)
    largest = _largest_estimated(recipe, architecture, usable, kernels, gpus=gpus)
    if largest is None:
        raise _nothing_fits(recipe, usable, name)
    return largest, f"fits {name} by arithmetic, which `rewarm check --gpus {gpus}` shows"


def _nothing_fits(recipe: Recipe, free: int, device: str) -> RecipeError:
    problem = (
        f"batch.microbatch: not even one sequence of {recipe.data.context:,} tokens fits in "
        f"{free:,} bytes of {device}; use a smaller data.context, or a smaller model"
    )
    return RecipeError([problem])


def _largest_estimated(
    recipe: Recipe, architecture: Architecture, free: int, kernels: Kernels, *, gpus: int = 1
) -> int | None:
    """Returns the largest choice whose estimated peak fits in `free` bytes; None where none does.

    With several `gpus`, it is that of a GPU that shares the run with the others.
    """

    def peak(microbatch: int) -> int:
        candidate, triton = recipe.with_microbatch(microbatch), kernels is not PYTORCH_KERNELS
        return estimate_recipe_memory(candidate, architecture, triton=triton, gpus=gpus).peak

    fitting = (n for n in divisors(recipe.sequences_per_step) if peak(n) <= free)
    return max(fitting, default=None)


def _fits(
    recipe: Recipe,
    architecture: Architecture,
    microbatch: int,
    device: torch.device,
    free: int,
    kernels: Kernels,
) -> bool:
    """Returns whether a step with so many sequences at once stays below `free` bytes."""
    try:
        return _peak_of_trial(recipe, architecture, microbatch, device, kernels) <= free
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def _peak_of_trial(
    recipe: Recipe,
    architecture: Architecture,
    microbatch: int,
    device: torch.device,
    kernels: Kernels,
) -> int:
    """Returns the peak bytes of a step; everything that it allocated is freed on return."""
    before = torch.cuda.memory_allocated(device)
    with device:
        model = NeoX(architecture)
        model.configure(kernels, memory=recipe.memory, precision=recipe.precision)
        # The Adam moments, and the average of the weights.
        copies = 2 if recipe.optimizer.ema is None else 3
        resting = torch.empty(copies * architecture.parameters, dtype=torch.float32)
    attempt = partial(
        run_trial_pass,
        model,
        microbatch=microbatch,
        context=recipe.data.context,
        cast=autocast(recipe.precision, device),
        separator_id=0 if recipe.data.documents == "separate" else None,
    )
    if recipe.compile:
        compile_or_run_eagerly(model, attempt)
    torch.cuda.reset_peak_memory_stats(device)
    attempt(parts=min(2, recipe.sequences_per_step // microbatch))
    del resting
    return torch.cuda.max_memory_allocated(device) - before


def _read_cache(path: Path) -> dict[str, int]:
    """Returns what is remembered; a file that cannot be read is as good as none."""
    try:
        remembered = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(remembered, dict):
        return {}
    return {key: number for key, number in remembered.items() if type(number) is int}


def _write_cache(path: Path, remembered: dict[str, int]) -> None:
    with contextlib.suppress(OSError):  # it will be searched again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(remembered, indent=1) + "\n")
