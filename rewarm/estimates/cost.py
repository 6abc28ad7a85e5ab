"""What a run, or a study, costs: tokens, FLOPs, hours, memory, disk; arithmetic without torch.

```
 hours of a run = startup + steps × step + evaluations × their tokens / speed + saves × stall
 step on n GPUs = its time on one / (n × useful share of the sequences) + communication
```
Communication is a model (communication.py), here without overlap, the upper bound.
A study's runs are spread over the GPUs as `rewarm compare --workers` does it: each takes the next
run, in their order, whose base is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from pydantic import BaseModel

from rewarm.errors import RecipeError
from rewarm.estimates.gpu_plan import GpuPlan
from rewarm.estimates.run_plan import RunPlan, plan_run
from rewarm.estimates.throughput import Speed, SpeedOf
from rewarm.recipe.recipe import Recipe
from rewarm.runs.resolve_run import resolve
from rewarm.study.study_plan import StudyPlan


class RunHours(BaseModel):
    """Hours of a run, by what they are spent on."""

    training: float
    """Computing, padding included."""
    communicating: float = 0.0
    """Between several GPUs, where none of it runs while they compute."""
    evaluating: float
    saving: float
    starting: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.training + self.communicating + self.evaluating + self.saving + self.starting

    @property
    def overlapped(self) -> float:
        """All of them, if communication and computing overlap as far as they can."""
        return self.total - min(self.training, self.communicating)


class RunCost(BaseModel):
    """The cost of one run, or of each of several that differ in nothing that costs."""

    name: str
    runs: int
    device: Literal["CPU", "GPU"]
    gpus: int
    """That one run is spread over; 1 on a CPU."""
    sharing: GpuPlan | None = None
    """How they share it; None for one GPU."""
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
    """None where no speed is known, as is all that follows from it."""
    hours: float | None
    gpu_hours: float | None
    memory: int
    """Bytes at the peak: of a step on each device, or of the process that was measured."""
    memory_measured: bool
    memory_elsewhere: int | None
    """Bytes at the peak on a GPU for a CPU, and the other way round, by arithmetic."""
    checkpoints: int
    """The most that are on disk at once."""
    checkpoint_bytes: int
    bytes_per_parameter: int = 12
    """In a checkpoint: weights, and two Adam moments; with `optimizer.ema` the average too."""
    disk: int
    """Bytes of the checkpoints that are on disk at once."""
    source: str | None
    """Where the speed is known from."""
    problems: int
    """How many problems prevent the run from starting here; `rewarm check` lists them."""
    unsharded: int = 0
    """Corpora that are text which is not sharded yet: their tokens are not known."""


class CostEstimate(BaseModel):
    """The cost of all runs. GPUs that are held to the end are idle while the last runs end."""

    gpus: int
    runs: int
    costs: list[RunCost]
    tokens: int
    flops: int
    memory: int
    """Of the run that uses the most."""
    disk: int
    hours: float | None
    """From the start to the end of the last run."""
    gpu_hours: float | None
    """GPUs at work."""
    held_gpu_hours: float | None
    """All GPUs, from the start to the end of the last run."""
    price: float | None = None
    """Of a GPU hour."""
    cost: float | None = None
    """GPU hours at work × price."""


class QueuedRun(NamedTuple):
    """A run that waits for a worker."""

    name: str
    needs: str | None
    """The base that has to be trained first."""
    hours: float


def estimate_recipe_cost(
    recipe: Recipe, *, gpus: int, on_gpu: bool | None, speed_of: SpeedOf | None
) -> CostEstimate:
    """Returns the cost of a recipe, on GPUs that share its steps.

    Raises:
        RewarmError: its model cannot be found, no speed is known, or so many GPUs cannot share it.
    """
    cost = _run_cost(str(recipe.run_directory), recipe, 1, gpus, on_gpu, speed_of)
    return _total([cost], gpus, cost.hours)


def estimate_study_cost(
    plan: StudyPlan, *, gpus: int, on_gpu: bool | None, speed_of: SpeedOf | None
) -> CostEstimate:
    """Returns the cost of a study, each of its runs on one of the GPUs.

    Raises:
        RewarmError: a model cannot be found, or no speed is known.
    """
    seeds = len(plan.study.seeds)
    bases = {
        name: _run_cost(f"bases/{name}", recipe, 1, 1, on_gpu, speed_of)
        for name, recipe in plan.bases.items()
    }
    arms = {}
    for arm in plan.study.arms:
        run = plan.runs_of(arm)[0]
        recipe = run.recipe
        if run.needs_base:  # the base may not be trained yet: its architecture is in its own recipe
            recipe = recipe.model_copy(update={"model": plan.bases[run.needs_base].model})
        arms[arm] = _run_cost(arm, recipe, seeds, 1, on_gpu, speed_of)
    costs = [*bases.values(), *arms.values()]
    if any(cost.hours is None for cost in costs):
        return _total(costs, gpus, None)
    queue = [QueuedRun(name, None, cost.hours or 0) for name, cost in bases.items()]
    queue += [QueuedRun(run.name, run.needs_base, arms[run.arm].hours or 0) for run in plan.runs]
    return _total(costs, gpus, makespan(queue, gpus))


def makespan(runs: Iterable[QueuedRun], workers: int) -> float:
    """Returns the hours until the last run ends.

    A free worker takes the first run left whose base is trained, as `StudyRunner` does.
    """
    left, ends = list(runs), dict[str, float]()
    free = [0.0] * workers  # when each worker is free; all zeros are a heap
    while left:
        now = heappop(free)
        ready = (run for run in left if not run.needs or ends.get(run.needs, math.inf) <= now)
        if run := next(ready, None):
            left.remove(run)
            ends[run.name] = end = now + run.hours
        else:  # the worker waits for a base
            end = min(end for end in ends.values() if end > now)
        heappush(free, end)
    return max(ends.values())


def _run_cost(
    name: str,
    recipe: Recipe,
    runs: int,
    gpus: int,
    on_gpu: bool | None,
    speed_of: SpeedOf | None,
) -> RunCost:
    resolved = resolve(recipe, resume=True, accept_changes=True)
    if resolved.architecture is None:
        resolved.raise_problems()
    plan = plan_run(resolved, on_gpu=on_gpu, gpus=gpus)
    assert resolved.architecture
    evaluated = _evaluated_tokens(plan, gpus)
    speed = speed_of(recipe, resolved.architecture, evaluated) if speed_of else None
    if recipe.batch.microbatch is None and speed and speed.microbatch:  # what `auto` became
        batch = recipe.batch.model_copy(update={"microbatch": speed.microbatch})
        resolved = resolved.with_recipe(recipe.model_copy(update={"batch": batch}))
        plan = plan_run(resolved, on_gpu=on_gpu, gpus=gpus)
        evaluated = _evaluated_tokens(plan, gpus)
    if speed and plan.gpus and plan.gpus.shard > 1 and plan.microbatch is None:
        raise RecipeError(
            [
                "batch.microbatch: what auto becomes is not known here, and the communication of "
                f"parallel.shard: {recipe.parallel.shard} depends on it; give a number, such as "
                "--set batch.microbatch=8"
            ]
        )
    assert plan.model
    assert plan.memory
    assert plan.checkpoint_bytes
    time = _hours(plan, speed, evaluated, gpus) if speed else None
    return RunCost(
        name=name,
        runs=runs,
        gpus=gpus,
        sharing=plan.gpus,
        tokens=plan.tokens,
        steps=plan.steps,
        flops=plan.tokens * plan.model.flops_per_token,
        evaluations=plan.evaluations,
        evaluated=evaluated,
        sequences=recipe.sequences_per_step,
        microbatch=plan.microbatch,
        time=time,
        hours=time and time.total,
        gpu_hours=time and gpus * time.total,
        memory=(speed and speed.memory) or plan.memory.peak,
        memory_measured=bool(speed and speed.memory),
        memory_elsewhere=plan.memory_elsewhere,
        device=plan.device,
        checkpoints=plan.checkpoints_at_once,
        checkpoint_bytes=plan.checkpoint_bytes,
        bytes_per_parameter=plan.checkpoint_bytes // plan.model.parameters,
        disk=plan.checkpoints_at_once * plan.checkpoint_bytes,
        source=speed and speed.source,
        problems=len(plan.problems),
        unsharded=len(resolved.unsharded),
    )


def _hours(plan: RunPlan, speed: Speed, evaluated: int, gpus: int) -> RunHours:
    computed = 1 / (gpus * plan.gpus.useful) if plan.gpus else 1.0  # by a GPU, of a step
    communication = plan.gpus.chosen.communication_seconds if plan.gpus else 0.0
    return RunHours(
        training=plan.steps * speed.step * computed / 3600,
        communicating=plan.steps * communication / 3600,
        evaluating=plan.evaluations * evaluated / speed.evaluated_per_second / gpus / 3600,
        saving=((plan.checkpoints - 1) * speed.stall + speed.save) / 3600,
        starting=speed.start / 3600,
    )


def _evaluated_tokens(plan: RunPlan, gpus: int) -> int:
    """Returns the tokens of one evaluation: each set's blocks, in whole microbatches per GPU."""
    unit = gpus * (plan.microbatch or 1)
    blocks = (dataset.needed // plan.context for dataset in plan.validation.values())
    return sum(math.ceil(n / unit) * unit * plan.context for n in blocks)


def _total(costs: list[RunCost], gpus: int, hours: float | None) -> CostEstimate:
    def total(figure: Callable[[RunCost], float]) -> float:
        return sum(cost.runs * figure(cost) for cost in costs)

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
