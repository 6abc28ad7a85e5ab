"""The report as one HTML page, which needs nothing but itself.

```
 Gathered ── findings ──> tables, sentences ──┐
          ── columns  ──> data of the curves ─┼─> page ── page.css, page.js, uPlot inlined ──> HTML
          ── scatter  ──> pictures           ─┘
```
Names and settings come from files that anyone may have written: they get into the page as escaped
text and as JSON only, and the page's own policy runs no script but the two whose digests it names.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator
from importlib.resources import files

from rewarm.checkpoints.lineage import LineageNode, lineage_forest
from rewarm.report.chart_data import chart_data_json
from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.html_writer import Markup, join, tag
from rewarm.report.report_tables import (
    applied_rates_sentence,
    claims_table,
    environment_table,
    events_table,
    final_loss,
    final_losses,
    final_losses_table,
    fitted_lines_table,
    overtaking_table,
    pareto_arms,
    runs_table,
    same_batches_table,
    set_pairs,
    settings_table,
    summary_sentences,
    validation_set_table,
)
from rewarm.report.scatter import Arm, Point, ends, ways
from rewarm.tables import Cell, Table, plural
from rewarm.version import __version__


def html_page(found: CollectedRuns) -> str:
    """Returns the page."""
    style = _asset("uplot.css") + _asset("page.css")
    scripts = [_asset("uplot.js"), _asset("page.js")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; "
        f"style-src {_digest(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"rewarm {__version__}"),
        tag("title", f"{found.title} – rewarm report"),
        tag("style", Markup(style)),
    )
    sections = [
        ("summary", "Summary", _summary(found)),
        ("curves", "Curves", _curves(found)),
        ("losses", "Both losses", _both_losses(found)),
        (
            "figures",
            "Figures",
            _tables(
                *(validation_set_table(found, on) for on in found.sets), overtaking_table(found)
            ),
        ),
        ("asked", "What was asked", _asked(found)),
        (
            "runs",
            "Runs",
            _tables(runs_table(found), same_batches_table(found), events_table(found)),
        ),
        ("lineage", "Lineage", _lineage(found)),
        ("environment", "Environment", _environment(found)),
    ]
    there = [one for one in sections if one[2]]
    body = tag(
        "body",
        tag("a", "Skip to the summary", href="#summary", class_="skip"),
        tag(
            "header",
            tag("p", "rewarm report"),
            tag("h1", found.title),
            tag(
                "nav",
                *(tag("a", title, href=f"#{key}") for key, title, _ in there),
                aria_label="Sections",
            ),
        ),
        tag("main", *(_section(*one) for one in there)),
        tag("footer", tag("p", _footer(found))),
        tag("script", Markup(chart_data_json(found)), type="application/json", id="data"),
        *(tag("script", Markup(script)) for script in scripts),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return files("rewarm.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Returns what a policy calls a script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(key: str, title: str, inside: Markup) -> Markup:
    return tag("section", tag("h2", title), inside, id=key)


def _footer(found: CollectedRuns) -> str:
    times = [str(event.get("time")) for one in found.records for event in one.events]
    last = f" up to {max(times)[:16].replace('T', ' ')} UTC" if times else ""
    return (
        f"Made by rewarm {__version__} from the metrics of {plural(len(found.records), 'run')}"
        f"{last}. Charts are drawn by uPlot 1.6.32, © Leon Sorokin, MIT licence (in the source of "
        "this page)."
    )


def _summary(found: CollectedRuns) -> Markup:
    sentences = tag("ul", *(tag("li", one) for one in summary_sentences(found)), class_="summary")
    return join(sentences, _tables(final_losses_table(found), claims_table(found)))


def _tables(*tables: Table) -> Markup:
    return join(*(_table(one) for one in tables if one.rows))


def _table(table: Table) -> Markup:
    columns = list(zip(*table.rows, strict=True))
    number = [all(cell.value is not None or not cell.text for cell in column) for column in columns]
    looks = ["number" if one else None for one in number]
    head = (
        tag("th", name, scope="col", class_=look)
        for name, look in zip(table.columns, looks, strict=True)
    )
    rows = (
        tag(
            "tr",
            *(
                tag(
                    "td",
                    _looked(cell, name),
                    class_=look or _class(cell),
                    data_value=_js(cell.value),
                )
                for cell, look, name in zip(row, looks, table.columns, strict=True)
            ),
        )
        for row in table.rows
    )
    drawn = tag(
        "table",
        tag("caption", table.title, class_="unseen"),
        tag("thead", tag("tr", *head)),
        tag("tbody", *rows),
    )
    scroll = tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label=table.title)
    about = tag("p", table.about, class_="muted")
    return tag("div", tag("h3", table.title), about, scroll, class_="table")


def _class(cell: Cell) -> str | None:
    """Returns the look of text: `long` has a word that may be broken on paper."""
    long = any(len(word) > 30 for word in cell.text.split())
    return " ".join(["long"] * long + ["quiet"] * cell.quiet) or None


def _looked(cell: Cell, column: str) -> str:
    if column != "verdict":
        return cell.text
    return tag("span", cell.text, class_=f"verdict {cell.text.partition(' ')[0]}")


def _js(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.12g}" if math.isfinite(value) else "-Infinity" if value < 0 else "Infinity"


def _curves(found: CollectedRuns) -> Markup:
    loss = tag("span", "loss", class_="what")
    nats = tag("span", "nats per token", class_="unit")
    figures = [
        _figure(join(f"{on} ", loss), nats, _in_words(found, on), chart="set", set_=index)
        for index, on in enumerate(found.sets)
    ]
    if any(one.of("train") for one in found.records):
        pale = join(nats, " – smoothed; pale: as logged")
        figures += [
            _figure(join("training ", loss), pale, _trained(found), chart="loss", look="wide"),
            _figure("learning rate", "as applied", _rates(found), chart="lr", look="wide low"),
        ]
    script = tag(
        "noscript",
        tag(
            "p",
            "The curves are drawn by this page's own script, which is off; the tables below have "
            "the numbers.",
        ),
    )
    return join(_controls(found), script, tag("div", *figures, class_="charts"))


def _figure(
    title: str, unit: str, said: str, *, chart: str, set_: int | None = None, look: str = ""
) -> Markup:
    key = f"chart-{chart}-{set_}"
    keys = "Arrow keys read values, plus and minus zoom, Escape shows everything."
    return tag(
        "figure",
        tag("figcaption", tag("h3", title, id=key), tag("p", unit)),
        tag("p", f"{said} {keys}", id=f"{key}-said", class_="unseen"),
        tag(
            "div",
            role="application",
            tabindex=0,
            class_="plot",
            aria_labelledby=key,
            aria_describedby=f"{key}-said",
        ),
        tag("p", "No arm is chosen, or nothing was measured.", class_="none muted", hidden=True),
        tag("output", class_="readout", aria_live="off"),
        tag("details", tag("summary", "Values"), tag("div"), class_="values"),
        class_=look or None,
        data_chart=chart,
        data_set=set_,
    )


def _in_words(found: CollectedRuns, on: str) -> str:
    """Returns what a curve shows, for who does not see it."""
    said = []
    for arm in found.arms:
        start, end = (
            found.results.over_seeds(arm, on, figure)
            for figure in (lambda one: one.start, final_loss)
        )
        if start and end:
            said.append(f"{arm} from {start.mean:.3f} to {end.mean:.3f}")
    return f"{'; '.join(said)}."


def _trained(found: CollectedRuns) -> str:
    said = [f"{arm} from {one[0]:.3f} to {one[-1]:.3f}" for arm, one in _logged(found, "loss")]
    return f"{'; '.join(said)}."


def _rates(found: CollectedRuns) -> str:
    said = [
        f"{arm} from {one[0]:.3g}, at most {max(one):.3g}, to {one[-1]:.3g}"
        for arm, one in _logged(found, "lr")
    ]
    return f"{'; '.join(said)}."


def _logged(found: CollectedRuns, key: str) -> Iterator[tuple[str, list[float]]]:
    """Gives of each arm that has any what its first run logged under a key."""
    for arm in found.arms:
        lines = found.of(arm)[0].of("train")
        if values := [line[key] for line in lines if line.get(key) is not None]:
            yield arm, values


_DASHES = ("", "9 3", "3 2.5", "10 3 2 3", "6 2 2 2 2 2")


def _controls(found: CollectedRuns) -> Markup:
    arms = []
    for index, arm in enumerate(found.arms):
        line = tag("line", x1=0, x2=30, y1=5, y2=5, stroke_dasharray=_DASHES[index % 5] or None)
        swatch = tag("svg", line, class_=f"swatch arm-{index % 7}", aria_hidden="true")
        arms.append(tag("button", swatch, arm, type="button", aria_pressed="true", data_arm=index))
    many = any(len(found.of(arm)) > 1 for arm in found.arms)
    logged = max(len(one.of("train")) for one in found.records)
    smooth = 0.9 if logged >= 50 else 0
    options = [
        tag("label", "Over", _select("x", "tokens", "step")),
        tag("label", tag("input", type="checkbox", id="log"), "logarithmic"),
        tag("label", "Show", _select("y", "loss", "perplexity")),
        tag(
            "label",
            "Smoothing",
            tag("input", type="range", id="smooth", min=0, max=0.99, step=0.01, value=smooth),
        ),
        tag("label", tag("input", type="checkbox", id="seeds", checked=True), "each seed")
        if many
        else Markup(),
        tag(
            "span",
            *(
                tag("button", sign, type="button", id=key, aria_label=said, title=said)
                for key, sign, said in (
                    ("in", "+", "Zoom in"),
                    ("out", "−", "Zoom out"),
                    ("earlier", "←", "Earlier"),
                    ("later", "→", "Later"),
                    ("reset", "All", "Show everything"),
                )
            ),
            class_="zoom",
        ),
    ]
    return tag(
        "div",
        tag("div", *arms, class_="arms", role="group", aria_label="Arms to show"),
        tag("div", *options, role="group", aria_label="How to show them"),
        class_="controls",
        hidden=True,
    )


def _select(key: str, *values: str) -> Markup:
    return tag("select", *(tag("option", one) for one in values), id=key)


def _both_losses(found: CollectedRuns) -> Markup:
    pictures = [one for pair in set_pairs(found) for one in _pictures(found, pair)]
    figures = [
        tag(
            "figure",
            tag("figcaption", tag("h3", title), tag("p", about)),
            tag("div", drawn, role="img", aria_label=f"{title}. {alternative}"),
        )
        for title, about, alternative, drawn in pictures
    ]
    if not figures:
        return Markup()
    return join(tag("div", *figures, class_="charts"), _tables(fitted_lines_table(found)))


def _pictures(
    found: CollectedRuns, pair: tuple[str, str]
) -> Iterator[tuple[str, str, str, Markup]]:
    """Gives title, explanation, words for who does not see it, and picture."""
    x_on, y_on = pair
    losses = final_losses(found, pair)
    arms = [
        Arm(arm, index, losses[arm], _way(found, arm, pair))
        for index, arm in enumerate(found.arms)
        if arm in losses
    ]
    labels = f"{x_on} loss", f"{y_on} loss"
    if len(arms) > 1:
        front = pareto_arms(found, pair)
        told = "; ".join(f"{arm} {x.mean:.3f} and {y.mean:.3f}" for arm, (x, y) in losses.items())
        yield (
            f"Where arms end on {y_on}",
            "Lower left is better. Filled: the Pareto front. Bars: standard error over seeds.",
            f"Final {x_on} and {y_on} loss: {told}. Pareto front: {', '.join(front)}.",
            ends(arms, front, *labels),
        )
    if any(len(arm.way) > 1 for arm in arms):
        yield (
            f"The way there on {y_on}",
            "The first seed of each arm, from its start to its end, the dot.",
            f"The {y_on} loss against the {x_on} loss; straight lines through them are tabled.",
            ways(arms, *labels),
        )


def _way(found: CollectedRuns, arm: str, pair: tuple[str, str]) -> list[Point]:
    """Returns the losses on two sets of an arm's first seed, at most some hundred of them."""
    [seed, *_] = found.results.seeds(arm)
    x, y = (found.results.outcome(arm, seed, on) for on in pair)
    if not (x and y):
        return []
    there = {loss.step: loss.loss for loss in x.losses}
    points = [(there[loss.step], loss.loss) for loss in y.losses if loss.step in there]
    return points[:: len(points) // 200 + 1] + points[-1:]


def _asked(found: CollectedRuns) -> Markup:
    one = found.of(found.reference)[0]
    if not one.recipe:
        return Markup()
    whole = tag(
        "details",
        tag("summary", f"The whole recipe of {found.reference}"),
        tag("pre", one.recipe, tabindex=0),
    )
    return join(_tables(settings_table(found)), whole)


def _lineage(found: CollectedRuns) -> Markup:
    def drawn(node: LineageNode) -> Markup:
        sha256 = node.model.sha256
        digest = tag("span", f" {sha256[:12]}", class_="digest") if sha256 else ""
        children = [tag("ul", *map(drawn, node.children))] if node.children else []
        return tag("li", node.model.in_words(), digest, *children)

    roots = lineage_forest(one.lineage for one in found.records if one.lineage)
    about = tag(
        "p",
        "Which model started from which, up to each run's last checkpoint: steps, "
        "tokens, first, highest and last rate, last losses, sha256.",
        class_="muted",
    )
    return join(about, tag("ul", *map(drawn, roots), class_="tree")) if roots else Markup()


def _environment(found: CollectedRuns) -> Markup:
    told = applied_rates_sentence(found)
    return join(_tables(environment_table(found)), tag("p", told) if told else "")
