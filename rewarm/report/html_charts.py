"""The charts of the page, which its script draws, and the controls above them."""

from __future__ import annotations

from collections.abc import Iterator

from rewarm.report.collect_runs import CollectedRuns
from rewarm.report.html_writer import Markup, join, tag
from rewarm.report.rate_curves import scheduled_rates
from rewarm.study.loss_history import final_loss


def chart_section(collected: CollectedRuns) -> Markup:
    """Returns the controls and an empty figure for every chart, each with a text alternative."""
    quantity = tag("span", "loss", class_="what")
    nats = tag("span", "nats per token", class_="unit")
    figures = [
        chart_figure(
            join(f"{name} ", quantity),
            join(nats, _role_note(collected, name)),
            _validation_alternative(collected, name),
            chart="set",
            set_index=index,
        )
        for index, name in enumerate(collected.validation_sets)
    ]
    if any(record.lines_of("train") for record in collected.records):
        unit = join(nats, " – smoothed; pale: as logged")
        title = join("training ", quantity)
        loss = _training_loss_alternative(collected)
        rates = _learning_rate_alternative(collected)
        figures += [
            chart_figure(title, unit, loss, chart="loss", css_class="wide"),
            chart_figure(
                "learning rate",
                "the schedule; points: as applied",
                rates,
                chart="lr",
                css_class="wide low",
            ),
        ]
    without_script = tag(
        "noscript",
        tag(
            "p",
            "The curves are drawn by this page's own script, which is disabled; the tables below "
            "have the numbers.",
        ),
    )
    return join(_controls(collected), without_script, tag("div", *figures, class_="charts"))


def chart_figure(
    title: str,
    unit: str,
    alternative: str,
    *,
    chart: str,
    set_index: int | None = None,
    css_class: str = "",
) -> Markup:
    """Returns an empty figure, in which the page's script draws.

    Args:
        title: the quantity that it shows.
        unit: its unit, and how to read the figure.
        alternative: sentences for screen readers with its main values.
        chart: what it shows: see `curves` in page.js.
        set_index: the index of its validation set.
        css_class: of the figure.
    """
    title_id = f"chart-{chart}-{set_index}"
    keyboard_help = "Arrow keys read values, plus and minus zoom, Escape shows everything."
    return tag(
        "figure",
        tag("figcaption", tag("h3", title, id=title_id), tag("p", unit)),
        tag("p", f"{alternative} {keyboard_help}", id=f"{title_id}-alternative", class_="unseen"),
        tag(
            "div",
            role="application",
            tabindex=0,
            class_="plot",
            aria_labelledby=title_id,
            aria_describedby=f"{title_id}-alternative",
        ),
        tag("p", "No arm is selected, or nothing was measured.", class_="none muted", hidden=True),
        tag("output", class_="readout", aria_live="off"),
        tag("details", tag("summary", "Values"), tag("div"), class_="values"),
        class_=css_class or None,
        data_chart=chart,
        data_set=set_index,
    )


def _role_note(collected: CollectedRuns, validation_set: str) -> str:
    role = collected.results.role(validation_set)
    return f"; {role}" if role not in (None, validation_set) else ""


def _validation_alternative(collected: CollectedRuns, validation_set: str) -> str:
    """Returns the text alternative of a chart, for screen readers."""
    descriptions = []
    for arm in collected.arms:
        start, end = (
            collected.results.mean_over_seeds(arm, validation_set, figure)
            for figure in (lambda history: history.start, final_loss)
        )
        if start and end:
            descriptions.append(f"{arm} from {start.mean:.3f} to {end.mean:.3f}")
    return f"{'; '.join(descriptions)}."


def _training_loss_alternative(collected: CollectedRuns) -> str:
    descriptions = []
    for arm in collected.arms:
        lines = collected.records_of(arm)[0].lines_of("train")
        if losses := [line["loss"] for line in lines if line.get("loss") is not None]:
            descriptions.append(f"{arm} from {losses[0]:.3f} to {losses[-1]:.3f}")
    return f"{'; '.join(descriptions)}."


def _learning_rate_alternative(collected: CollectedRuns) -> str:
    descriptions = []
    for arm in collected.arms:
        if rates := [point.lr for point in scheduled_rates(collected.records_of(arm)[0])]:
            descriptions.append(
                f"{arm} from {rates[0]:.3g}, at most {max(rates):.3g}, to {rates[-1]:.3g}"
            )
    return f"{'; '.join(descriptions)}."


_DASHES = ("", "9 3", "3 2.5", "10 3 2 3", "6 2 2 2 2 2")

_ZOOM_BUTTONS = (
    ("in", "+", "Zoom in"),
    ("out", "−", "Zoom out"),
    ("earlier", "←", "Earlier"),
    ("later", "→", "Later"),
    ("reset", "All", "Show everything"),
)


def _controls(collected: CollectedRuns) -> Markup:
    options = [
        tag("label", "Over", _select("x", "tokens", "step")),
        _checkbox("log", "logarithmic", checked=False),
        tag("label", "Show", _select("y", "loss", "perplexity")),
        _smoothing(collected),
        *_seeds_checkbox(collected),
        tag(
            "span",
            *(
                tag("button", symbol, type="button", id=key, aria_label=label, title=label)
                for key, symbol, label in _ZOOM_BUTTONS
            ),
            class_="zoom",
        ),
    ]
    return tag(
        "div",
        tag("div", *_arm_buttons(collected), class_="arms", role="group", aria_label="Arms"),
        tag("div", *options, role="group", aria_label="Chart options"),
        class_="controls",
        hidden=True,
    )


def _arm_buttons(collected: CollectedRuns) -> Iterator[Markup]:
    for index, arm in enumerate(collected.arms):
        line = tag("line", x1=0, x2=30, y1=5, y2=5, stroke_dasharray=_DASHES[index % 5] or None)
        swatch = tag("svg", line, class_=f"swatch arm-{index % 7}", aria_hidden="true")
        yield tag("button", swatch, arm, type="button", aria_pressed="true", data_arm=index)


def _smoothing(collected: CollectedRuns) -> Markup:
    most_points = max(len(record.lines_of("train")) for record in collected.records)
    initial_value = 0.9 if most_points >= 50 else 0
    slider = tag(
        "input", type="range", id="smooth", min=0, max=0.99, step=0.01, value=initial_value
    )
    return tag("label", "Smoothing", slider)


def _seeds_checkbox(collected: CollectedRuns) -> list[Markup]:
    """Returns the checkbox for curves of single seeds, if any arm has several."""
    has_several_seeds = any(len(collected.records_of(arm)) > 1 for arm in collected.arms)
    return [_checkbox("seeds", "each seed", checked=True)] if has_several_seeds else []


def _checkbox(key: str, label: str, *, checked: bool) -> Markup:
    return tag("label", tag("input", type="checkbox", id=key, checked=checked), label)


def _select(key: str, *values: str) -> Markup:
    return tag("select", *(tag("option", value) for value in values), id=key)
