"""What communication costs on 8, 64 and 512 H100s, as a model: a Markdown table.

    python benchmarks/communication_model.py

Nothing in it is measured but the speed of one H100 (rewarm/estimates/throughput.py): bytes and
memory are arithmetic, and seconds follow from the bandwidths and latencies in
rewarm/estimates/communication.py. docs/multi-gpu.md has this table, and a test compares them. Each
row has the microbatch up to 16 and the setting of `memory` that fit and make its step shortest
without any overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rewarm.estimates.communication import Communication, communication_of_step
from rewarm.estimates.memory import estimate_step_memory
from rewarm.estimates.throughput import MEASURED_SPEEDS, gpu_memory
from rewarm.model.architecture import PRESETS
from rewarm.quantities import format_bytes, format_seconds
from rewarm.recipe.batch_split import BatchSplit, split_batch

SEQUENCES, CONTEXT = 1104, 2048  # the batch of arXiv:2308.04014
MODELS = ("pythia-410m", "pythia-6.9b", "pythia-12b")
GPUS = (8, 64, 512)
LARGEST_MICROBATCH = 16
USABLE = 0.95  # of a GPU's memory: the rest is CUDA's, NCCL's and fragmentation


class Setting(NamedTuple):
    """A model on GPUs of which `shard` divide the weights."""

    gpus: int
    model: str
    shard: int


class Step(NamedTuple):
    """A step that fits into the memory of each GPU."""

    split: BatchSplit
    lean: bool
    memory: int
    """Bytes on each GPU at the peak."""
    communication: Communication
    computing: float
    """Seconds, at the measured MFU of Pythia-410M on one H100, padding included."""

    @property
    def seconds(self) -> float:
        """Of a step where nothing overlaps: the upper bound."""
        return self.communication.seconds + self.computing

    @property
    def communication_share(self) -> float:
        """Share of a step that is communication where nothing overlaps."""
        return self.communication.seconds / self.seconds

    @property
    def exposed_share(self) -> float:
        """The same with full overlap: what exceeds the computing."""
        longer = max(self.communication.seconds, self.computing)
        return (longer - self.computing) / longer


def settings() -> Iterator[Setting]:
    """Yields replicas, groups of one node, and all GPUs."""
    for gpus in GPUS:
        for model in MODELS:
            for shard in sorted({1, 8, gpus}):
                yield Setting(gpus, model, shard)


def fastest_step(setting: Setting) -> Step | None:
    """Returns the shortest step, without overlap, that fits; None where none does."""
    limit = USABLE * gpu_memory("h100")
    steps = [
        build_step(setting, split_batch(SEQUENCES, setting.gpus, microbatch), lean=lean)
        for lean in (False, True)
        for microbatch in range(LARGEST_MICROBATCH, 0, -1)
    ]
    fitting = [step for step in steps if step.memory <= limit]
    return min(fitting, key=lambda step: step.seconds, default=None)


def memory_of(setting: Setting, split: BatchSplit, *, lean: bool) -> int:
    """Returns the bytes on each GPU at the peak of a step in bf16 with the Triton kernels."""
    return estimate_step_memory(
        PRESETS[setting.model],
        tokens=split.microbatch * CONTEXT,
        accumulates=split.parts > 1,
        precision="bf16",
        triton=True,
        lean=lean,
        gpus=setting.gpus,
        shard=setting.shard,
    ).peak


def build_step(setting: Setting, split: BatchSplit, *, lean: bool) -> Step:
    """Returns a step with its memory, communication and computing."""
    architecture = PRESETS[setting.model]
    communication = communication_of_step(
        architecture, gpus=setting.gpus, shard=setting.shard, parts=split.parts
    )
    flops = architecture.flops_per_token(CONTEXT)
    if lean:  # the MLP's first matmul again: rewarm/estimates/memory.py
        flops += 2 * architecture.layers * architecture.hidden * architecture.inner
    tokens = split.parts * split.microbatch * CONTEXT
    computing = tokens * flops / MEASURED_SPEEDS[0].flops_per_second
    return Step(split, lean, memory_of(setting, split, lean=lean), communication, computing)


def row(setting: Setting) -> str:
    """Returns a row of the table."""
    name = "all" if setting.shard == setting.gpus else str(setting.shard)
    first = f"| {setting.gpus} | {setting.model.removeprefix('pythia-').upper()} | {name} |"
    step = fastest_step(setting)
    if step is None:
        smallest = memory_of(setting, split_batch(SEQUENCES, setting.gpus, 1), lean=True)
        return f"{first} does not fit | | {format_bytes(smallest)} | | | | |"
    lean = ", lean" if step.lean else ""
    return (
        f"{first} {step.split.parts} × {step.split.microbatch}{lean} | {step.split.useful:.1%} | "
        f"{format_bytes(step.memory)} | {format_bytes(step.communication.bytes_sent)} | "
        f"{format_seconds(step.communication.seconds)} | {format_seconds(step.computing)} | "
        f"{step.exposed_share:.0%} to {step.communication_share:.0%} |"
    )


def table() -> str:
    """Returns the table in Markdown."""
    return "\n".join(
        [
            "| GPUs | model | `shard` | microbatches | useful | memory | sent | communication | "
            "computing | share of a step |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
            *map(row, settings()),
        ]
    )


if __name__ == "__main__":
    print(table())
