"""Losses on two sets against each other, as SVG: where arms end, and the way they took."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from rewarm.plots.axes import round_ticks
from rewarm.report.html_writer import Markup, join, tag
from rewarm.study.intervals import Estimate

_WIDTH, _HEIGHT = 480, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46
_CROWDED = 60  # square units of a label on something else: then it is left out
_LETTER = 6.4  # of a label's width, on the average

Point = tuple[float, float]


class Arm(NamedTuple):
    """What is drawn of an arm."""

    name: str
    place: int
    """Its place among all arms, which gives it its colour."""
    end: tuple[Estimate, Estimate]
    way: list[Point]


class _Frame:
    """Where numbers are in the picture."""

    def __init__(self, points: list[Point]) -> None:
        self.x = _Scale([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
        self.y = _Scale([y for _, y in points], _HEIGHT - _BOTTOM, _TOP)

    def at(self, point: Point) -> Point:
        return self.x.at(point[0]), self.y.at(point[1])

    def draw(self, x_label: str, y_label: str) -> Markup:
        drawn = []
        bottom = _HEIGHT - _BOTTOM
        for tick, label in self.x.ticks:
            x = self.x.at(tick)
            drawn.append(tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid"))
            drawn.append(tag("text", label, x=x, y=bottom + 17, text_anchor="middle"))
        for tick, label in self.y.ticks:
            y = self.y.at(tick)
            drawn.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
            drawn.append(tag("text", label, x=_LEFT - 7, y=y + 4, text_anchor="end"))
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        drawn.append(tag("text", x_label, x=middle, y=_HEIGHT - 8, text_anchor="middle"))
        y = (_TOP + bottom) / 2
        turned = f"translate(14 {y}) rotate(-90)"
        drawn.append(tag("text", y_label, transform=turned, text_anchor="middle"))
        return join(*drawn)


class _Scale:
    """One axis, with a margin around what is drawn."""

    def __init__(self, values: list[float], first: float, last: float) -> None:
        low, high = min(values), max(values)
        margin = 0.08 * (high - low) or abs(low) * 0.01 or 1.0
        self._low, self._high = low - margin, high + margin
        self._first, self._last = first, last
        places = round_ticks(self._low, self._high, 5)
        self.ticks = [(tick, f"{tick:.12g}") for tick in places]

    def at(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(self._first + share * (self._last - self._first), 1)


def ends(arms: list[Arm], front: list[str], x_label: str, y_label: str) -> Markup:
    """Returns where each arm ends, with standard errors, and the front that none is beyond."""
    placed = {arm.name: arm.end for arm in arms}
    reach = [
        (x.mean + i * (x.error or 0), y.mean + i * (y.error or 0))
        for x, y in placed.values()
        for i in (-1, 1)
    ]
    frame = _Frame(reach)
    centre = {name: frame.at((x.mean, y.mean)) for name, (x, y) in placed.items()}
    steps: list[Point] = []
    for name in front:  # from left to right, each below the one before
        x, y = centre[name]
        steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    drawn = [tag("path", d=_path(steps), class_="front")] if len(front) > 1 else []
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in centre.values()]
    taken += [
        (min(a, c) - 2, min(b, d) - 2, max(a, c) + 2, max(b, d) + 2)
        for (a, b), (c, d) in pairwise(steps)
    ]
    for arm in arms:
        loss_x, loss_y = placed[arm.name]
        at_x, at_y = centre[arm.name]
        bars = []
        if loss_x.error and loss_y.error:
            left, bottom = frame.at((loss_x.mean - loss_x.error, loss_y.mean - loss_y.error))
            right, top = frame.at((loss_x.mean + loss_x.error, loss_y.mean + loss_y.error))
            bars = [
                tag("line", x1=left, x2=right, y1=at_y, y2=at_y),
                tag("line", x1=at_x, x2=at_x, y1=bottom, y2=top),
            ]
        dot = tag("circle", cx=at_x, cy=at_y, r=5, class_="best" if arm.name in front else "beaten")
        drawn.append(_group(arm, *bars, dot, _label(arm.name, (at_x, at_y), taken)))
    return _svg(frame.draw(x_label, y_label), drawn)


def ways(arms: list[Arm], x_label: str, y_label: str) -> Markup:
    """Returns the way of each arm from its start, where a dot is, to its end."""
    frame = _Frame([point for arm in arms for point in arm.way])
    places = {arm.name: [frame.at(point) for point in arm.way] for arm in arms if arm.way}
    taken = [(x - 4, y - 4, x + 4, y + 4) for way in places.values() for x, y in way]
    drawn = []
    for arm in arms:
        if way := places.get(arm.name):
            x, y = way[-1]
            line = tag("path", d=_path(way), class_="way")
            dot = tag("circle", cx=x, cy=y, r=4, class_="best")
            drawn.append(_group(arm, line, dot, _label(arm.name, (x, y), taken)))
    return _svg(frame.draw(x_label, y_label), drawn)


def _svg(frame: Markup, drawn: Iterable[Markup]) -> Markup:
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return tag("svg", frame, *drawn, viewBox=box, class_="scatter", aria_hidden="true")


def _group(arm: Arm, *inside: Markup) -> Markup:
    return tag(
        "g", tag("title", arm.name), *inside, class_=f"arm arm-{arm.place % 7}", data_arm=arm.place
    )


def _path(points: list[Point]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


Box = tuple[float, float, float, float]


def _label(name: str, at: Point, taken: list[Box]) -> Markup:
    """Returns the name beside its point, where the least else is; that place is taken then."""
    text = name if len(name) <= 24 else f"{name[:23]}…"
    width = _LETTER * len(text)
    x, y = at

    def box(place: tuple[str, float, float]) -> Box:
        anchor, dx, dy = place
        left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        return left, y + dy - 10, left + width, y + dy + 3

    def cost(place: tuple[str, float, float]) -> float:
        left, top, right, bottom = box(place)
        outside = max(0.0, _LEFT - left, right - _WIDTH + 2) + max(0.0, _TOP - top)
        outside += max(0.0, bottom - (_HEIGHT - _BOTTOM))
        return 100 * outside + sum(
            max(0.0, min(right, c) - max(left, a)) * max(0.0, min(bottom, d) - max(top, b))
            for a, b, c, d in taken
        )

    best = min(_PLACES, key=cost)
    if cost(best) > _CROWDED:  # its title, its colour and the tables tell it
        return Markup()
    taken.append(box(best))
    anchor, dx, dy = best
    return tag("text", text, x=round(x + dx, 1), y=round(y + dy, 1), text_anchor=anchor)


_PLACES = [
    *(("start", 9.0, 4.0), ("end", -9.0, 4.0), ("middle", 0.0, -10.0), ("middle", 0.0, 18.0)),
    *(("start", 8.0, -8.0), ("start", 8.0, 15.0), ("end", -8.0, -8.0), ("end", -8.0, 15.0)),
    *(("middle", 0.0, -24.0), ("middle", 0.0, 32.0), ("start", 9.0, -20.0), ("end", -9.0, -20.0)),
]
