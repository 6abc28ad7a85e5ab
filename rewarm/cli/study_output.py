"""`rewarm compare`, and `rewarm check` of a study, in the terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rewarm.cli.terminal_tables import plain_table, print_table
from rewarm.errors import RewarmError
from rewarm.estimates.cost import estimate_study_cost
from rewarm.estimates.throughput import measured_gpus, speed_on_gpu
from rewarm.quantities import format_count, format_number
from rewarm.study.intervals import Estimate
from rewarm.study.outcomes import StudyResults, same_batches
from rewarm.study.results_json import (
    UPSTREAM,
    results_as_json,
    same_length,
    study_pareto_front,
    validation_sets,
)
from rewarm.study.runner import RunStatus, StudyRunner
from rewarm.study.study_file import StudyPlan


def run_and_print_study(plan: StudyPlan, workers: int, *, as_json: bool) -> None:
    """Does what is left of a study, and prints what came of it.

    Raises:
        RewarmError: see `Compare.work`; what is complete is printed before.
    """
    work = StudyRunner(plan)
    try:
        with _screen() as show:
            work.work(workers, show)
    finally:
        results = work.results()
        if results.ran:
            written = Path(plan.study.study) / "results.json"
            said = results_as_json(plan, results)
            written.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
            if as_json:
                print(json.dumps(said, indent=1))
            else:
                _print(plan, results)
                print(f"results   {written}")


def print_study_plan(plan: StudyPlan) -> None:
    """Prints what a study will do."""
    for name, recipe in plan.bases.items():
        print(f"base      {name}: {recipe.steps:,} steps, {format_count(_tokens(recipe))} tokens")
    table = plain_table("arm", "steps", "tokens", "starts from", "what it changes")
    for arm, said in plan.study.arms.items():
        first = plan.of(arm)[0].recipe
        model = first.model
        start = model.base or model.preset or "new weights"
        if model.revision:
            start += f" at {model.revision}"
        if model.fresh:
            start = f"new weights, as {start}"
        changes = "; ".join(f"{path}: {json.dumps(value)}" for path, value in said.items())
        tokens = format_count(_tokens(first))
        table.add_row(arm, f"{first.steps:,}", tokens, start, changes or "nothing")
    print_table(table)
    for group in _same_data(plan):
        print(f"batches   the same for {', '.join(group)}")
    runs = [job.recipe for job in plan.jobs] + list(plan.bases.values())
    print(
        f"runs      {len(plan.study.arms)} arms × {len(plan.study.seeds)} seeds"
        + (f" + bases: {', '.join(plan.bases)}" if plan.bases else "")
        + f" = {len(runs)} runs, {format_count(sum(map(_tokens, runs)))} tokens, "
        + f"in {plan.study.study}"
    )
    print(f"hours     {_hours(plan)}")
    for words, claim in plan.claims.items():
        print(f"claim     {words}: {claim.text}")


def _hours(plan: StudyPlan) -> str:
    """Returns the GPU hours of a study on each GPU that was measured, or how to find them."""
    known = []
    for gpu in measured_gpus():
        with suppress(RewarmError):  # not in this precision, say
            bill = estimate_study_cost(plan, gpus=1, on_gpu=True, speed_of=speed_on_gpu(gpu))
            known.append(
                f"{format_number(bill.gpu_hours or 0)} on one {gpu} (rewarm plan --gpu {gpu})"
            )
    return "; ".join(known) or "rewarm plan --measure, on the machine that is to run it"


def _tokens(recipe: Any) -> int:
    return int(recipe.steps * recipe.batch.tokens)


def _same_data(plan: StudyPlan) -> list[list[str]]:
    """Returns the groups of arms whose recipes take the same tokens in the same order."""
    groups: dict[str, list[str]] = {}
    for arm in plan.study.arms:
        one = plan.of(arm)[0].recipe
        data = one.document()["data"]
        key = {name: data[name] for name in ("context", "lanes", "train", "carry")}
        said = json.dumps([key, one.seed, one.batch.tokens, one.steps], sort_keys=True)
        groups.setdefault(said, []).append(arm)
    return list(groups.values())


@contextmanager
def _screen() -> Iterator[Callable[[list[RunStatus]], None]]:
    """Gives a function that shows states: a live table on a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    seen: dict[str, str] = {}

    def say(states: list[RunStatus]) -> None:
        for one in states:
            if seen.get(one.name) != one.what and one.what != "waiting":
                why = f": {one.why}" if one.why else ""
                console.print(f"{one.name}  {one.what}{why}", markup=False, soft_wrap=True)
            seen[one.name] = one.what

    if not console.is_terminal:
        yield say
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda states: live.update(_states(states, console.height), refresh=True)


