"""What a report shows of tasks and of text samples."""

from __future__ import annotations

from rewarm.report.collect_runs import CollectedRuns, JsonLine
from rewarm.report.html_writer import Markup, join, tag
from rewarm.runs.metrics_file import samples_in
from rewarm.runs.task_figures import stderr_name, values_of
from rewarm.table_cells import EMPTY, Cell, Table, count_cell, number_cell


def tasks_table(collected: CollectedRuns) -> Table:
    """Returns a table with the last figures of each run on each task, and their changes."""
    rows = []
    for record in collected.records:
        lines = record.lines_of("tasks")
        if not lines:
            continue
        first, last = lines[0], lines[-1]
        for name, value in values_of(last).items():
            task, _, metric = name.rpartition("/")
            change = EMPTY
            if last is not first and None not in (value, first.get(name)):
                change = number_cell(value - first[name], "+.4f")
            rows.append(
                [
                    *(Cell(record.arm), count_cell(record.seed), count_cell(last["step"])),
                    *(Cell(task), Cell(metric), number_cell(value, ".4f")),
                    *(number_cell(last.get(stderr_name(name)), ".4f"), change),
                ]
            )
    caption = (
        "Tasks of the LM Evaluation Harness at the last evaluation that measured them; the "
        "standard error is over questions, the change since the first evaluation."
    )
    columns = ["arm", "seed", "step", "task", "metric", "value", "± s.e.", "change"]
    return Table("Tasks", caption, columns, rows)


def sample_section(collected: CollectedRuns) -> Markup:
    """Returns how each run continues its prompts, the last evaluation first."""
    parts = []
    for record in collected.records:
        lines = record.lines_of("sample")
        if lines:
            parts.append(tag("h3", f"{record.arm}, seed {record.seed}"))
            parts.append(_samples(lines[-1]))
        if lines[:-1]:
            earlier = (_samples(line) for line in reversed(lines[:-1]))
            parts.append(tag("details", tag("summary", "Earlier evaluations"), *earlier))
    return join(*parts)


def _samples(line: JsonLine) -> Markup:
    texts = (
        tag("pre", tag("strong", prompt), text, tabindex=0) for prompt, text in samples_in(line)
    )
    return join(tag("p", f"Step {line['step']:,}", class_="muted"), *texts)
