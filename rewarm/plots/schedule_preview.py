"""A recipe's learning rate as data: every step by the function that trains, places in it, sums."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import takewhile
from typing import NamedTuple

from rewarm import schedules
from rewarm.checkpoints.find_checkpoint import find_local_model, locate_base
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import RecipeError
from rewarm.quantities import format_count, parse_count, parse_share
from rewarm.recipe import recipe
from rewarm.recipe.recipe import BaseRateLookup, Recipe
from rewarm.recipe.yaml_document import YamlDocument

MOST_POINTS = 10_000  # more is thinned; a picture is some thousand pixels wide
MOST_STEPS = 2_000_000  # are summed one by one, in seconds; no run of a model is longer
_TAIL = 0.25  # of the length drawn: as much of its base's curve is drawn to the left


class CurvePoint(NamedTuple):
    """The rate of one step. Steps of the base are counted down from 0 at its end."""

    step: int
    tokens: int
    progress: float
    lr: float


class RateAtPosition(NamedTuple):
    """The rate at a place that somebody asked for."""

    recipe: str
    at: str
    """The place as it was written."""
    step: int
    tokens: int
    progress: float
    lr: float


class Floor(NamedTuple):
    """The rate at which a run ends, and how much of it, up to the end, is taken with this rate."""

    lr: float
    steps: int
    tokens: int
    share: float
    """Of all tokens."""


class Totals(NamedTuple):
    """What a whole run adds up to."""

    area: float
    """The sum of the rates of all steps."""
    floor: Floor
    exact: bool
    """False above MOST_STEPS: then it is estimated from as many steps, evenly spaced."""


@dataclass(frozen=True)
class Curve:
    """A recipe's learning rate, step by step."""

    name: str
    run: Recipe
    points: list[CurvePoint]
    marks: dict[str, CurvePoint]
    """Named places in the order of their steps: end of warm-up, floor."""
    tail: list[CurvePoint]
    """The last rates of the base, where it is a rewarm checkpoint; tokens count up to 0."""
    shares: dict[str, list[tuple[int, float]]]
    """Where weights change on the way: each corpus's share of a batch, from so many tokens on."""

    @cached_property
    def totals(self) -> Totals:
        """Returns what all steps add up to, those that are not among the points too."""
        steps, tokens_per_step = self.run.steps, self.run.batch.tokens
        rates = _rates(self.run, _thinned(1, steps, MOST_STEPS))
        # A plateau that a formula draws, a·(1 − x) + a·x, is level but for rounding.
        level = takewhile(lambda lr: math.isclose(lr, rates[-1], rel_tol=1e-12), reversed(rates))
        share = sum(1 for _ in level) / len(rates)
        there = round(share * steps)
        return Totals(
            area=math.fsum(rates) * (steps / len(rates)),
            floor=Floor(rates[-1], there, there * tokens_per_step, share),
            exact=len(rates) == steps,
        )


def compute_curve(name: str, run: Recipe, most: int = MOST_POINTS, zoom: str = ":") -> Curve:
    """Returns a recipe's curve: every step, thinned to about `most` where there are more.

    Args:
        name: what the curve is called.
        run: the recipe.
        most: about so many points.
        zoom: the part of the run to keep, as for `stretch`.

    Raises:
        ValueError: `zoom` is not a part of this run.
        ScheduleError: the schedule gives no rate somewhere.
    """
    first, last = parse_step_range(zoom, run)
    places = {
        label: min(run.steps, max(1, round(place * run.steps)))
        for label, place in schedules.marks(run.schedule).items()
        if 0 < place < 1
    }
    kept = {label: step for label, step in places.items() if first <= step <= last}
    steps = sorted({*_thinned(first, last, most), *kept.values()})
    points = {point.step: point for point in _points(run, steps)}
    return Curve(
        name,
        run,
        list(points.values()),
        {label: points[step] for label, step in sorted(kept.items(), key=lambda one: one[1])},
        _tail(run, last, most) if first == 1 else [],
        _shares(run),
    )


def _rates(run: Recipe, steps: list[int]) -> list[float]:
    """Returns `run.lr(step)` of each step; of all of a long run in a tenth of a second.

    Raises:
        ScheduleError: as `run.lr`.
    """
    schedule, whole = run.schedule, run.steps
    try:
        rates = [schedule(step / whole) for step in steps]
        # That they are rates is asked once for all; `run.lr` would ask at each.
        if {*map(type, rates)} == {float} and min(rates) >= 0 and math.isfinite(math.fsum(rates)):
            return rates
    except Exception:  # a stranger's curve may raise anything
        pass
    return [run.lr(step) for step in steps]  # says which one is not, and why


def _points(run: Recipe, steps: list[int], end: int = 0) -> list[CurvePoint]:
    """Returns the points of some steps, which are counted from `end`."""
    return [
        CurvePoint(step - end, (step - end) * run.batch.tokens, run.progress(step), lr)
        for step, lr in zip(steps, _rates(run, steps), strict=True)
    ]


