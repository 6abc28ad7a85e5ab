"""Ranges, round ticks and tick labels that the terminal plot and the figures share."""

from __future__ import annotations

import math
from typing import NamedTuple

from rewarm.plots.schedule_preview import Curve, CurvePoint


class AxisRange(NamedTuple):
    """The tokens and learning rates that a plot covers."""

    first_tokens: int
    last_tokens: int
    max_lr: float

    @classmethod
    def covering(cls, curves: list[Curve]) -> AxisRange:
        """Returns the range of all points; tokens start before the first step of each curve."""
        points = [point for curve in curves for point in [*curve.base_points, *curve.points]]
        starts = [point.tokens for curve in curves for point in curve.base_points]
        starts += [(curve.points[0].step - 1) * curve.recipe.batch.tokens for curve in curves]
        max_lr = max(point.lr for point in points) or 1.0
        # A peak between two steps is just short of its round number: include the tick above it.
        max_lr = max(max_lr, round_ticks(0, 1.03 * max_lr, 5)[-1])
        return cls(min(starts), max(point.tokens for point in points), max_lr)


def base_curves(curves: list[Curve]) -> tuple[dict[int, list[CurvePoint]], bool]:
    """Returns the base points to draw by index of their curve, and whether all curves share them.

    Base points that all curves with a base have in common are returned for one curve only.
    """
    by_curve = {i: curve.base_points for i, curve in enumerate(curves) if curve.base_points}
    if not by_curve:
        return {}, False
    index, points = min(by_curve.items())
    if len(by_curve) > 1 and all(other == points for other in by_curve.values()):
        return {index: points}, True
    return by_curve, False


def round_ticks(first: float, last: float, max_count: int) -> list[float]:
    """Returns evenly spaced round numbers from first to last, about `max_count` at most."""
    min_spacing = (last - first) / max_count
    power = 10.0 ** math.floor(math.log10(min_spacing))
    spacing = power * next(
        factor for factor in (1, 2, 5, 10) if factor * power >= min_spacing * (1 - 1e-9)
    )
    low, high = math.ceil(first / spacing - 1e-9), math.floor(last / spacing + 1e-9)
    return [float(f"{i * spacing:.12g}") for i in range(low, high + 1)]


def token_labels(ticks: list[float]) -> list[str]:
    """Returns the labels of ticks in the unit of the largest tick, with the digits they need."""
    largest = max(map(abs, ticks), default=0)
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
    unit, suffix = next(((size, name) for size, name in units if largest >= size), units[-1])
    return [f"{tick / unit:.12g}{suffix}" if tick else "0" for tick in ticks]


def format_rate(lr: float, digits: int = 3) -> str:
    """Returns a learning rate as in recipes, `3e-4`, with at most `digits` significant digits."""
    if lr == 0:
        return "0"
    mantissa, exponent = f"{lr:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
