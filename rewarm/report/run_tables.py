"""The tables of a report that show runs: progress, settings, batches, events, environment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from rewarm.report.collect_runs import CollectedRuns, JsonLine, RunRecord
from rewarm.runs.metrics_file import NOT_EVENTS
from rewarm.study.run_outcomes import same_batches
from rewarm.table_cells import EMPTY, Cell, Table, count_cell, number_cell, tokens_cell


def runs_table(collected: CollectedRuns) -> Table:
    """Returns a table with the progress, speed and data digest of each run."""
    caption = (
        "Speed and MFU are means over the logged steps; starts: number of processes that started "
        "or resumed the run; skipped: steps that were not applied; data: digest of all tokens that "
        "the run was trained on."
    )
    columns = ["arm", "seed", "state", "tokens", "tokens/s", "MFU", "starts", "skipped", "data"]
    rows = [_run_row(record) for record in collected.records]
    rows += [
        [Cell(arm), count_cell(seed), Cell("not begun"), *[EMPTY] * (len(columns) - 2)]
        for arm, seeds in collected.not_begun.items()
        for seed in seeds
    ]
    return Table("Runs", caption, [*columns, "directory"], rows)


def _run_row(record: RunRecord) -> list[Cell]:
    lines = record.lines_of("train")
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    utilizations = [line["mfu"] for line in lines if line.get("mfu")]
    last = lines[-1] if lines else {}
    return [
        Cell(record.arm),
        count_cell(record.seed),
        Cell(_state(record)),
        tokens_cell(last.get("tokens", 0)),
        number_cell(fmean(speeds) if speeds else None, ",.0f"),
        number_cell(fmean(utilizations) if utilizations else None, ".1%"),
        count_cell(sum(event["kind"] == "start" for event in record.events)),
        count_cell(int(last.get("skipped") or 0)),
        Cell(str(last.get("stream") or "")[:12]),
        Cell(str(record.directory)),
    ]


def _state(record: RunRecord) -> str:
    if record.is_done:
        return "complete"
    return f"step {record.step:,}" + (f" of {record.steps:,}" if record.steps else "")


def settings_table(collected: CollectedRuns) -> Table:
    """Returns a table of the settings in which the arms differ."""
    settings = {arm: collected.records_of(arm)[0].settings for arm in collected.arms}
    names = dict.fromkeys(name for values in settings.values() for name in values)
    rows = []
    for name in names:
        values = [_setting(arm_settings, name) for arm_settings in settings.values()]
        if len(set(values)) > 1 and name not in ("run", "seed"):
            reference_value = _setting(settings[collected.reference], name)
            cells = (Cell(value, quiet=value == reference_value) for value in values)
            rows.append([Cell(name), *cells])
    caption = (
        "Every setting in which arms differ; for all others see the recipe of "
        f"{collected.reference}, below."
    )
    return Table("Differences between the arms", caption, ["setting", *settings], rows)


def _setting(settings: dict[str, Any], name: str) -> str:
    """Returns a setting's value as written in a recipe, or a dash if the recipe has none."""
    if name not in settings:
        return "—"
    value = settings[name]
    return value if isinstance(value, str) else json.dumps(value)


def same_batches_table(collected: CollectedRuns) -> Table:
    """Returns a table of the arms that were trained on the same tokens in the same order."""
    seeds_by_group: dict[str, list[str]] = {}
    for seed, groups in same_batches(collected.results, collected.arms).items():
        for group in groups:
            if len(group) > 1:
                seeds_by_group.setdefault(", ".join(group), []).append(str(seed))
    rows = [[Cell(group), Cell(", ".join(seeds))] for group, seeds in seeds_by_group.items()]
    caption = (
        "Arms in one row were trained on the same tokens in the same order: the chained digests of "
        "all their batches are equal."
    )
    return Table("Same batches", caption, ["arms", "seeds"], rows)


def environment_table(collected: CollectedRuns) -> Table:
    """Returns a table of the software versions and devices that the runs recorded."""
    arms_by_item: dict[tuple[str, str], Counter[str]] = {}
    for record in collected.records:
        for item in dict.fromkeys(_environment(record)):
            arms_by_item.setdefault(item, Counter())[record.arm] += 1
    rows = []
    for (name, version), arms in arms_by_item.items():
        in_all_runs = sum(arms.values()) == len(collected.records)
        rows.append([Cell(name), Cell(version), Cell("all" if in_all_runs else ", ".join(arms))])
    caption = "Versions and devices that the runs recorded when they started."
    return Table("Environment", caption, ["component", "version", "runs"], rows)


def _environment(record: RunRecord) -> Iterator[tuple[str, str]]:
    for event in record.events:
        environment = event.get("environment")
        if event["kind"] == "start" and isinstance(environment, dict):
            yield from ((str(name), str(version)) for name, version in environment.items())
    for model in record.lineage[-1:]:
        if model.schedule:
            keys = ("name", "distribution", "version")
            yield "schedule", " ".join(model.schedule.get(key, "?") for key in keys)


def events_table(collected: CollectedRuns) -> Table:
    """Returns a table of what the divergence guard logged: skipped steps, spikes, gaps."""
    rows = [
        [
            Cell(record.arm),
            count_cell(record.seed),
            count_cell(line["step"]),
            Cell(str(line["kind"])),
            Cell(_event_details(line)),
        ]
        for record in collected.records
        for line in record.lines
        if line["kind"] not in NOT_EVENTS
    ]
    caption = (
        "Steps that were not applied, spikes of the loss, and stability gaps after re-warming."
    )
    return Table("Events", caption, ["arm", "seed", "step", "event", "details"], rows)


def _event_details(event: JsonLine) -> str:
    """Returns the values of an event that have no column of their own."""
    details = {key: value for key, value in event.items() if key not in ("kind", "step")}
    return ", ".join(f"{key} {_format_value(value)}" for key, value in details.items())


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
