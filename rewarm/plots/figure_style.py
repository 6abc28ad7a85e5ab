"""Colours, dashes, legends and axes that all figures share."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from rewarm.errors import printable
from rewarm.quantities import format_count

# Okabe and Ito's colours, which the colour-blind can tell apart, without those too light for paper;
# and dashes, for who prints in grey, and for curves that lie on each other.
_INKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")


_DASHES = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))


_Explained = list[tuple[str, dict[str, Any]]]
"""What the legend says: labels, and the looks that they are about."""


def _add_legend(figure: Any, explained: _Explained) -> int:
    """Returns the legend's lines. It stands below the axes, where no curve is."""
    from matplotlib.lines import Line2D

    # The space, because a label that begins with an underscore is left out.
    labels = [" " + textwrap.fill(printable(label), 84) for label, _ in explained]
    columns = max(1, 90 // (max(map(len, labels)) + 8))
    figure.legend(
        handles=[
            Line2D([], [], label=label, **look)
            for label, (_, look) in zip(labels, explained, strict=True)
        ],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=3.2,
    )
    return math.ceil(sum(1 + label.count("\n") for label in labels) / columns)


def _style(axes: Any) -> None:
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda x, _: format_count(x))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)
