"""What a run, or a study, takes: tokens, FLOPs, hours, memory, disk. Arithmetic alone; no torch.

```
 hours of a run = start + steps × a step + evaluations × their tokens / speed + saves × stall
```
A study's runs are spread over the GPUs as `rewarm compare --workers` does it: each takes the next
run in their order whose base is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import NamedTuple

from pydantic import BaseModel

from rewarm.errors import RewarmError
from rewarm.estimates.run_plan import RunPlan, find_model, plan_run
from rewarm.estimates.throughput import SpeedOf
from rewarm.recipe.fields import ModelSettings
from rewarm.recipe.recipe import Recipe
from rewarm.study.study_file import StudyPlan


class RunHours(BaseModel):
    """Hours of a run, by what they are spent on."""

    training: float
    evaluating: float
    saving: float
    starting: float


class RunCost(BaseModel):
    """What one run takes, or each of several that differ in nothing that costs."""

    name: str
    runs: int
    gpus: int
    """That one run is spread over."""
    tokens: int
    steps: int
    flops: int
    """Of training: forward and backward."""
    evaluations: int
    evaluated: int
    """Tokens in one evaluation."""
    sequences: int
    microbatch: int | None
    time: RunHours | None
    """None where no speed is known, as all that follows from it."""
    hours: float | None
    gpu_hours: float | None
    memory: int
    """Bytes at the peak: of a step on its device, or of the process that was measured."""
    memory_measured: bool
    checkpoints: int
    """The most that are there at once."""
    checkpoint_bytes: int
    disk: int
    """Bytes of the checkpoints that are there at once."""
    source: str | None
    """Where the speed is known from."""


class CostEstimate(BaseModel):
    """All of it. GPUs that are held to the end are idle while the last runs end."""

    gpus: int
    runs: int
    costs: list[RunCost]
    tokens: int
    flops: int
    memory: int
    """Of the run that takes most."""
    disk: int
    hours: float | None
    """From the beginning to the end of the last run."""
    gpu_hours: float | None
    """At work."""
    held_gpu_hours: float | None
    """All GPUs, from the beginning to the end of the last run."""
    price: float | None = None
    """Of a GPU hour."""
    cost: float | None = None
    """GPU hours at work × price."""


class QueuedRun(NamedTuple):
    """A run to be packed onto workers."""

    name: str
    needs: str | None
    hours: float


def estimate_recipe_cost(
    recipe: Recipe, *, gpus: int, on_gpu: bool | None, speed_of: SpeedOf | None
) -> CostEstimate:
    """Returns what a recipe takes, on so many GPUs at one GPU's speed each.

    Raises:
        RewarmError: its model is not to be found, or no speed is known.
    """
    cost = _cost(recipe.run, recipe, 1, gpus, on_gpu, speed_of)
    return _bill([cost], gpus, cost.hours)


def estimate_study_cost(
    plan: StudyPlan, *, gpus: int, on_gpu: bool | None, speed_of: SpeedOf | None
) -> CostEstimate:
    """Returns what a study takes, each of its runs on one of the GPUs.

    Raises:
        RewarmError: a model is not to be found, or no speed is known.
    """
    seeds = len(plan.study.seeds)
    costs = {
        name: _cost(f"bases/{name}", recipe, 1, 1, on_gpu, speed_of)
        for name, recipe in plan.bases.items()
    }
    bases = [QueuedRun(name, None, cost.hours or 0) for name, cost in costs.items()]
    arms = {}
    for arm in plan.study.arms:
        job = plan.of(arm)[0]
        shaped = job.recipe
        if job.needs:  # a base that may be still to be trained: the shape is what its recipe says
            shaped = _with_model(shaped, plan.bases[job.needs].model)
        arms[arm] = _cost(arm, shaped, seeds, 1, on_gpu, speed_of)
    jobs = [QueuedRun(job.name, job.needs, arms[job.arm].hours or 0) for job in plan.jobs]
    known = all(cost.hours is not None for cost in (*costs.values(), *arms.values()))
    span = makespan([*bases, *jobs], gpus) if known else None
    return _bill([*costs.values(), *arms.values()], gpus, span)


def makespan(runs: Iterable[QueuedRun], workers: int) -> float:
    """Returns the hours until the last run ends.

    A worker that is free takes the first run left whose base has ended, as `Compare` does.
    """
    left, ends = list(runs), dict[str, float]()
    free = [0.0] * workers  # when each of them is; all alike, and so a heap
    while left:
        now = heappop(free)
        ready = (one for one in left if not one.needs or ends.get(one.needs, math.inf) <= now)
        if taken := next(ready, None):
            left.remove(taken)
            ends[taken.name] = then = now + taken.hours
        else:  # it waits for a base
            then = min(end for end in ends.values() if end > now)
        heappush(free, then)
    return max(ends.values())


def _cost(
    name: str,
    recipe: Recipe,
    runs: int,
    gpus: int,
    on_gpu: bool | None,
    speed_of: SpeedOf | None,
) -> RunCost:
    problems: list[RewarmError] = []
    _, shape = find_model(recipe, problems)
    if shape is None:
        raise problems[0]
    found, _ = plan_run(recipe, on_gpu=on_gpu)  # that data are not here yet is no matter
    assert found.model
    assert found.memory
    assert found.checkpoint_bytes
    microbatch = recipe.batch.microbatch
    evaluated = _evaluated(found, recipe.data.context, microbatch or 1)
    speed = speed_of(recipe, shape, evaluated) if speed_of else None
    if microbatch is None and speed and speed.microbatch:  # what `auto` came to
        microbatch = speed.microbatch
        evaluated = _evaluated(found, recipe.data.context, microbatch)
    time = speed and RunHours(
        training=found.steps * speed.step * _share(recipe.sequences, microbatch or 1, gpus) / 3600,
        evaluating=found.evaluations * evaluated / speed.evaluated_per_second / gpus / 3600,
        saving=((found.checkpoints - 1) * speed.stall + speed.save) / 3600,
        starting=speed.start / 3600,
    )
    hours = sum(time.model_dump().values()) if time else None
    return RunCost(
        name=name,
        runs=runs,
        gpus=gpus,
        tokens=found.tokens,
        steps=found.steps,
        flops=found.tokens * found.model.flops_per_token,
        evaluations=found.evaluations,
        evaluated=evaluated,
        sequences=recipe.sequences,
        microbatch=microbatch,
        time=time,
        hours=hours,
        gpu_hours=hours and gpus * hours,
        memory=(speed and speed.memory) or found.memory.peak,
        memory_measured=bool(speed and speed.memory),
        checkpoints=found.checkpoints_at_once,
        checkpoint_bytes=found.checkpoint_bytes,
        disk=found.checkpoints_at_once * found.checkpoint_bytes,
        source=speed and speed.source,
    )


def _share(sequences: int, microbatch: int, gpus: int) -> float:
    """Returns the part of a step's microbatches that the busiest of the GPUs runs."""
    microbatches = sequences // microbatch
    return math.ceil(microbatches / gpus) / microbatches


def _evaluated(found: RunPlan, context: int, microbatch: int) -> int:
    """Returns the tokens that one evaluation runs: each set's blocks, in whole microbatches."""
    blocks = (one.needed // context for one in found.validation.values())
    return sum(math.ceil(n / microbatch) * microbatch * context for n in blocks)


def _with_model(recipe: Recipe, model: ModelSettings) -> Recipe:
    return recipe.model_copy(update={"model": model})


def _bill(costs: list[RunCost], gpus: int, hours: float | None) -> CostEstimate:
    def total(of: Callable[[RunCost], float]) -> float:
        return sum(cost.runs * of(cost) for cost in costs)

    return CostEstimate(
        gpus=gpus,
        runs=sum(cost.runs for cost in costs),
        costs=costs,
        tokens=int(total(lambda cost: cost.tokens)),
        flops=int(total(lambda cost: cost.flops)),
        memory=max(cost.memory for cost in costs),
        disk=int(total(lambda cost: cost.disk)),
        hours=hours,
        gpu_hours=None if hours is None else total(lambda cost: cost.gpu_hours or 0.0),
        held_gpu_hours=None if hours is None else gpus * hours,
    )
