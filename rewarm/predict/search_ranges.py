"""Ranges of a search as they are written: `peak=5e-4:2e-3`, `replay=0:10%`, `decay=cosine,linear`.

`A:B` is nine values from A to B, of peaks with equal ratios and of all others with equal distances;
values with commas are tried as they are, and a single one keeps the setting at it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewarm.errors import RecipeError, did_you_mean
from rewarm.predict.search_space import SETTINGS
from rewarm.quantities import Span, parse_share

_COUNT = 9
_NAMES = tuple(name for name in SETTINGS if name != "tokens")  # which has an option of its own


def parse_ranges(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Returns the values by the setting.

    Raises:
        RecipeError: a text is not of the form above, or a value is impossible.
    """
    ranges = {}
    for text in texts:
        name, equals, written = (part.strip() for part in text.partition("="))
        if not equals or not written:
            raise _error(text, "should be written NAME=FROM:TO or NAME=VALUE,VALUE")
        if name not in _NAMES:
            hint = did_you_mean(name, list(_NAMES))
            raise _error(text, f"no setting named {name!r}{hint} (settings: {', '.join(_NAMES)})")
        if name in ranges:
            raise _error(text, f"{name} was given before; give all its values in one --range")
        try:
            ranges[name] = _values(name, written)
        except ValueError as error:
            raise _error(text, str(error)) from None
    return ranges


def _values(name: str, written: str) -> list[Any]:
    if name == "decay":
        shapes = [shape.strip() for shape in written.split(",")]
        if not all(shapes):
            raise ValueError("a shape is missing between commas")
        return shapes
    parse = _PARSERS[name]
    if ":" not in written:
        return sorted({parse(part.strip()) for part in written.split(",")})
    low, high = (parse(part.strip()) for part in written.split(":", 1))
    if low >= high:
        raise ValueError("the first number should be below the second")
    values = (np.geomspace if name == "peak" else np.linspace)(low, high, _COUNT)
    return sorted({low, high, *(parse(f"{value:.3g}") for value in values[1:-1])})


def _peak(written: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (rate := float(written)) < math.inf:
            return rate
    raise ValueError("a peak should be a rate above 0, such as 3e-4")


def _share(written: str) -> float:
    share = parse_share(written)
    if not 0 <= share < 1:
        raise ValueError("should be a share from 0 to below 100%, such as 5%")
    return share


_PARSERS: dict[str, Callable[[str], float]] = {
    "peak": _peak,
    "minimum": _share,
    "warmup": lambda written: Span(f"{100 * _share(written):.6g}%"),
    "length": lambda written: Span(f"{100 * _share(written):.6g}%"),
    "replay": _share,
}


def _error(text: str, problem: str) -> RecipeError:
    return RecipeError([f"--range {text}: {problem}"])