def _states(states: list[RunStatus], height: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "step", ""):
        table.add_column(
            column, no_wrap=column != "", justify="right" if column == "step" else "left"
        )
    counts = Counter(one.what for one in states)
    busy = [one for one in states if one.what in ("running", "elsewhere", "failed")]
    rest = [one for one in states if one.what == "waiting"]
    shown = (busy + rest)[: max(3, height - 4)]
    for one in shown:
        bar = "━" * round(20 * one.step / one.steps)
        table.add_row(one.name, one.what, f"{one.step:,}/{one.steps:,}", one.why or bar)
    table.add_row("", "", "", ", ".join(f"{count} {what}" for what, count in counts.items()))
    return table


def _print(plan: StudyPlan, results: StudyResults) -> None:
    for on in validation_sets(results):
        print_table(_table(plan, results, on))
        print()
    for on in validation_sets(results):
        if on != UPSTREAM and (best := study_pareto_front(plan, results, on)):
            print(f"front     {on}: no arm ends lower on it and upstream than {', '.join(best)}")
    for seed, groups in same_batches(results, plan.study.arms).items():
        for group in groups:
            if len(group) > 1:
                print(f"batches   seed {seed}: the same tokens for {', '.join(group)}")
    if plan.claims:
        table = plain_table("verdict", "effect", "claim")
        for said, claim in plan.claims.items():
            found = claim.judge(results.known, plan.study.seeds)
            why = f" ({found.why})" if found.why else ""
            table.add_row(found.verdict, _effect(found.effect), f"{said}{why}")
        print_table(table)


def _table(plan: StudyPlan, results: StudyResults, on: str) -> Table:
    """Returns what came of each arm on a set, beside the reference and the control."""
    others = list(dict.fromkeys(one for one in (plan.reference, plan.study.control) if one))
    table = Table(box=None, pad_edge=False, header_style="bold", title=on, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in ("start", "final", "change", "bump", "back at", *(f"vs {one}" for one in others)):
        table.add_column(column, justify="right", no_wrap=True)
    for arm in plan.study.arms:
        if results.over_seeds(arm, on, lambda one: one.final) is None:
            continue
        bump = results.over_seeds(arm, on, lambda one: one.bump)
        beside = (
            ""
            if arm == other or not same_length(plan, arm, other)
            else _mean(results.paired(arm, other, on, lambda one: one.final), sign=True)
            for other in others
        )
        table.add_row(
            arm,
            _mean(results.over_seeds(arm, on, lambda one: one.start)),
            _mean(results.over_seeds(arm, on, lambda one: one.final)),
            _mean(results.over_seeds(arm, on, lambda one: one.forgetting), sign=True),
            _mean(bump, sign=True) if bump and bump.mean > 0 else "none",
            _back(results, arm, on),
            *beside,
        )
    return table


def _mean(found: Estimate | None, *, sign: bool = False) -> str:
    if found is None:
        return ""
    mean = f"{found.mean:+.4f}" if sign else f"{found.mean:.4f}"
    return mean if found.error is None else f"{mean} ± {found.error:.4f}"


def _effect(found: Estimate | None) -> str:
    if found is None:
        return ""
    interval = found.interval
    if interval is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _back(results: StudyResults, arm: str, on: str) -> str:
    """Returns when the loss was back where it started, over the seeds."""
    there = [results.outcome(arm, seed, on) for seed in results.seeds(arm)]
    tokens = [one.recovered for one in there if one is not None]
    back = [one for one in tokens if one is not None]
    if len(back) < len(tokens):
        return "not" if not back else f"not ({len(back)} of {len(tokens)})"
    return format_count(sum(back) / len(back)) if any(back) else "—"
