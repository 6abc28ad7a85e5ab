"""What a drawing of curves is measured by: its range, round ticks, and how numbers are written."""

from __future__ import annotations

import math
from typing import NamedTuple

from rewarm.plots.schedule_preview import Curve, CurvePoint


class AxisRange(NamedTuple):
    """What of tokens and rates is drawn."""

    first: int
    last: int
    top: float

    @classmethod
    def of(cls, curves: list[Curve]) -> AxisRange:
        """Returns a range with room for all points, from where their first steps begin."""
        every = [point for one in curves for point in [*one.tail, *one.points]]
        begins = [point.tokens for one in curves for point in one.tail]
        begins += [(one.points[0].step - 1) * one.run.batch.tokens for one in curves]
        top = max(point.lr for point in every) or 1.0
        # A peak that falls between two steps comes just short of its round number.
        top = max(top, round_ticks(0, 1.03 * top, 5)[-1])
        return cls(min(begins), max(point.tokens for point in every), top)


def base_tails(curves: list[Curve]) -> tuple[dict[int, list[CurvePoint]], bool]:
    """Returns the tails to draw, by the place of their curve, and whether it is one for all."""
    there = {index: one.tail for index, one in enumerate(curves) if one.tail}
    shared = len(there) > 1 and all(tail == min(there.items())[1] for tail in there.values())
    return dict([min(there.items())]) if shared else there, shared


def round_ticks(first: float, last: float, most: int) -> list[float]:
    """Returns at most about so many round numbers, evenly spaced, from first to last."""
    rough = (last - first) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= rough * (1 - 1e-9))
    low, high = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(low, high + 1)]


def token_labels(places: list[float]) -> list[str]:
    """Returns the ticks' labels, in the greatest's unit, in as many digits as they need."""
    most = max(map(abs, places), default=0)
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
    unit, suffix = next((one for one in units if most >= one[0]), units[-1])
    return [f"{tick / unit:.12g}{suffix}" if tick else "0" for tick in places]


def format_rate(lr: float, digits: int = 3) -> str:
    """Returns a rate as it is written in recipes, to so many digits: 3e-4."""
    if lr == 0:
        return "0"
    mantissa, exponent = f"{lr:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
