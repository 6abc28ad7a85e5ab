"""A report as Markdown, for a text, and as CSV, for whoever draws their own pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from rewarm.errors import printable
from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.report_tables import all_tables, applied_rates_sentence, summary_sentences
from rewarm.tables import Table


def as_markdown(found: CollectedRuns) -> str:
    """Returns summary and tables."""
    said = [
        f"# {_shown(found.title)}",
        "",
        *(f"- {_shown(one)}" for one in summary_sentences(found)),
    ]
    for table in all_tables(found):
        said += ["", f"## {_shown(table.title)}", "", _shown(table.about), "", *_rows(table)]
    if told := applied_rates_sentence(found):
        said += ["", _shown(told)]
    return "\n".join(said) + "\n"


def as_csv(found: CollectedRuns) -> str:
    """Returns every number that was measured, one in a row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["arm", "seed", "run", "kind", "step", "tokens", "name", "value"])
    for one in found.records:
        for line in one.lines:
            where = [one.arm, one.seed, one.directory, line["kind"], line["step"]]
            for name, value in line.items():
                if name not in ("kind", "step", "tokens") and value is not None:
                    writer.writerow([*where, line.get("tokens"), name, value])
    return file.getvalue()


def _rows(table: Table) -> list[str]:
    right = [
        all(cell.value is not None or not cell.text for cell in column)
        for column in zip(*table.rows, strict=True)
    ]
    return [
        _row(table.columns),
        f"| {' | '.join('--:' if one else '---' for one in right)} |",
        *(_row(cell.text for cell in row) for row in table.rows),
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_shown, cells))} |"


def _shown(text: str) -> str:
    """Returns text as Markdown that shows it as it is, on one line."""
    plain = printable(text.replace("\n", " ")).replace("&", "&amp;")
    for sign in "\\`*_[]|<>#":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
