"""The report as one self-contained HTML page.

```
 CollectedRuns ── tables, summary ──> sentences, tables ──┐
               ── chart_data      ──> data of the curves ─┼─> page with page.css, page.js, uPlot
               ── loss_scatter    ──> images             ─┤
               ── left_out_losses ──> predicted losses   ─┘
```
Names and settings come from untrusted files: they reach the page as escaped text and as JSON only,
and the page's content security policy allows only the two scripts whose digests it lists.
"""

from __future__ import annotations

from typing import NamedTuple

from rewarm.checkpoints.lineage import LineageNode, lineage_forest
from rewarm.report.chart_data import chart_data_json
from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.html_charts import chart_section
from rewarm.report.html_document import html_document, page_asset
from rewarm.report.html_left_out import left_out_section
from rewarm.report.html_loss_scatter import loss_scatter_section
from rewarm.report.html_tables import html_tables
from rewarm.report.html_writer import Markup, join, tag
from rewarm.report.left_out_losses import LeftOutLosses, predict_left_out_losses
from rewarm.report.loss_tables import (
    final_losses_table,
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
from rewarm.report.task_tables import sample_section, tasks_table
from rewarm.study.comparison_tables import claims_table
from rewarm.table_cells import plural
from rewarm.version import __version__


class PageSection(NamedTuple):
    """A part of the page with a heading, and a link to it at the top."""

    key: str
    title: str
    content: Markup


def html_page(collected: CollectedRuns) -> str:
    """Returns the HTML of the page."""
    style = page_asset("uplot.css") + page_asset("page.css")
    scripts = [page_asset("uplot.js"), page_asset("page.js")]
    left_out = predict_left_out_losses(collected)
    sections = [section for section in _sections(collected, left_out) if section.content]
    body = tag(
        "body",
        tag("a", "Skip to the summary", href="#summary", class_="skip"),
        tag(
            "header",
            tag("p", "rewarm report"),
            tag("h1", collected.title),
            tag(
                "nav",
                *(tag("a", section.title, href=f"#{section.key}") for section in sections),
                aria_label="Sections",
            ),
        ),
        tag(
            "main",
            *(
                tag("section", tag("h2", section.title), section.content, id=section.key)
                for section in sections
            ),
        ),
        tag("footer", tag("p", _footer(collected))),
        tag(
            "script",
            Markup(chart_data_json(collected, left_out)),
            type="application/json",
            id="data",
        ),
        *(tag("script", Markup(script)) for script in scripts),
    )
    return html_document(f"{collected.title} – rewarm report", body, style, scripts)


def _sections(collected: CollectedRuns, left_out: LeftOutLosses | None) -> list[PageSection]:
    """Returns the sections in their order; a section without content is left out of the page."""
    metrics = html_tables(
        *(validation_set_table(collected, name) for name in collected.validation_sets),
        overtaking_table(collected),
        tasks_table(collected),
    )
    runs = html_tables(
        runs_table(collected), same_batches_table(collected), events_table(collected)
    )
    return [
        PageSection("summary", "Summary", _summary(collected)),
        PageSection("curves", "Curves", chart_section(collected)),
        PageSection("losses", "Both losses", loss_scatter_section(collected)),
        PageSection(
            "predicted", "Predicted against measured", left_out_section(collected, left_out)
        ),
        PageSection("metrics", "Metrics", metrics),
        PageSection("samples", "Samples", sample_section(collected)),
        PageSection("settings", "Settings", _settings(collected)),
        PageSection("runs", "Runs", runs),
        PageSection("lineage", "Lineage", _lineage(collected)),
        PageSection("environment", "Environment", _environment(collected)),
    ]


def _summary(collected: CollectedRuns) -> Markup:
    sentences = (tag("li", sentence) for sentence in summary_sentences(collected))
    tables = html_tables(final_losses_table(collected), claims_table(collected.claims))
    return join(tag("ul", *sentences, class_="summary"), tables)


def _settings(collected: CollectedRuns) -> Markup:
    reference = collected.records_of(collected.reference)[0]
    if not reference.recipe_text:
        return Markup()
    recipe = tag(
        "details",
        tag("summary", f"The whole recipe of {collected.reference}"),
        tag("pre", reference.recipe_text, tabindex=0),
    )
    return join(html_tables(settings_table(collected)), recipe)


def _lineage(collected: CollectedRuns) -> Markup:
    roots = lineage_forest(record.lineage for record in collected.records if record.lineage)
    caption = tag(
        "p",
        "Which model started from which, up to each run's last checkpoint: steps, tokens, "
        "learning rates (first, peak, last), schedule and the version of its package, last "
        "losses, sha256.",
        class_="muted",
    )
    if not roots:
        return Markup()
    return join(caption, tag("ul", *map(_lineage_item, roots), class_="tree"))


def _lineage_item(node: LineageNode) -> Markup:
    sha256 = node.model.sha256
    digest = tag("span", f" {sha256[:12]}", class_="digest") if sha256 else ""
    children = [tag("ul", *map(_lineage_item, node.children))] if node.children else []
    return tag("li", node.model.one_line(), digest, *children)


def _environment(collected: CollectedRuns) -> Markup:
    sentence = applied_rates_sentence(collected)
    table = html_tables(environment_table(collected))
    return join(table, tag("p", sentence) if sentence else "")


def _footer(collected: CollectedRuns) -> str:
    times = [str(event.get("time")) for record in collected.records for event in record.events]
    last = f" up to {max(times)[:16].replace('T', ' ')} UTC" if times else ""
    return (
        f"Made by rewarm {__version__} from the metrics of {plural(len(collected.records), 'run')}"
        f"{last}. Charts are drawn by uPlot 1.6.32, © Leon Sorokin, MIT license (in the source of "
        "this page)."
    )
