"""The output of `rewarm compare`, and of `rewarm check` for a study."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as LiveTable

from rewarm.cli.seeds_output import seed_notes
from rewarm.cli.terminal_tables import (
    print_notes,
    print_result_table,
)
from rewarm.cli.text_sharding import shard_texts
from rewarm.errors import CheckpointError, RewarmError
from rewarm.estimates.cost import CostEstimate, estimate_study_cost
from rewarm.estimates.run_plan import rates_at_marks
from rewarm.estimates.throughput import measured_gpus, speed_on_gpu
from rewarm.files import atomic_write
from rewarm.paths import short_path
from rewarm.quantities import format_clock, format_count, format_number
from rewarm.recipe.recipe import Recipe
from rewarm.runs.start_record import high_rate_warning
from rewarm.study.comparison_tables import claims_table, comparison_table
from rewarm.study.preflight_study import check_study, checkable_recipes
from rewarm.study.results_json import StudySummary, results_as_json, study_pareto_front
from rewarm.study.run_outcomes import StudyResults, outcome_notes, same_batches
from rewarm.study.runner import RunStatus, StudyRunner
from rewarm.study.study_plan import StudyPlan, held_out_warnings_of_study, study_roles
from rewarm.study.worker_gpus import WorkerGpus, divide_gpus, visible_gpus
from rewarm.study.worker_threads import fix_threads
from rewarm.table_cells import Cell, Table, count_cell, tokens_cell

_COLUMNS = ("arm", "start", "final", "change", "peak rise", "recovered at")
"""The columns of a comparison table that fit a terminal, besides the differences."""


def check_and_run_study(plan: StudyPlan, workers: int, *, as_json: bool) -> None:
    """Checks that every run of a study can start, shards their texts, and runs the study.

    Args:
        plan: the study.
        workers: the most runs at once.
        as_json: print the content of results.json instead of tables.

    Raises:
        RewarmError: see `check_study` and `run_and_print_study`.
    """
    worker_gpus = divide_gpus(visible_gpus(), workers)
    check_study(plan, gpus=worker_gpus.per_worker)
    if shard_texts(checkable_recipes(plan)):
        check_study(plan, gpus=worker_gpus.per_worker)
    threads = None
    if worker_gpus.per_worker:
        line = f"GPUs      {worker_gpus.as_text()}"
    else:
        threads, note = fix_threads(Path(short_path(plan.study.study)), workers)
        line = f"threads   {note}"
    with suppress(OSError):  # a closed terminal must not end the study
        print_notes([line], indent=10, stderr=True)
    run_and_print_study(plan, worker_gpus, threads=threads, as_json=as_json)


def run_and_print_study(
    plan: StudyPlan, workers: WorkerGpus, *, threads: int | None = None, as_json: bool
) -> None:
    """Runs every run of a study that is not complete, writes results.json, prints the results.

    Args:
        plan: the study.
        workers: the GPUs of each worker.
        threads: CPU threads of each run; None to leave the number to PyTorch.
        as_json: print the content of results.json instead of tables.

    Raises:
        RewarmError: see `StudyRunner.run_all`, or results.json cannot be written; the results of
            complete runs are printed first.
    """
    runner = StudyRunner(plan)
    failure: RewarmError | None = None
    try:
        with _status_display() as show:
            runner.run_all(workers, show, threads=threads)
    except RewarmError as error:
        failure = error
    results = runner.results()
    if results.outcomes:
        path = Path(short_path(plan.study.study)) / "results.json"
        content = results_as_json(plan, results)
        text = json.dumps(content, indent=1, allow_nan=False)
        try:
            atomic_write(path, text + "\n")
        except OSError as error:
            failure = _with_unwritten_results(failure, path, error)
        if as_json:
            print(text)
        else:
            _print_results(plan, results, StudySummary.model_validate(content))
            print(f"results   {path}")
    if failure:
        raise failure


def _with_unwritten_results(failure: RewarmError | None, path: Path, error: OSError) -> RewarmError:
    """Returns an error that also says that results.json was not written."""
    unwritten = (
        f"{path}: cannot be written: {error.strerror}; what was there is kept, and no run is lost: "
        "free disk space or check the permissions, and run the same command again"
    )
    if failure is None:
        return CheckpointError(unwritten)
    failure.args = (f"{failure}\n{unwritten}",)
    return failure


def print_study_plan(plan: StudyPlan) -> None:
    """Prints the arms, runs and claims of a study, and its GPU hours."""
    bases = [
        f"base      {name}: {recipe.steps:,} steps, {format_count(_tokens(recipe))} tokens"
        for name, recipe in plan.bases.items()
    ]
    print_notes(bases, indent=10)
    rows = []
    for arm, changes in plan.study.arms.items():
        recipe = plan.runs_of(arm)[0].recipe
        changes_text = "; ".join(
            f"{setting}: {json.dumps(value)}" for setting, value in changes.items()
        )
        rows.append(
            [
                Cell(arm),
                count_cell(recipe.steps),
                tokens_cell(_tokens(recipe)),
                Cell(_initial_weights(recipe)),
                Cell(changes_text or "nothing"),
            ]
        )
    columns = ["arm", "steps", "tokens", "starts from", "changes"]
    print_result_table(Table("Arms", "", columns, rows), show_title=False)
    notes = [("batches", f"the same for {', '.join(group)}") for group in _arms_by_data(plan)]
    recipes = [run.recipe for run in plan.runs] + list(plan.bases.values())
    runs = (
        f"{len(plan.study.arms)} arms × {len(plan.study.seeds)} seeds"
        + (f" + bases: {', '.join(plan.bases)}" if plan.bases else "")
        + f" = {len(recipes)} runs, {format_count(sum(map(_tokens, recipes)))} tokens, "
        + f"in {short_path(plan.study.study)}"
    )
    notes.append(("runs", runs))
    notes += [("set", f"{name}: {role}") for name, role in study_roles(plan).items()]
    notes += [("warning", warning) for warning in held_out_warnings_of_study(plan)]
    for run in {run.arm: run for run in plan.runs}.values():
        rates = {rate.step: rate.lr for rate in rates_at_marks(run.recipe)}
        notes += [("warning", f"{run.arm}: {text}") for text in high_rate_warning(rates)]
    estimates = _estimates(plan)
    notes.append(("hours", _gpu_hours(estimates)))
    notes += seed_notes(plan, next(iter(estimates.values()), None))
    notes += [("claim", f"{name}: {claim.text}") for name, claim in plan.claims.items()]
    print_notes((f"{heading:<10}{text}" for heading, text in notes), indent=10)


def _initial_weights(recipe: Recipe) -> str:
    """Returns what a run starts from: a base model, or newly initialized weights."""
    model = recipe.model
    source = short_path(model.base or model.preset or "newly initialized weights")
    if model.revision:
        source += f" at {model.revision}"
    return f"newly initialized weights, architecture of {source}" if model.fresh else source


def _estimates(plan: StudyPlan) -> dict[str, CostEstimate]:
    """Returns the cost of a study on each GPU that was measured."""
    estimates = {}
    for gpu in measured_gpus():
        with suppress(RewarmError):  # for example, it was not measured in this precision
            estimates[gpu] = estimate_study_cost(
                plan, gpus=1, on_gpu=True, speed_of=speed_on_gpu(gpu)
            )
    return estimates


def _gpu_hours(estimates: dict[str, CostEstimate]) -> str:
    """Returns the GPU hours of a study on each measured GPU, or how to measure them."""
    hours = [
        f"{format_number(estimate.gpu_hours or 0)} on one {gpu} (rewarm plan --gpu {gpu})"
        for gpu, estimate in estimates.items()
    ]
    return "; ".join(hours) or "rewarm plan --measure, on the machine that will run it"


def _tokens(recipe: Recipe) -> int:
    return int(recipe.steps * recipe.batch.tokens)


def _arms_by_data(plan: StudyPlan) -> list[list[str]]:
    """Returns the groups of arms whose recipes train on the same tokens in the same order."""
    groups: dict[str, list[str]] = {}
    for arm in plan.study.arms:
        recipe = plan.runs_of(arm)[0].recipe
        data = recipe.document()["data"]
        data_settings = {name: data[name] for name in ("context", "lanes", "train", "carry")}
        key: list[Any] = [data_settings, recipe.seed, recipe.batch.tokens, recipe.steps]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(arm)
    return list(groups.values())


@contextmanager
def _status_display() -> Iterator[Callable[[list[RunStatus], str], None]]:
    """Yields a function that shows statuses: in a terminal as a live table, else as lines."""
    console = Console(stderr=True, highlight=False)
    printed: dict[str, str] = {}

    def print_changes(statuses: list[RunStatus], note: str) -> None:
        if note and "" not in printed:
            printed[""] = note
            console.print(note, soft_wrap=True)
        for status in statuses:
            if printed.get(status.name) != status.state and status.state != "waiting":
                gpus = f" on GPU {status.gpus}" if status.gpus else ""
                loss = f"  loss {status.loss:.4f}" if status.state == "done" and status.loss else ""
                failure = f": {status.failure}" if status.failure else ""
                line = f"{status.name}  {status.state}{gpus}{loss}{failure}"
                console.print(line, markup=False, soft_wrap=True)
            printed[status.name] = status.state

    if not console.is_terminal:
        yield print_changes
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda statuses, note: live.update(
            Group(_status_table(statuses, console.height - 2), note), refresh=True
        )


def _status_table(statuses: list[RunStatus], height: int) -> LiveTable:
    """Returns a table with at most `height` rows: the runs, those at work first if not all fit."""
    table = LiveTable(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "step", "loss", "tokens/s", "left", ""):
        is_number = column in ("step", "loss", "tokens/s", "left")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=column != "")
    room = max(3, height - 2)
    shown = statuses
    if len(statuses) > room:
        order = ("running", "saving", "elsewhere", "failed", "done", "waiting")
        shown = sorted(statuses, key=lambda status: order.index(status.state))[:room]
    for status in shown:
        speed, left = status.tokens_per_second, status.seconds_left
        table.add_row(
            status.name,
            f"{status.state} on GPU {status.gpus}" if status.gpus else status.state,
            f"{status.step:,}/{status.steps:,}",
            "" if status.loss is None else f"{status.loss:.4f}",
            "" if speed is None else f"{speed:,.0f}",
            "" if left is None else format_clock(left),
            status.failure,
        )
    counts = Counter(status.state for status in statuses)
    table.caption = ", ".join(f"{count} {state}" for state, count in counts.items())
    table.caption_justify = "left"
    return table


def _print_results(plan: StudyPlan, results: StudyResults, summary: StudySummary) -> None:
    arms, control = list(plan.study.arms), plan.study.control
    for name in results.validation_sets:
        table = comparison_table(
            results, name, arms=arms, reference=plan.reference, control=control
        )
        differences = [column for column in table.columns if column.startswith("vs ")]
        print_result_table(table.select(*_COLUMNS, *differences))
        print()
    notes = [
        f"front     {', '.join(front)}: the Pareto front of {results.upstream} and {name}, where a "
        "lower loss on one costs loss on the other"
        for name in results.new_sets
        if (front := study_pareto_front(plan, results, name))
    ]
    notes += [f"note      {note}" for note in outcome_notes(results)]
    notes += [
        f"batches   seed {seed}: the same tokens for {', '.join(group)}"
        for seed, groups in same_batches(results, arms).items()
        for group in groups
        if len(group) > 1
    ]
    print_notes(notes, indent=10)
    if summary.claims:
        table = claims_table(summary.claims)
        print_result_table(table.select("verdict", "effect", "name", "reason"), show_title=False)
