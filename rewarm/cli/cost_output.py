"""The table of `rewarm plan`, and where each figure in it comes from."""

from __future__ import annotations

import json

from rich.console import Console

from rewarm.cli.terminal_tables import plain_table, print_table
from rewarm.estimates.cost import CostEstimate, RunCost
from rewarm.estimates.throughput import Speed, SpeedOf, gpu_memory, measured_gpus
from rewarm.model.architecture import Architecture
from rewarm.quantities import format_bytes, format_count, format_number
from rewarm.recipe.recipe import Recipe
from rewarm.version import __version__


def measured_speed() -> SpeedOf:
    """Returns a function that measures once what is alike in all that speed depends on."""
    from rewarm.estimates.measure_step_time import measure_step_time

    console = Console(stderr=True, highlight=False)
    found: dict[str, Speed] = {}

    def speed_of(recipe: Recipe, shape: Architecture, evaluated: int) -> Speed:
        said = recipe.document()
        how = [said[name] for name in ("batch", "precision", "tf32", "compile")]
        how += [said[name] for name in ("kernels", "memory")]
        how += [said["data"][name] for name in ("context", "documents", "workers")]
        key = json.dumps([shape.model_dump(), *how, evaluated])
        if key not in found:
            console.print(
                f"measuring {shape.parameters:,} parameters, {recipe.batch.tokens:,} tokens a "
                "step: ten steps, or as many as take ten seconds",
                soft_wrap=True,
            )
            found[key] = measure_step_time(recipe, shape, evaluated)
        return found[key]

    return speed_of


def print_cost(bill: CostEstimate, gpu: str | None) -> None:
    """Prints a cost estimate as a table, and below it where each figure comes from."""
    rows = [_row(one.name, one, f"{one.steps:,}", bill.price) for one in bill.costs]
    if bill.runs > 1:
        rows.append(_row("all", bill, "", bill.price))
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    table = plain_table(*shown)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    print_table(table)
    for key, text in _notes(bill, gpu):
        print(f"{key:<10}{text}")


def _row(name: str, of: RunCost | CostEstimate, steps: str, price: float | None) -> dict[str, str]:
    return {
        "run": name,
        "runs": f"{of.runs}" if isinstance(of, CostEstimate) or of.runs > 1 else "",
        "tokens": format_count(of.tokens),
        "steps": steps,
        "FLOPs": f"{of.flops:.2e}".replace("e+", "e"),
        "time": _time(of.hours),
        "GPU hours": "" if of.gpu_hours is None else format_number(of.gpu_hours),
        "cost": format_number(of.gpu_hours * price) if of.gpu_hours and price is not None else "",
        "memory": format_bytes(of.memory),
        "disk": format_bytes(of.disk),
    }


def _notes(bill: CostEstimate, gpu: str | None) -> list[tuple[str, str]]:
    """Returns where each figure is from, and what it takes for granted."""
    first = bill.costs[0]
    whose = f"{first.name}: " if len(bill.costs) > 1 else ""
    notes = []
    for source in dict.fromkeys(one.source for one in bill.costs if one.source):
        named = [one.name for one in bill.costs if one.source == source]
        of = f"{', '.join(named)}: " if len(named) < len(bill.costs) else ""
        notes.append(("speed", of + source))
    if bill.hours is None:
        known = ", ".join(f"--gpu {one}" for one in measured_gpus())
        notes.append(("time", f"name what to run on ({known}), or --measure on this machine"))
    else:
        notes.append(("time", whose + _time_of(first, measured=gpu is None)))
    if bill.gpus > 1 and bill.hours is not None:
        notes.append(("GPUs", _spread(bill, first)))
    notes.append(
        ("FLOPs", "6 per parameter in a product + 12 · layers · hidden · context a token; training")
    )
    notes += [("memory", _memory(bill, gpu)), ("disk", whose + _disk(first))]
    if bill.price is not None:
        notes.append(("cost", f"GPU hours × {bill.price:g}"))
    return notes


def _time_of(cost: RunCost, *, measured: bool) -> str:
    spent = cost.time
    assert spent
    parts = [f"{_time(spent.training)} of steps"]
    if cost.evaluations:
        evaluated = f"{cost.evaluations:,} × {format_count(cost.evaluated)} tokens"
        parts.append(f"{_time(spent.evaluating)} of evaluations ({evaluated})")
    if measured:
        parts += [f"{_time(spent.saving)} of saves", f"{_time(spent.starting)} to start and leave"]
        return " + ".join(parts)
    return (
        f"{' + '.join(parts)}, a token taking a third of one trained on; starting and saving were "
        "not measured, and are left out"
    )


def _spread(bill: CostEstimate, first: RunCost) -> str:
    if first.gpus > 1:
        unit = first.microbatch or 1
        parts = first.sequences // unit
        busiest = -(-parts // first.gpus)
        return (
            f"{first.gpus} at one GPU's speed each, nothing counted for what they tell each other; "
            f"the busiest runs {busiest:,} of a step's {parts:,} microbatches of {unit}; rewarm "
            f"{__version__} itself trains a run on one GPU"
        )
    held = bill.held_gpu_hours or 0.0
    dear = f", {format_number(held * bill.price)}" if bill.price is not None else ""
    return (
        f"a run on each, in their order, bases first (rewarm compare --workers {bill.gpus}); all "
        f"{bill.gpus} held until the last run ends: {format_number(held)} GPU hours{dear}"
    )


def _memory(bill: CostEstimate, gpu: str | None) -> str:
    if bill.costs[0].memory_measured:
        return "the peak of the process that took the steps, Python and torch included"
    how = "weights, gradients, moments, activations and logits at the peak of a step, by arithmetic"
    if not gpu:
        return how
    there = gpu_memory(gpu)
    if bill.memory <= there:
        return f"of {format_bytes(there)}: {how}"
    return f"more than the {format_bytes(there)} of {gpu}: at this microbatch it does not fit"


def _disk(cost: RunCost) -> str:
    at_once = f"{cost.checkpoints:,} checkpoints" if cost.checkpoints > 1 else "1 checkpoint"
    return (
        f"{at_once} × {format_bytes(cost.checkpoint_bytes)}, 12 bytes a parameter; "
        "tokenizer and metrics not counted"
    )


def _time(hours: float | None) -> str:
    if hours is None:
        return ""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
