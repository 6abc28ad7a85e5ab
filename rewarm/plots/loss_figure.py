"""Validation losses and learning rates of several arms, as a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from rewarm.errors import RewarmError
from rewarm.plots.axes import format_rate
from rewarm.plots.figure_style import _DASHES, _INKS, _add_legend, _style
from rewarm.plots.schedule_preview import compute_curve
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.metrics_file import read_metrics


def save_losses(arms: dict[str, list[Path]], out: Path) -> None:
    """Writes one picture of several arms: the loss of every validation set, and the rate.

    Of an arm with several runs, each is a pale line, and their mean, as far as all of them are, a
    strong one.

    Raises:
        RewarmError: metrics cannot be read, or the file cannot be written.
    """
    import matplotlib as mpl

    metadata = {"Date": None} if out.suffix == ".svg" else {}
    try:
        with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "rewarm"}):
            _losses(arms).savefig(out, dpi=200, metadata=metadata)
    except OSError as error:
        raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None


def _losses(arms: dict[str, list[Path]]) -> Any:
    from matplotlib.figure import Figure

    measured = {
        name: [
            [x for x in read_metrics(run / "metrics.jsonl") if x["kind"] == "evaluate"]
            for run in runs
        ]
        for name, runs in arms.items()
    }
    every = [x for runs in measured.values() for lines in runs for x in lines]
    keys = dict.fromkeys(key for x in every for key in x if key.endswith("/loss"))
    looks = {
        name: {"color": _INKS[i % len(_INKS)], "ls": _DASHES[i % len(_DASHES)], "lw": 1.6}
        for i, name in enumerate(arms)
    }
    figure = Figure(layout="constrained")
    *panels, rates = figure.subplots(1, len(keys) + 1, squeeze=False).flat
    for axes, key in zip(panels, keys, strict=True):
        axes.set_title(f"{key.removesuffix('/loss')} loss (nats)", fontsize=10, loc="left")
        for name, runs in measured.items():
            losses = [{x["tokens"]: x[key] for x in lines if x.get(key)} for lines in runs]
            for one in losses if len(losses) > 1 else []:
                axes.plot([*one], [*one.values()], color=looks[name]["color"], lw=0.8, alpha=0.35)
            shared = [tokens for tokens in losses[0] if all(tokens in one for one in losses)]
            axes.plot(shared, [fmean(one[x] for one in losses) for x in shared], **looks[name])
    rates.set_title("learning rate", fontsize=10, loc="left")
    for name, [run, *_] in arms.items():
        rates.plot(*_applied(run), **looks[name])
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_formatter(lambda y, _: format_rate(y))
    for axes in (*panels, rates):
        _style(axes)
    rows = _add_legend(figure, list(looks.items()))
    figure.set_size_inches(3.4 * len(keys) + 3.4, 3.2 + 0.18 * rows)
    return figure


def _applied(run: Path) -> tuple[list[int], list[float]]:
    """Returns a run's rates over tokens: of every step, or as logged if its recipe is not here."""
    try:
        points = [
            (x.tokens, x.lr)
            for x in compute_curve("", load_recipe(run / "recipe.yaml"), 1000).points
        ]
    except RewarmError:
        lines = read_metrics(run / "metrics.jsonl")
        points = [(x["tokens"], x["lr"]) for x in lines if x["kind"] == "train"]
    return [x for x, _ in points], [y for _, y in points]
