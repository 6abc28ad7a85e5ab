"""Checks of settings of a recipe that depend on one another; each yields what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import InitErrorDetails

from rewarm import schedules
from rewarm.errors import ScheduleError
from rewarm.recipe.data_settings import DataSettings
from rewarm.recipe.fields import field_problem
from rewarm.recipe.measurement_settings import TaskSettings
from rewarm.recipe.model_settings import ModelSettings
from rewarm.recipe.periodic_work import EverySettings
from rewarm.recipe.training_settings import BatchSettings, OptimizerSettings
from rewarm.schedules import Schedule

FP8_TILE = 16
"""Both sides of a matrix in an fp8 matmul have to be multiples of this."""


def batch_problems(batch: BatchSettings, context: int) -> Iterator[InitErrorDetails]:
    """A batch is a whole number of sequences of `context` tokens, and of microbatches."""
    sequences, rest = divmod(batch.tokens, context)
    if rest:
        nearest = max(1, round(batch.tokens / context)) * context
        yield field_problem(
            ("batch", "tokens"),
            f"should be a whole number of sequences of {context:,} tokens (data.context), got "
            f"{batch.tokens:,}; try {nearest:,}",
            batch.tokens,
        )
    elif batch.microbatch and sequences % batch.microbatch:
        fitting = [n for n in range(1, batch.microbatch) if sequences % n == 0]
        yield field_problem(
            ("batch", "microbatch"),
            f"should divide the {sequences:,} sequences of a batch ({batch.tokens:,} tokens / "
            f"{context:,}), got {batch.microbatch:,}; try {fitting[-1]:,}, or auto",
            batch.microbatch,
        )


def precision_problems(precision: str, *, tf32: bool, context: int) -> Iterator[InitErrorDetails]:
    """TF32 is for fp32, and the context of an fp8 run is a multiple of `FP8_TILE`."""
    if tf32 and precision != "fp32":
        yield field_problem(
            ("tf32",),
            f"should be false with precision: {precision}, since TF32 is a way to compute "
            "fp32 matmuls; remove it, or set precision: fp32",
            True,
        )
    if precision == "fp8" and context % FP8_TILE:
        nearest = max(1, round(context / FP8_TILE)) * FP8_TILE
        yield field_problem(
            ("data", "context"),
            f"should be a multiple of {FP8_TILE} for fp8 matmuls, got {context:,}; try {nearest:,}",
            context,
        )


def budget_problems(tokens: int, batch: BatchSettings) -> Iterator[InitErrorDetails]:
    """The budget is at least one batch."""
    if tokens < batch.tokens:
        yield field_problem(
            ("tokens",),
            f"should be at least one batch of {batch.tokens:,} tokens, got {tokens:,}",
            tokens,
        )


def position_problems(model: ModelSettings, context: int) -> Iterator[InitErrorDetails]:
    """The context is at most the positions of a model whose architecture is in the recipe."""
    architecture = model.explicit_architecture
    if architecture and context > architecture.positions:
        yield field_problem(
            ("data", "context"),
            f"should be at most the model's {architecture.positions:,} positions, got {context:,}",
            context,
        )


def carry_problems(
    model: ModelSettings, optimizer: OptimizerSettings, data: DataSettings
) -> Iterator[InitErrorDetails]:
    """Optimizer state and data position are carried over from a base only."""
    if model.base is not None and not model.fresh:
        return
    for section, carry, state in (
        ("optimizer", optimizer.carry, "optimizer state"),
        ("data", data.carry, "data position"),
    ):
        if carry:
            yield field_problem(
                (section, "carry"),
                f"should be false: the run starts from newly initialized weights, so there is "
                f"no {state} to carry over; remove it, or start from a rewarm checkpoint "
                "(model.base)",
                True,
            )


def task_interval_problems(every: EverySettings, tasks: TaskSettings) -> Iterator[InitErrorDetails]:
    """An interval of tasks needs a task."""
    if every.tasks is not None and not tasks.names:
        yield field_problem(
            ("every", "tasks"),
            f"is {every.tasks:,} steps, and no task is named; set tasks.names, such as "
            "[lambada_openai], or remove every.tasks",
            every.tasks,
        )


def rate_problems(schedule: Schedule, steps: int) -> Iterator[InitErrorDetails]:
    """Learning rates are valid at each step of the run, and above 0 at some."""
    try:
        schedules.check_rates(schedule, 1 / steps)
        learns = any(
            schedules.rate(schedule, step / steps)
            for step in schedules.sampled_steps(schedule, steps)
        )
    except ScheduleError as error:
        yield field_problem(("schedule",), str(error), schedule.name)
        return
    if not learns:
        yield field_problem(
            ("schedule",),
            "should have a learning rate above 0 at some step; it is 0 throughout, so nothing "
            "would be learned",
            schedule.name,
        )