def _thinned(first: int, last: int, most: int) -> list[int]:
    """Returns all steps from first to last, or `most` of them, evenly spaced, both ends kept."""
    count = last - first + 1
    if count <= most:
        return list(range(first, last + 1))
    return [first + i * (count - 1) // (most - 1) for i in range(most)]


def _shares(run: Recipe) -> dict[str, list[tuple[int, float]]]:
    """Returns each corpus's share of a batch from so many tokens on, if it ever changes."""
    firsts = sorted({first for pieces in run.weights.values() for first, _ in pieces})
    shares: dict[str, list[tuple[int, float]]] = {name: [] for name in run.weights}
    for first in firsts:
        now = {
            name: [weight for start, weight in pieces if start <= first][-1]
            for name, pieces in run.weights.items()
        }
        for name, weight in now.items():
            shares[name].append((first * run.data.context, weight / sum(now.values())))
    return shares if len(firsts) > 1 else {}


def _tail(run: Recipe, steps: int, most: int) -> list[CurvePoint]:
    """Returns the end of the base's own curve, if it is a rewarm checkpoint."""
    if run.model.base is None or run.model.fresh or not find_local_model(run.model.base):
        return []
    base = locate_base(run.model.base, weights=False)
    if base.kind != "rewarm checkpoint":
        return []
    reached = read_training_state(base.directory).step
    try:
        parent = recipe.load_recipe(base.directory / "recipe.yaml")
    except RecipeError:  # made with a plug-in that is not here: the run itself can still be drawn
        return []
    length = max(2, round(_TAIL * steps * run.batch.tokens / parent.batch.tokens))
    return _points(parent, _thinned(max(1, reached - length + 1), reached, most), end=reached)


def _nearest(written: str, run: Recipe) -> int:
    """Returns the step nearest to a place; the beginning, and nothing else, is 0."""
    said = written.strip()
    amount, _, unit = said.rpartition(" ")
    try:
        if unit in ("step", "steps"):
            place = Fraction(parse_count(amount))
        elif re.fullmatch(r"[0-9_]+", said):
            place = Fraction(parse_count(said))
        elif unit in ("token", "tokens") or re.fullmatch(r"[0-9].*[kKmMbBtT]", said):
            tokens = parse_count(amount if unit.startswith("token") else said)
            place = Fraction(tokens, run.batch.tokens)
            if tokens <= run.tokens:  # a budget may end in a part of a batch, which is left out
                place = min(place, Fraction(run.steps))
        else:
            place = Fraction(parse_share(said)) * run.steps
    except ValueError:
        raise ValueError(
            f"{said!r} should be a step (656), a share of the run (1% or 0.01) or tokens (240B)"
        ) from None
    if place > run.steps:
        raise ValueError(
            f"{said} is behind the end of the run ({run.steps:,} steps, {format_count(run.tokens)} "
            "tokens); 100% is the last step"
        )
    return max(math.floor(place + Fraction(1, 2)), place > 0)


def parse_step(written: str, run: Recipe) -> int:
    """Returns the step nearest to a place: `656`, `1%`, `0.01`, `240B`, `3 steps`, `240B tokens`.

    Raises:
        ValueError: it is none of these, or is not in the run.
    """
    step = _nearest(written, run)
    if step == 0:
        raise ValueError(f"{written.strip()} is before the first step, which is 1")
    return step


def parse_step_range(written: str, run: Recipe) -> tuple[int, int]:
    """Returns the first and last step of a part of a run: `0:2%`, `:2%`, `98%:`, `1B:1.5B`.

    Raises:
        ValueError: it is not written so, or no such part is in the run.
    """
    start, colon, end = written.partition(":")
    if not colon:
        raise ValueError(f"{written!r} should be FROM:TO, such as 0:2%, :2%, 98%:, 1:500 or 1B:2B")
    first = max(1, _nearest(start, run)) if start.strip() else 1
    last = _nearest(end, run) if end.strip() else run.steps
    if last < first:
        raise ValueError(f"step {last:,}, its end, is before step {first:,}, its beginning")
    return first, last


def rates_at_positions(runs: Mapping[str, Recipe], places: str) -> list[RateAtPosition]:
    """Returns the rates of each recipe at some places, written with commas between them.

    Raises:
        ValueError: one is not a place in one of the recipes.
    """
    found = []
    for name, run in runs.items():
        for written in places.split(","):
            try:
                step = parse_step(written, run)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if len(runs) > 1 else str(error)) from None
            [point] = _points(run, [step])
            found.append(RateAtPosition(name, written.strip(), *point))
    return found


_BARE = """\
run: none
model: {base: the base}
data: {context: 1, train: {all: {shards: none}}}
batch: {tokens: 2_097_152, microbatch: 1}
"""  # as much of a recipe as a curve needs; the batch is Pythia's


def recipe_for_schedule(
    schedule: str,
    tokens: str | None,
    overrides: list[str],
    *,
    base_lr: BaseRateLookup | None = None,
) -> Recipe:
    """Returns a recipe that holds little more than a schedule and a length.

    Args:
        schedule: a schedule's name, or its settings in YAML: `{name: wsd, decay: 10%}`.
        tokens: the length; it may stand among the overrides instead.
        overrides: settings to change, as for `recipe.load`.
        base_lr: as for `recipe.load`.

    Raises:
        RecipeError: a setting is wrong, or missing.
    """
    document, said = YamlDocument(_BARE, "--schedule"), f"--schedule {schedule}"
    key = "schedule" if schedule.lstrip().startswith("{") else "schedule.name"
    document.set(f"{key}={schedule}", said)
    if tokens is not None:
        document.set(f"tokens={tokens}", f"--tokens {tokens}")
    for override in overrides:
        document.set(override)
    if "tokens" not in document.data:
        raise RecipeError([f"{said}: a length is needed with it, such as --tokens 10B"])
    return recipe.validate_recipe(document, base_lr=base_lr)
