"""How `rewarm eval` shows the figures of checkpoints on tasks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rewarm.training.task_evaluation import MeasuredTasks

    _Measured = tuple[str, MeasuredTasks]  # a checkpoint as the user named it


def measure_tasks(
    checkpoints: list[str],
    names: str,
    *,
    include: str | None,
    limit: int | None,
    few_shot: int | None,
    microbatch: int,
    precision: str,
    again: bool,
) -> list[_Measured]:
    """Returns the figures of checkpoints on tasks; says on stderr what was measured before."""
    from rewarm.recipe.measurement_settings import TaskSettings
    from rewarm.training.task_evaluation import TaskEvaluator

    settings = TaskSettings(
        names=tuple(filter(None, (name.strip() for name in names.split(",")))),
        include=include,
        limit=limit,
        few_shot=few_shot,
    )
    evaluator = TaskEvaluator(settings, microbatch=microbatch, precision=precision, again=again)
    measured = []
    for checkpoint in checkpoints:
        result = evaluator.measure(checkpoint)
        measured.append((checkpoint, result))
        if result.kept:
            kept = ", ".join(result.kept)
            print(
                f"note: measured before (--again repeats it): {kept}: {checkpoint}", file=sys.stderr
            )
    return measured


def task_table(measured: list[_Measured]) -> Table:
    """Returns a table with a row for each checkpoint, task and metric."""
    from rewarm.training.harness_tasks import stderr_name, values_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("task", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for column in ("value", "± s.e.", "vs first"):
        table.add_column(column, justify="right", no_wrap=True)
    _, reference = measured[0]
    for checkpoint, result in measured:
        for row, (name, value) in enumerate(values_of(result.figures).items()):
            task, _, metric = name.rpartition("/")
            error = result.figures.get(stderr_name(name))
            first = reference.figures.get(name)
            table.add_row(
                checkpoint if row == 0 else "",
                task,
                metric,
                _number(value),
                "—" if error is None else _number(error),
                "" if result is reference or first is None else _number(value - first, "+"),
            )
    return table


def _number(value: float, sign: str = "") -> str:
    return format(value, f"{sign}.4f" if abs(value) < 1000 else f"{sign}.4g")
