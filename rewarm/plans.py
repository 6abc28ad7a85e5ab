"""`rewarm plan`: what a recipe, or a study, takes, in a table, and where each figure is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import rewarm
from rewarm import options, speeds, study, tables
from rewarm.architecture import Architecture
from rewarm.errors import did_you_mean
from rewarm.options import Json, Set
from rewarm.plan import Bill, Cost, of_recipe, of_study
from rewarm.quantities import in_bytes, in_figures, in_words
from rewarm.recipe import Recipe
from rewarm.speeds import Speed, SpeedOf


def plan(
    file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or a study, in YAML.")],
    overrides: Set = None,
    gpus: Annotated[
        int, typer.Option(metavar="N", help="GPUs; a study's runs are spread over them.", min=1)
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Their kind: one that was measured.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take ten steps on this machine, and go by those.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Of one GPU for an hour.", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a recipe, or a study, takes: tokens, FLOPs, hours, cost, memory, disk."""
    if gpu and measure:
        raise typer.BadParameter("--gpu and --measure: the speed is that of one or the other")
    if price is not None and not (gpu or measure):
        raise typer.BadParameter("--price: hours are needed for it; name a --gpu, or --measure")
    known = speeds.gpus()
    if gpu and gpu not in known:
        raise typer.BadParameter(
            f"--gpu {gpu}: nothing was measured on it{did_you_mean(gpu, known)} (measured: "
            f"{', '.join(known)}); on such a machine, --measure"
        )
    speed_of = speeds.of_gpu(gpu) if gpu else _measured() if measure else None
    on_gpu = True if gpu else None
    if study.is_study(file):
        arms = study.load(file, overrides)
        bill = of_study(arms, gpus=gpus, on_gpu=on_gpu, speed_of=speed_of)
    else:
        recipe = options.load(file, overrides)
        bill = of_recipe(recipe, gpus=gpus, on_gpu=on_gpu, speed_of=speed_of)
    if price is not None and bill.gpu_hours is not None:
        bill = bill.model_copy(update={"price": price, "cost": price * bill.gpu_hours})
    if as_json:
        print(bill.model_dump_json(indent=1))
        return
    _print(bill, gpu)


def _measured() -> SpeedOf:
    """Returns a function that measures once what is alike in all that speed depends on."""
    from rewarm import measure

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
            found[key] = measure.measure(recipe, shape, evaluated)
        return found[key]

    return speed_of


def _print(bill: Bill, gpu: str | None) -> None:
    rows = [_row(one.name, one, f"{one.steps:,}", bill.price) for one in bill.costs]
    if bill.runs > 1:
        rows.append(_row("all", bill, "", bill.price))
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    table = tables.table(*shown)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    tables.show(table)
    for key, text in _notes(bill, gpu):
        print(f"{key:<10}{text}")


def _row(name: str, of: Cost | Bill, steps: str, price: float | None) -> dict[str, str]:
    return {
        "run": name,
        "runs": f"{of.runs}" if isinstance(of, Bill) or of.runs > 1 else "",
        "tokens": in_words(of.tokens),
        "steps": steps,
        "FLOPs": f"{of.flops:.2e}".replace("e+", "e"),
        "time": _time(of.hours),
        "GPU hours": "" if of.gpu_hours is None else in_figures(of.gpu_hours),
        "cost": in_figures(of.gpu_hours * price) if of.gpu_hours and price is not None else "",
        "memory": in_bytes(of.memory),
        "disk": in_bytes(of.disk),
    }


def _notes(bill: Bill, gpu: str | None) -> list[tuple[str, str]]:
    """Returns where each figure is from, and what it takes for granted."""
    first = bill.costs[0]
    whose = f"{first.name}: " if len(bill.costs) > 1 else ""
    notes = []
    for source in dict.fromkeys(one.source for one in bill.costs if one.source):
        named = [one.name for one in bill.costs if one.source == source]
        of = f"{', '.join(named)}: " if len(named) < len(bill.costs) else ""
        notes.append(("speed", of + source))
    if bill.hours is None:
        known = ", ".join(f"--gpu {one}" for one in speeds.gpus())
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


def _time_of(cost: Cost, *, measured: bool) -> str:
    spent = cost.time
    assert spent
    parts = [f"{_time(spent.training)} of steps"]
    if cost.evaluations:
        evaluated = f"{cost.evaluations:,} × {in_words(cost.evaluated)} tokens"
        parts.append(f"{_time(spent.evaluating)} of evaluations ({evaluated})")
    if measured:
        parts += [f"{_time(spent.saving)} of saves", f"{_time(spent.starting)} to start and leave"]
        return " + ".join(parts)
    return (
        f"{' + '.join(parts)}, a token taking a third of one trained on; starting and saving were "
        "not measured, and are left out"
    )


def _spread(bill: Bill, first: Cost) -> str:
    if first.gpus > 1:
        unit = first.microbatch or 1
        parts = first.sequences // unit
        busiest = -(-parts // first.gpus)
        return (
            f"{first.gpus} at one GPU's speed each, nothing counted for what they tell each other; "
            f"the busiest runs {busiest:,} of a step's {parts:,} microbatches of {unit}; rewarm "
            f"{rewarm.__version__} itself trains a run on one GPU"
        )
    held = bill.held_gpu_hours or 0.0
    dear = f", {in_figures(held * bill.price)}" if bill.price is not None else ""
    return (
        f"a run on each, in their order, bases first (rewarm compare --workers {bill.gpus}); all "
        f"{bill.gpus} held until the last run ends: {in_figures(held)} GPU hours{dear}"
    )


def _memory(bill: Bill, gpu: str | None) -> str:
    if bill.costs[0].memory_measured:
        return "the peak of the process that took the steps, Python and torch included"
    how = "weights, gradients, moments, activations and logits at the peak of a step, by arithmetic"
    if not gpu:
        return how
    there = speeds.memory_of(gpu)
    if bill.memory <= there:
        return f"of {in_bytes(there)}: {how}"
    return f"more than the {in_bytes(there)} of {gpu}: at this microbatch it does not fit"


def _disk(cost: Cost) -> str:
    at_once = f"{cost.checkpoints:,} checkpoints" if cost.checkpoints > 1 else "1 checkpoint"
    return (
        f"{at_once} × {in_bytes(cost.checkpoint_bytes)}, 12 bytes a parameter; "
        "tokenizer and metrics not counted"
    )


def _time(hours: float | None) -> str:
    if hours is None:
        return ""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
