"""What is tried before a run begins: whether its layers compile, and how many sequences fit.

```
 microbatch: auto ── this run's own ──> remembered on this machine ──> tried, from memory.py on
```
Whatever was found is written into the run's recipe: in which parts a gradient is added up changes
its last bits, so a resume takes the parts that the run began with.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from rewarm.checkpoints.find_checkpoint import last_checkpoint, locate_base
from rewarm.errors import RecipeError, RewarmError
from rewarm.estimates.memory import estimate_recipe_memory
from rewarm.model.architecture import Architecture
from rewarm.model.kernels.fp8.scaling import check_fp8_device
from rewarm.model.kernels.selection import PYTORCH_KERNELS, Kernels, choose_kernels
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.safe_loading import read_json
from rewarm.training.device_setup import autocast, device_name, find_device
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass

_ON_A_CPU = 2048
"""Tokens that a CPU runs at once: the logits of so many take 1.2 GB with Pythia's vocabulary."""
_TO_USE = 0.95
"""The part of the free memory that a step may fill: the rest is lost between the blocks."""


def resolve_microbatch(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Returns a recipe with a number in the place of `microbatch: auto`, and what to say of it.

    On a CPU it is the largest divisor of the batch that is not above 2,048 tokens. On a GPU it is
    the largest that a step was seen to fit in memory with.

    Raises:
        RecipeError: not even one sequence fits.
        CheckpointError: the base, whose shape it depends on, cannot be read.
    """
    if recipe.batch.microbatch is not None:
        return recipe, []
    device = find_device()
    tokens = f"{recipe.data.context:,} tokens"
    recorded = _recorded(recipe)
    if recorded is not None:
        return _with(recipe, recorded), [f"at once {recorded} × {tokens}, as the run began (auto)"]
    if device.type == "cpu":
        most = max(1, _ON_A_CPU // recipe.data.context)
        found, how = max(n for n in divisors(recipe.sequences) if n <= most), "the rule for a CPU"
    else:
        found, how = _remembered(recipe, device)
    return _with(recipe, found), [f"at once {found} × {tokens} (auto: {how})"]


def divisors(number: int) -> list[int]:
    """Returns the numbers that divide another, the smallest first."""
    low = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})


def largest_that_fits(
    choices: Sequence[int], guess: int, fits: Callable[[int], bool]
) -> int | None:
    """Returns the largest choice that fits, tried from a guess on; None where not one does.

    What fits is taken to fit with fewer too.
    """
    at = choices.index(guess)
    if fits(choices[at]):
        while at + 1 < len(choices) and fits(choices[at + 1]):
            at += 1
        return choices[at]
    while at > 0:
        at -= 1
        if fits(choices[at]):
            return choices[at]
    return None


def _with(recipe: Recipe, microbatch: int) -> Recipe:
    batch = recipe.batch.model_copy(update={"microbatch": microbatch})
    return recipe.model_copy(update={"batch": batch})


def _recorded(recipe: Recipe) -> int | None:
    """Returns the microbatch of the run's last checkpoint, where it divides this batch too."""
    last = last_checkpoint(Path(recipe.run))
    if last is None:
        return None
    try:
        found = YamlDocument.load(last / "recipe.yaml").data["batch"]["microbatch"]
    except (RewarmError, KeyError, TypeError):
        return None  # opening the run says what is wrong with it
    whole = type(found) is int and found > 0 and recipe.sequences % found == 0
    return found if whole else None


def _remembered(recipe: Recipe, device: torch.device) -> tuple[int, str]:
    """Returns what fitted on such a device before, or what is found to fit now, and which it is."""
    shape = recipe.model.shape
    if shape is None:
        assert recipe.model.base is not None
        shape = locate_base(recipe.model.base, recipe.model.revision).architecture
    recipe.insist_on_widths(shape)
    if recipe.precision == "fp8":
        check_fp8_device(device)
    name, context = device_name(device), recipe.data.context
    how = [recipe.precision, "compiled" if recipe.compile else "eager", recipe.data.documents]
    how += [recipe.kernels, recipe.memory, str(recipe.deterministic)]
    key = json.dumps([shape.model_dump(), name, context, *how, recipe.sequences])
    path = _notes()
    known = _read(path)
    if (found := known.get(key)) in divisors(recipe.sequences):
        return found, f"it fitted {name} before, says {path}"
    gc.collect()
    torch.cuda.empty_cache()  # of a run before, in this process
    free = int(_TO_USE * torch.cuda.mem_get_info(device)[0])
    chosen, _ = choose_kernels(recipe.kernels, device)
    found = largest_that_fits(
        divisors(recipe.sequences),
        _guess(recipe, shape, free, triton=chosen is not PYTORCH_KERNELS),
        lambda n: _fits(recipe, shape, n, device, free, chosen),
    )
    if found is None:
        raise RecipeError(
            [
                f"batch.microbatch: not even one sequence of {context:,} tokens fits in "
                f"{free:,} bytes of {name}; take a smaller data.context, or a smaller model"
            ]
        )
    _write(path, known | {key: found})
    return found, f"the largest that fits {name}"


def _guess(recipe: Recipe, shape: Architecture, free: int, *, triton: bool) -> int:
    choices = divisors(recipe.sequences)

    def peak(microbatch: int) -> int:
        return estimate_recipe_memory(_with(recipe, microbatch), shape, triton=triton).peak

    fitting = [n for n in choices if peak(n) <= free]
    return max(fitting, default=choices[0])


def _fits(
    recipe: Recipe,
    shape: Architecture,
    microbatch: int,
    device: torch.device,
    free: int,
    chosen: Kernels,
) -> bool:
    """Returns whether a step with so many sequences at once stays below `free` bytes."""
    try:
        return _peak(recipe, shape, microbatch, device, chosen) <= free
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def _peak(
    recipe: Recipe,
    shape: Architecture,
    microbatch: int,
    device: torch.device,
    chosen: Kernels,
) -> int:
    """Returns the most bytes that a step takes up; what it made is gone when it returns."""
    before = torch.cuda.memory_allocated(device)
    with device:
        model = NeoX(shape)
        model.use(chosen, memory=recipe.memory, precision=recipe.precision)
        moments = torch.empty(2 * shape.parameters, dtype=torch.float32)
    attempt = partial(
        run_trial_pass,
        model,
        microbatch=microbatch,
        context=recipe.data.context,
        cast=autocast(recipe.precision, device),
        separator=0 if recipe.data.documents == "separate" else None,
    )
    if recipe.compile:
        compile_or_run_eagerly(model, attempt)
    torch.cuda.reset_peak_memory_stats(device)
    attempt(parts=min(2, recipe.sequences // microbatch))
    del moments
    return torch.cuda.max_memory_allocated(device) - before


def _notes() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rewarm" / "microbatch.json"


def _read(path: Path) -> dict[str, int]:
    """Returns what is noted; notes that cannot be read are no reason to stop."""
    try:
        known = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: n for key, n in known.items() if type(n) is int}


def _write(path: Path, known: dict[str, int]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)  # it will be tried again next time
