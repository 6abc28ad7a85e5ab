"""The table that `rewarm plan` prints, and where each figure in it comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rewarm.cli.seeds_output import seed_notes
from rewarm.cli.terminal_tables import print_notes, print_result_table
from rewarm.estimates.cost import CostEstimate, RunCost
from rewarm.estimates.gpu_plan import GpuPlan, padding_text, split_text
from rewarm.estimates.run_plan import elsewhere_text
from rewarm.estimates.throughput import Speed, SpeedOf, gpu_memory, measured_gpus
from rewarm.model.architecture import Architecture
from rewarm.quantities import format_bytes, format_count, format_number, format_seconds
from rewarm.recipe.recipe import Recipe
from rewarm.study.study_plan import StudyPlan
from rewarm.table_cells import EMPTY, Cell, Table, count_cell, number_cell, tokens_cell

if TYPE_CHECKING:  # with numpy and the law, which few plans need
    from rewarm.cli.planned_losses import PlannedLosses


def speed_by_measuring() -> SpeedOf:
    """Returns a function that measures speeds here, each combination that matters to it once."""
    from rewarm.estimates.measure_step_time import measure_step_time

    speeds: dict[str, Speed] = {}

    def speed_of(recipe: Recipe, architecture: Architecture, evaluated: int) -> Speed:
        settings = recipe.document()
        relevant = [settings[name] for name in ("batch", "precision", "tf32", "compile")]
        relevant += [settings[name] for name in ("kernels", "memory")]
        relevant += [settings["data"][name] for name in ("context", "documents", "workers")]
        key = json.dumps([architecture.model_dump(), *relevant, evaluated])
        if key not in speeds:
            line = (
                f"measuring {architecture.parameters:,} parameters, {recipe.batch.tokens:,} tokens "
                "a step: ten steps, or ten seconds if that is longer"
            )
            print_notes([line], stderr=True)
            speeds[key] = measure_step_time(recipe, architecture, evaluated)
        return speeds[key]

    return speed_of


def print_cost(
    estimate: CostEstimate,
    gpu: str | None,
    study: StudyPlan | None = None,
    losses: PlannedLosses | None = None,
) -> None:
    """Prints a cost estimate as a table, and below it where each figure comes from.

    Args:
        estimate: the estimate.
        gpu: the GPU that it is for, if one was named.
        study: the study that it is of, whose seeds are reported.
        losses: the losses of its runs, if they were predicted.
    """
    device = estimate.costs[0].device
    rows = [
        _row(cost.name, cost, count_cell(cost.steps), estimate.price, device)
        for cost in estimate.costs
    ]
    if estimate.runs > 1:
        rows.append(_row("all", estimate, EMPTY, estimate.price, device))
    shown = [name for name in rows[0] if any(row[name].text for row in rows)]
    table = Table("Cost", "", shown, [[row[name] for name in shown] for row in rows])
    print_result_table(table, show_title=False)
    notes = _notes(estimate, gpu) + (seed_notes(study, estimate) if study else [])
    if losses:
        beside = table.select("run", *(name for name in ("time", "cost") if name in shown))
        rows_of_runs = [
            [*row, *losses.cells(row[0].text)] for row in beside.rows if row[0].text in losses.runs
        ]
        columns = [*beside.columns, *losses.columns]
        print_result_table(Table("Predicted last losses", "", columns, rows_of_runs))
        notes += losses.notes()
    print_notes((f"{heading:<10}{text}" for heading, text in notes), indent=10)


def _row(
    name: str, cost: RunCost | CostEstimate, steps: Cell, price: float | None, device: str
) -> dict[str, Cell]:
    gpu_hours = None if device == "CPU" else cost.gpu_hours
    runs = cost.runs if isinstance(cost, CostEstimate) or cost.runs > 1 else None
    price_of_run = cost.gpu_hours * price if cost.gpu_hours and price is not None else None
    return {
        "run": Cell(name),
        "runs": number_cell(runs, ","),
        "tokens": tokens_cell(cost.tokens),
        "steps": steps,
        "FLOPs": Cell(f"{cost.flops:.2e}".replace("e+", "e"), cost.flops),
        "time": Cell(_format_hours(cost.hours), cost.hours),
        "GPU hours": EMPTY if gpu_hours is None else Cell(format_number(gpu_hours), gpu_hours),
        "cost": EMPTY if price_of_run is None else Cell(format_number(price_of_run), price_of_run),
        "memory": Cell(format_bytes(cost.memory), cost.memory),
        "disk": Cell(format_bytes(cost.disk), cost.disk),
    }


def _notes(estimate: CostEstimate, gpu: str | None) -> list[tuple[str, str]]:
    """Returns where each figure comes from, and what it assumes."""
    first = estimate.costs[0]
    prefix = f"{first.name}: " if len(estimate.costs) > 1 else ""
    notes = [("speed", text) for text in _speed_sources(estimate)]
    if estimate.hours is None:
        known = ", ".join(f"--gpu {name}" for name in measured_gpus())
        notes.append(("time", f"name a GPU that was measured ({known}), or --measure here"))
    else:
        notes.append(("time", prefix + _time_note(first, measured=gpu is None)))
    if first.sharing:
        notes += _sharing_notes(first, first.sharing)
    elif estimate.gpus > 1 and estimate.hours is not None:
        notes.append(("GPUs", _queue_note(estimate)))
    notes.append(
        ("FLOPs", "6 per parameter in a matmul + 12 · layers · hidden · context a token; training")
    )
    notes += [("memory", _memory_note(estimate, gpu)), ("disk", prefix + _disk_note(first))]
    if estimate.price is not None:
        hours = "hours" if first.device == "CPU" else "GPU hours"
        notes.append(("cost", f"{hours} × {estimate.price:g}"))
    if any(cost.unsharded for cost in estimate.costs):
        notes.append(
            (
                "text",
                "some corpora are text that is not sharded yet, so their tokens are not known: "
                "validation sets among them count as none; --measure shards them first",
            )
        )
    if problems := sum(cost.problems for cost in estimate.costs):
        what = "1 problem prevents" if problems == 1 else f"{problems} problems prevent"
        notes.append(("problems", f"{what} training here; `rewarm check` lists them"))
    return notes


def _speed_sources(estimate: CostEstimate) -> list[str]:
    texts = []
    for source in dict.fromkeys(cost.source for cost in estimate.costs if cost.source):
        names = [cost.name for cost in estimate.costs if cost.source == source]
        prefix = f"{', '.join(names)}: " if len(names) < len(estimate.costs) else ""
        texts.append(prefix + source)
    return texts


def _time_note(cost: RunCost, *, measured: bool) -> str:
    hours = cost.time
    assert hours
    parts = [f"{_format_hours(hours.training)} of steps"]
    if hours.communicating:
        parts.append(f"{_format_hours(hours.communicating)} of communication")
    if cost.evaluations:
        evaluated = f"{cost.evaluations:,} × {format_count(cost.evaluated)} tokens"
        parts.append(f"{_format_hours(hours.evaluating)} of evaluations ({evaluated})")
    if measured:
        parts.append(f"{_format_hours(hours.saving)} of saves")
        parts.append(f"{_format_hours(hours.starting)} of startup and exit")
        return " + ".join(parts)
    return (
        f"{' + '.join(parts)}; an evaluated token is estimated at a third of a trained one; "
        "startup and saves were not measured and are not included"
    )


def _queue_note(estimate: CostEstimate) -> str:
    held = estimate.held_gpu_hours or 0.0
    cost = f", {format_number(held * estimate.price)}" if estimate.price is not None else ""
    return (
        f"one run on each, in their order, bases first (rewarm compare --workers {estimate.gpus}); "
        f"all {estimate.gpus} held until the last run ends: {format_number(held)} GPU hours{cost}"
    )


def _sharing_notes(cost: RunCost, plan: GpuPlan) -> list[tuple[str, str]]:
    """Returns how GPUs share a run, and what they send each other."""
    automatic = cost.microbatch is None
    split = split_text(plan, automatic=automatic)
    if plan.useful < 1:
        split += f"; {padding_text(plan, automatic=automatic)}"
    one_at_once = ", with one sequence at once" if automatic else ""
    overlapped = f"; {_format_hours(cost.time.overlapped)} with full overlap" if cost.time else ""
    links = (
        f"parallel.shard: {plan.shard_name(plan.shard)} sends "
        f"{format_bytes(plan.chosen.bytes_sent)} from each GPU in a step{one_at_once}, "
        f"{format_seconds(plan.chosen.communication_seconds)} by a model of H100s, none of it "
        f"while they compute{overlapped}"
    )
    return [("GPUs", split), ("links", links)]


def _memory_note(estimate: CostEstimate, gpu: str | None) -> str:
    if estimate.costs[0].memory_measured:
        return "the peak of the process that took the steps, Python and torch included"
    on_each = " on each GPU" if estimate.costs[0].sharing else ""
    text = (
        "weights, gradients, optimizer state, activations and logits at the peak of a step"
        f"{on_each}, by arithmetic"
    )
    largest = max(estimate.costs, key=lambda cost: cost.memory)
    if not gpu:
        note = f"on a {largest.device}: {text}"
        if largest.memory_elsewhere is not None:
            note += f"; {elsewhere_text(largest.device, largest.memory_elsewhere)}"
        return note
    available = gpu_memory(gpu)
    if estimate.memory <= available:
        return f"of {format_bytes(available)}: {text}"
    return (
        f"more than the {format_bytes(available)} of {gpu}: at this microbatch it does not fit"
        f"{_shards_that_fit(estimate.costs[0].sharing, available)}"
    )


def _shards_that_fit(plan: GpuPlan | None, available: int) -> str:
    """Returns which settings of `parallel.shard` need no more than the available memory."""
    fitting = [shard.shard for shard in plan.shards if shard.memory <= available] if plan else []
    if not plan or not fitting:
        return ""
    return f"; it does with parallel.shard: {plan.shard_name(fitting[0])}"


def _disk_note(cost: RunCost) -> str:
    checkpoints = f"{cost.checkpoints:,} checkpoints" if cost.checkpoints > 1 else "1 checkpoint"
    return (
        f"{checkpoints} × {format_bytes(cost.checkpoint_bytes)}, {cost.bytes_per_parameter} bytes "
        "a parameter; tokenizer and metrics not included"
    )


def _format_hours(hours: float | None) -> str:
    if hours is None:
        return ""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
