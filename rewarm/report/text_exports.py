"""Exports a report as Markdown, to paste into a document, and as CSV, for plotting tools."""

from __future__ import annotations

import csv
import io

from rewarm.markdown import escape_markdown, markdown_row
from rewarm.report.collect_runs import CollectedRuns, JsonLine
from rewarm.report.left_out_losses import (
    LeftOutLosses,
    left_out_tables,
    predict_left_out_losses,
)
from rewarm.report.loss_tables import (
    final_losses_table,
    fitted_lines_table,
    overtaking_table,
    validation_set_table,
)
from rewarm.report.run_tables import (
    environment_table,
    events_table,
    runs_table,
    same_batches_table,
    settings_table,
)
from rewarm.report.summary import applied_rates_sentence, summary_sentences
from rewarm.report.task_tables import tasks_table
from rewarm.runs.metrics_file import samples_in
from rewarm.study.comparison_tables import claims_table
from rewarm.table_cells import Table


def as_markdown(collected: CollectedRuns) -> str:
    """Returns the summary and all tables as Markdown."""
    lines = [
        f"# {escape_markdown(collected.title)}",
        "",
        *(f"- {escape_markdown(sentence)}" for sentence in summary_sentences(collected)),
    ]
    left_out = predict_left_out_losses(collected)
    for table in _tables(collected, left_out):
        lines += ["", f"## {escape_markdown(table.title)}", "", escape_markdown(table.caption), ""]
        lines += _table_lines(table)
    if sentence := applied_rates_sentence(collected):
        lines += ["", escape_markdown(sentence)]
    return "\n".join(lines) + "\n"


def as_csv(collected: CollectedRuns) -> str:
    """Returns every measured value as CSV, one per row: a number in `value`, or text in `text`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["arm", "seed", "run", "kind", "step", "tokens", "name", "value", "text"])
    for record in collected.records:
        for line in record.lines:
            prefix = [record.arm, record.seed, record.directory, line["kind"], line["step"]]
            for name, value in _values(line).items():
                if name not in ("kind", "step", "tokens") and value is not None:
                    cells = (value, None) if isinstance(value, int | float) else (None, value)
                    writer.writerow([*prefix, line.get("tokens"), name, *cells])
    return file.getvalue()


def _values(line: JsonLine) -> JsonLine:
    """Returns the values of a line; of text samples, each continuation by its prompt."""
    if line["kind"] != "sample":
        return line
    return {f"continuation of {prompt}": text for prompt, text in samples_in(line)}


def _tables(collected: CollectedRuns, left_out: LeftOutLosses | None) -> list[Table]:
    """Returns all tables that have rows, the summary's tables first."""
    tables = [
        final_losses_table(collected),
        claims_table(collected.claims),
        *(validation_set_table(collected, name) for name in collected.validation_sets),
        overtaking_table(collected),
        tasks_table(collected),
        fitted_lines_table(collected),
        *(left_out_tables(left_out) if left_out else []),
        settings_table(collected),
        runs_table(collected),
        same_batches_table(collected),
        events_table(collected),
        environment_table(collected),
    ]
    return [table for table in tables if table.rows]


def _table_lines(table: Table) -> list[str]:
    return [
        markdown_row(table.columns),
        f"| {' | '.join('--:' if numeric else '---' for numeric in table.numeric_columns)} |",
        *(markdown_row(cell.text for cell in row) for row in table.rows),
    ]
