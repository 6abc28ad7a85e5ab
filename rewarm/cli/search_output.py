"""The output of `rewarm predict --search`: tables, notes and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewarm.errors import RecipeError
from rewarm.plots.axes import format_rate
from rewarm.predict.constraints import Constraint, mean_loss
from rewarm.predict.further_probe import FurtherProbe
from rewarm.predict.prediction import LEVELS, Prediction
from rewarm.predict.search import SearchResult, keeps
from rewarm.predict.search_space import SETTINGS, Choice, SearchSpace
from rewarm.quantities import format_count
from rewarm.table_cells import Cell, Table, interval_cell, number_cell

_LEVEL = LEVELS[0]


def setting_text(name: str, value: float | str | None) -> str:
    """Returns a value of a setting as it is written: `5%`, `1.5e-3`, `819.2k`."""
    if value is None or isinstance(value, str):
        return value or ""
    if name == "peak":
        return format_rate(value)
    return format_count(value) if name == "tokens" else f"{100 * value:.3g}%"


def choice_text(choice: Choice) -> str:
    """Returns a choice as text: `peak 1e-3, minimum 10%, ...`."""
    values = choice._asdict().items()
    return ", ".join(f"{name} {setting_text(name, one)}" for name, one in values if one is not None)


def space_note(space: SearchSpace, searched: int) -> str:
    """Returns which values were tried, as a sentence."""
    parts = []
    for name in SETTINGS:
        values = [value for value in getattr(space, name) if value is not None]
        if len(values) > 2 and not isinstance(values[0], str):
            ends = (setting_text(name, one) for one in (min(values), max(values)))
            parts.append(f"{name} {' to '.join(ends)}")
        elif values:
            parts.append(f"{name} {' or '.join(setting_text(name, one) for one in values)}")
    return f"searched {searched:,} runs: {', '.join(parts)}"


def front_table(
    result: SearchResult, start: Prediction, own: Choice, constraints: Sequence[Constraint]
) -> Table:
    """Returns the Pareto front: settings that differ, and the last losses with intervals.

    Args:
        result: the search.
        start: the recipe that the search started from, which is the first row.
        own: its settings.
        constraints: the constraints; the last column says which runs keep them.
    """
    choices = [own, *(candidate.choice for candidate in result.front)]
    varying = [name for name in SETTINGS if len({getattr(one, name) for one in choices}) > 1]
    rows = [_row(start.name, own, start, varying)]
    for candidate in result.front:
        mark = " *" if candidate is result.recommended else ""
        name = candidate.prediction.name + mark
        rows.append(_row(name, candidate.choice, candidate.prediction, varying))
    columns = ["run", *varying]
    for loss in start.losses:
        columns += [loss.name, f"{loss.name} {_LEVEL:.0%}"]
    if constraints:
        columns.append("keeps")
        holds = [keeps(start, constraints), *(candidate.holds for candidate in result.front)]
        for row, one in zip(rows, holds, strict=True):
            row.append(Cell("yes" if one else "no"))
    return Table("Pareto front of forgetting against adaptation, losses in nats", "", columns, rows)


def _row(name: str, choice: Choice, prediction: Prediction, varying: list[str]) -> list[Cell]:
    row = [Cell(name)]
    for setting in varying:
        value = getattr(choice, setting)
        number = None if value is None or isinstance(value, str) else float(value)
        row.append(Cell(setting_text(setting, value), number))
    for loss in prediction.losses:
        row.append(number_cell(float(loss.loss[-1]), ".3f"))
        row.append(interval_cell(*loss.final_interval(_LEVEL), ".3f"))
    return row


def recommendation_notes(result: SearchResult) -> list[str]:
    """Returns what is recommended and how it was chosen, and how far outside of the arms it is."""
    best = result.recommended
    if best is None:
        return []
    lines = [
        f"recommended (*): run {best.prediction.name}, {result.rule}",
        f"  {choice_text(best.choice)}",
    ]
    lines += [f"  {note}" for note in [*best.prediction.reach.notes, *result.edges]]
    return [*lines, further_probe_note(result.further_probe)]


def further_probe_note(probe: FurtherProbe | None) -> str:
    """Returns which further arm would narrow the intervals most, and by how much."""
    if probe is None:
        return "no short further arm would narrow its intervals"
    choice = probe.choice
    peak = "" if choice.peak is None else f"a peak of {format_rate(choice.peak)}, "
    widths = ", ".join(
        f"{name} from {before:.3f} to {after:.3f} nats"
        for name, (before, after) in probe.widths.items()
    )
    return (
        f"further arm that would narrow its {_LEVEL:.0%} intervals most, all else as recommended: "
        f"{peak}{100 * choice.replay:.3g}% of replay, {format_count(choice.tokens)} tokens; "
        f"widths {widths}"
    )


def start_notes(start: Prediction) -> list[str]:
    """Returns the losses before step 1, and how far outside of the arms the starting recipe is."""
    starts = ", ".join(f"{loss.name} {loss.loss[0]:.3f}" for loss in start.losses)
    return [
        f"before step 1: {starts}; runs are numbered by rising loss on old data",
        *(f"{start.name}: {note}" for note in start.reach.outside),
    ]


def unmet_constraints(result: SearchResult, constraints: Sequence[Constraint]) -> RecipeError:
    """Returns the error that no run keeps the constraints, with the one that is closest."""
    closest = result.closest
    losses = {one.name: one for one in closest.prediction.losses}
    predicted = {name: float(one.loss[-1]) for name, one in losses.items()}
    highest = {name: float(one.intervals[_LEVEL][1][-1]) for name, one in losses.items()}
    parts = [
        f"{one.describe(mean_loss(predicted, one.sets))} predicted, and "
        f"{one.describe(mean_loss(highest, one.sets))} at the bound of its {_LEVEL:.0%} interval, "
        f"for {one.text!r}"
        for one in constraints
        if one.excess(highest) > 0
    ]
    return RecipeError(
        [
            f"none of {result.searched:,} runs keeps the constraints; the closest has "
            f"{'; '.join(parts)} ({choice_text(closest.choice)})",
            "allow more, or more replay or other peaks with --range, or train an arm that narrows "
            f"the interval: {further_probe_note(result.further_probe)}",
        ]
    )


def search_as_json(
    result: SearchResult, space: SearchSpace, constraints: Sequence[Constraint]
) -> dict[str, Any]:
    """Returns what a search found, as JSON; the losses of its runs are among the predictions."""
    probe = result.further_probe
    return {
        "searched": result.searched,
        "space": {name: list(getattr(space, name)) for name in SETTINGS},
        "constraints": [
            {"text": one.text, "sets": one.sets, "highest loss": one.highest_loss}
            for one in constraints
        ],
        "front": [
            {
                "run": candidate.prediction.name,
                "settings": candidate.choice._asdict(),
                "keeps the constraints": candidate.holds,
            }
            for candidate in result.front
        ],
        "recommended": result.recommended and result.recommended.prediction.name,
        "rule": result.rule,
        "edges": result.edges,
        "further arm": probe
        and {
            "settings": probe.choice._asdict(),
            "steps": probe.recipe.steps,
            "widths of 80% intervals": {
                name: {"now": before, "with it": after}
                for name, (before, after) in probe.widths.items()
            },
        },
        "notes": space.notes,
    }
