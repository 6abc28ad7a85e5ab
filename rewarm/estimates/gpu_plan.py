"""How several GPUs share a run: sequences, padding, and memory and communication of each `shard`.

A run is the same on any number of GPUs; what differs is what each of them holds and sends.
"""

from __future__ import annotations

from pydantic import BaseModel

from rewarm.estimates.communication import H100_LINKS, communication_of_step
from rewarm.estimates.memory import estimate_recipe_memory
from rewarm.model.architecture import Architecture
from rewarm.quantities import format_bytes, format_seconds
from rewarm.recipe.batch_split import BatchSplit, divisors
from rewarm.recipe.gpu_sharing import shard_size_on, split_on
from rewarm.recipe.recipe import Recipe


class ShardPlan(BaseModel):
    """What a GPU holds and sends with one setting of `parallel.shard`."""

    shard: int
    """GPUs among which the weights are divided."""
    memory: int
    """Bytes on each GPU at the peak of a step."""
    bytes_sent: int
    """By each GPU in a step."""
    communication_seconds: float
    """Of a step, where nothing else runs."""


class GpuPlan(BaseModel):
    """How several GPUs share a step."""

    gpus: int
    sequences: int
    """Of the batch, on each GPU at most."""
    microbatches: int
    """On each GPU, one after the other; of one sequence where `microbatch` is `auto`."""
    microbatch: int
    """Sequences of a microbatch, padding included."""
    useful: float
    """The share of the computed sequences that is not padding."""
    unpadded_microbatches: list[int]
    """The nearest settings of `batch.microbatch` without padding."""
    unpadded_gpus: list[int]
    """The nearest numbers of GPUs that divide the batch, where this one does not."""
    shard: int
    """GPUs among which the recipe divides the weights."""
    shards: list[ShardPlan]
    """Of the recipe's `shard` and others; empty where the architecture is not known."""

    @property
    def chosen(self) -> ShardPlan:
        """The recipe's `shard`; the architecture has to be known."""
        return next(plan for plan in self.shards if plan.shard == self.shard)

    def shard_name(self, shard: int) -> str:
        """Returns what to write as `parallel.shard`."""
        return "all" if shard == self.gpus else f"{shard}"


def plan_gpus(
    recipe: Recipe, architecture: Architecture | None, *, gpus: int, triton: bool
) -> GpuPlan:
    """Returns how GPUs share a run.

    Raises:
        RecipeError: see `shard_size_on`.
    """
    shard, split = shard_size_on(recipe, gpus), split_on(recipe, gpus)
    divides = split.sequences % gpus == 0
    sizes = sorted({*_group_sizes(gpus), shard}) if architecture else []
    return GpuPlan(
        gpus=gpus,
        sequences=split.per_process,
        microbatches=split.parts,
        microbatch=split.microbatch,
        useful=split.useful,
        unpadded_microbatches=_nearest_divisors(split.per_process, split.microbatch)
        if divides
        else [],
        unpadded_gpus=[] if divides else _nearest_divisors(split.sequences, gpus),
        shard=shard,
        shards=[_plan_shard(recipe, architecture, split, size, triton) for size in sizes]
        if architecture
        else [],
    )


def _plan_shard(
    recipe: Recipe, architecture: Architecture, split: BatchSplit, shard: int, triton: bool
) -> ShardPlan:
    gpus = split.processes
    memory = estimate_recipe_memory(recipe, architecture, triton=triton, gpus=gpus, shard=shard)
    sent, seconds = communication_of_step(architecture, gpus=gpus, shard=shard, parts=split.parts)
    return ShardPlan(
        shard=shard, memory=memory.peak, bytes_sent=sent, communication_seconds=seconds
    )


def _group_sizes(gpus: int) -> list[int]:
    """Returns the sizes of groups that divide the GPUs and a node, and all GPUs."""
    node = H100_LINKS.node_gpus
    return [*(size for size in range(1, node + 1) if gpus % size == node % size == 0), gpus]


def _nearest_divisors(number: int, wanted: int) -> list[int]:
    """Returns the divisors of a number nearest to one: below and above, or only itself."""
    below = [n for n in divisors(number) if n <= wanted]
    above = [n for n in divisors(number) if n >= wanted]
    return sorted({*below[-1:], *above[:1]})


def gpu_lines(plan: GpuPlan, *, automatic: bool) -> list[tuple[str, str]]:
    """Returns the plan as lines to read, each with its heading.

    Args:
        plan: the plan.
        automatic: whether the microbatch is found when training starts.
    """
    one_at_once = ", with one sequence at once" if automatic else ""
    basis = f"per step{one_at_once}, by arithmetic; seconds for H100s, no overlap"
    shards = [_shard_text(plan, shard) for shard in plan.shards]
    return [
        ("gpus", split_text(plan, automatic=automatic)),
        *([("", padding_text(plan, automatic=automatic))] if plan.useful < 1 else []),
        *(("" if index else "shard", text) for index, text in enumerate(shards)),
        *([("", basis)] if shards else []),
    ]


def split_text(plan: GpuPlan, *, automatic: bool) -> str:
    """Returns how the batch is divided."""
    at_most = " at most" if plan.unpadded_gpus else ""
    each = f"{plan.gpus:,} × {plan.sequences:,} sequences{at_most}"
    if automatic:
        return f"{each}, as many at once as fit"
    if plan.microbatches == 1:
        return f"{each}, all at once"
    return f"{each}, in {plan.microbatches:,} microbatches of {plan.microbatch:,}"


def padding_text(plan: GpuPlan, *, automatic: bool) -> str:
    """Returns how much of what is computed is padding, and what would avoid it."""
    text = f"{plan.useful:.1%} useful, the rest padding"
    if plan.unpadded_gpus:
        return f"{text}; none with {_either(plan.unpadded_gpus)} GPUs"
    if automatic:
        return text
    return f"{text}; none with batch.microbatch {_either(plan.unpadded_microbatches)}"


def _either(numbers: list[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)


def _shard_text(plan: GpuPlan, shard: ShardPlan) -> str:
    memory, sent = format_bytes(shard.memory), format_bytes(shard.bytes_sent)
    seconds = format_seconds(shard.communication_seconds)
    chosen = "  < parallel.shard" if shard.shard == plan.shard else ""
    return (
        f"{plan.shard_name(shard.shard):<4}{memory:>9} a GPU, {sent:>9} sent in {seconds}{chosen}"
    )
