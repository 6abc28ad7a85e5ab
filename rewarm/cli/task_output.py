"""How `rewarm eval` shows the figures of checkpoints on tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewarm.cli.terminal_tables import print_notes

if TYPE_CHECKING:
    from rewarm.table_cells import Table
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
            note = f"note: measured before (--again repeats it): {kept}: {checkpoint}"
            print_notes([note], stderr=True)
    return measured


def task_table(measured: list[_Measured]) -> Table:
    """Returns a table with a row for each checkpoint, task and metric."""
    from rewarm.runs.task_figures import stderr_name, values_of
    from rewarm.table_cells import EMPTY, Cell, Table

    rows = []
    _, reference = measured[0]
    for checkpoint, result in measured:
        for name, value in values_of(result.figures).items():
            task, _, metric = name.rpartition("/")
            error = result.figures.get(stderr_name(name))
            first = reference.figures.get(name)
            change = None if result is reference or first is None else value - first
            rows.append(
                [
                    Cell(checkpoint),
                    Cell(task),
                    Cell(metric),
                    Cell(_number(value), value),
                    EMPTY if error is None else Cell(_number(error), error),
                    EMPTY if change is None else Cell(_number(change, "+"), change),
                ]
            )
    return Table("Tasks", "", ["checkpoint", "task", "metric", "value", "± s.e.", "vs first"], rows)


def _number(value: float, sign: str = "") -> str:
    return format(value, f"{sign}.4f" if abs(value) < 1000 else f"{sign}.4g")
