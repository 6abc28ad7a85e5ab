"""The learning rates of a recipe as data: points of a curve, rates at given positions, sums."""

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
from rewarm.recipe.path_settings import RECIPE_PATHS, resolve_paths
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.resolution import BaseRateLookup, base_lr_in_recipe
from rewarm.recipe.saved_recipe import load_saved_recipe
from rewarm.recipe.yaml_document import YamlDocument

MAX_POINTS = 10_000  # longer curves are thinned: a figure has a few thousand pixels
MAX_SUMMED_STEPS = 2_000_000  # summed exactly, in seconds; more than usual runs have
_BASE_SHARE = 0.25  # length of the base's curve as a share of the run's


class CurvePoint(NamedTuple):
    """The learning rate at one step. Steps of the base count up to 0, its last step."""

    step: int
    tokens: int
    progress: float
    lr: float


class RateAtPosition(NamedTuple):
    """The learning rate at a position that the user asked for."""

    recipe: str
    """The name of the recipe."""
    at: str
    """The position as the user wrote it."""
    step: int
    tokens: int
    progress: float
    lr: float


class Floor(NamedTuple):
    """The learning rate at the end of a run, and for how long the run stays at it."""

    lr: float
    steps: int
    tokens: int
    share: float
    """The share of all tokens."""


class Totals(NamedTuple):
    """Sums over a whole run."""

    area: float
    """The sum of the learning rates of all steps."""
    floor: Floor
    exact: bool
    """False above MAX_SUMMED_STEPS: estimated from that number of evenly spaced steps."""


@dataclass(frozen=True)
class Curve:
    """The learning rate of a recipe, step by step."""

    name: str
    recipe: Recipe
    points: list[CurvePoint]
    marks: dict[str, CurvePoint]
    """Named points in the order of their steps: end of warm-up, floor."""
    base_points: list[CurvePoint]
    """The last rates of the base, if it is a rewarm checkpoint; tokens count up to 0."""
    corpus_shares: dict[str, list[tuple[int, float]]]
    """(First tokens, share of a batch) of each corpus; empty if weights never change."""

    @cached_property
    def totals(self) -> Totals:
        """Sums over all steps, including those that are not among the points."""
        steps, tokens_per_step = self.recipe.steps, self.recipe.batch.tokens
        rates = _rates(self.recipe, _thinned_steps(1, steps, MAX_SUMMED_STEPS))
        # A plateau computed as a·(1 − x) + a·x is constant only up to rounding.
        floor_rates = takewhile(
            lambda lr: math.isclose(lr, rates[-1], rel_tol=1e-12), reversed(rates)
        )
        share = sum(1 for _ in floor_rates) / len(rates)
        floor_steps = round(share * steps)
        return Totals(
            area=math.fsum(rates) * (steps / len(rates)),
            floor=Floor(rates[-1], floor_steps, floor_steps * tokens_per_step, share),
            exact=len(rates) == steps,
        )


def compute_curve(
    name: str, recipe: Recipe, max_points: int = MAX_POINTS, zoom: str = ":"
) -> Curve:
    """Returns the curve of a recipe: every step, thinned to about `max_points` if there are more.

    Args:
        name: the label of the curve.
        recipe: the recipe.
        max_points: the maximum number of points, not counting marks.
        zoom: the part of the run to keep, in the format of `parse_step_range`.

    Raises:
        ValueError: `zoom` is not within this run.
        ScheduleError: the schedule gives an invalid rate at some step.
    """
    first, last = parse_step_range(zoom, recipe)
    mark_steps = schedules.marked_steps(recipe.schedule, recipe.steps)
    visible_marks = {label: step for label, step in mark_steps.items() if first <= step <= last}
    steps = sorted({*_thinned_steps(first, last, max_points), *visible_marks.values()})
    points = {point.step: point for point in _points(recipe, steps)}
    return Curve(
        name,
        recipe,
        list(points.values()),
        {label: points[step] for label, step in sorted(visible_marks.items(), key=lambda x: x[1])},
        _base_points(recipe, last, max_points) if first == 1 else [],
        _corpus_shares(recipe),
    )


def curve_steps(recipe: Recipe, max_points: int) -> list[int]:
    """Returns the steps at which to draw a recipe's curve: evenly spaced ones, and its marks."""
    return sorted(
        {
            *_thinned_steps(1, recipe.steps, max_points),
            *schedules.marked_steps(recipe.schedule, recipe.steps).values(),
        }
    )


def _rates(recipe: Recipe, steps: list[int]) -> list[float]:
    """Returns `recipe.lr(step)` of each step, faster: 0.1 s for all steps of a long run.

    Raises:
        ScheduleError: see `Recipe.lr`.
    """
    schedule, total = recipe.schedule, recipe.steps
    try:
        rates = [schedule(step / total) for step in steps]
        # One check of all rates; `recipe.lr` checks at each step.
        if {*map(type, rates)} == {float} and min(rates) >= 0 and math.isfinite(math.fsum(rates)):
            return rates
    except Exception:  # a plug-in may raise anything
        pass
    return [recipe.lr(step) for step in steps]  # raises an error that names the step


def _points(recipe: Recipe, steps: list[int], origin: int = 0) -> list[CurvePoint]:
    """Returns the points at the given steps; their steps and tokens count from step `origin`."""
    return [
        CurvePoint(step - origin, (step - origin) * recipe.batch.tokens, recipe.progress(step), lr)
        for step, lr in zip(steps, _rates(recipe, steps), strict=True)
    ]


def _thinned_steps(first: int, last: int, max_count: int) -> list[int]:
    """Returns the steps from first to last, or `max_count` evenly spaced ones including both."""
    count = last - first + 1
    if count <= max_count:
        return list(range(first, last + 1))
    return [first + i * (count - 1) // (max_count - 1) for i in range(max_count)]


def _corpus_shares(recipe: Recipe) -> dict[str, list[tuple[int, float]]]:
    """Returns (first tokens, share of a batch) of each corpus; empty if weights never change."""
    weights = recipe.corpus_weights
    changes = sorted({first for pieces in weights.values() for first, _ in pieces})
    if len(changes) == 1:
        return {}
    shares: dict[str, list[tuple[int, float]]] = {name: [] for name in weights}
    for block in changes:
        current = {
            name: [weight for first, weight in pieces if first <= block][-1]
            for name, pieces in weights.items()
        }
        for name, weight in current.items():
            shares[name].append((block * recipe.data.context, weight / sum(current.values())))
    return shares


def _base_points(recipe: Recipe, steps: int, max_points: int) -> list[CurvePoint]:
    """Returns the end of the base model's curve, if the base is a rewarm checkpoint."""
    model = recipe.model
    if model.base is None or model.fresh or not find_local_model(model.base):
        return []
    base = locate_base(model.base, weights=False)
    if base.kind != "rewarm checkpoint":
        return []
    last = read_training_state(base.directory).step
    try:
        base_recipe = load_saved_recipe(base.directory / "recipe.yaml")
    except RecipeError:  # for example, its plug-in is not installed: draw this run without its base
        return []
    tokens = _BASE_SHARE * steps * recipe.batch.tokens
    length = max(2, round(tokens / base_recipe.batch.tokens))
    first = max(1, last - length + 1)
    return _points(base_recipe, _thinned_steps(first, last, max_points), last)


def _nearest_step(position: str, recipe: Recipe) -> int:
    """Returns the step nearest to a position; 0 only for position 0, the start of the run."""
    position = position.strip()
    amount, _, unit = position.rpartition(" ")
    try:
        if unit in ("step", "steps"):
            exact = Fraction(parse_count(amount))
        elif re.fullmatch(r"[0-9_]+", position):
            exact = Fraction(parse_count(position))
        elif unit in ("token", "tokens") or re.fullmatch(r"[0-9].*[kKmMbBtT]", position):
            tokens = parse_count(amount if unit.startswith("token") else position)
            exact = Fraction(tokens, recipe.batch.tokens)
            if tokens <= recipe.tokens:  # tokens after the last whole batch are not trained on
                exact = min(exact, Fraction(recipe.steps))
        else:
            exact = Fraction(parse_share(position)) * recipe.steps
    except ValueError:
        raise ValueError(
            f"{position!r} should be a step (656), a share of the run (1% or 0.01) or tokens (240B)"
        ) from None
    if exact > recipe.steps:
        raise ValueError(
            f"{position} is past the end of the run ({recipe.steps:,} steps, "
            f"{format_count(recipe.tokens)} tokens); 100% is the last step"
        )
    return max(math.floor(exact + Fraction(1, 2)), exact > 0)


def parse_step(position: str, recipe: Recipe) -> int:
    """Returns the step nearest to a position: `656`, `1%`, `0.01`, `240B`, `3 steps`, `2B tokens`.

    Raises:
        ValueError: it has none of these forms, or is outside the run.
    """
    step = _nearest_step(position, recipe)
    if step == 0:
        raise ValueError(f"{position.strip()} is before the first step, which is 1")
    return step


def parse_step_range(zoom: str, recipe: Recipe) -> tuple[int, int]:
    """Returns the first and last step of a part of a run: `0:2%`, `:2%`, `98%:`, `1B:1.5B`.

    Raises:
        ValueError: it does not have this form, or is outside the run.
    """
    start, colon, end = zoom.partition(":")
    if not colon:
        raise ValueError(f"{zoom!r} should be FROM:TO, such as 0:2%, :2%, 98%:, 1:500 or 1B:2B")
    first = max(1, _nearest_step(start, recipe)) if start.strip() else 1
    last = _nearest_step(end, recipe) if end.strip() else recipe.steps
    if last < first:
        raise ValueError(f"its last step, {last:,}, is before its first step, {first:,}")
    return first, last


def rates_at_positions(recipes: Mapping[str, Recipe], positions: str) -> list[RateAtPosition]:
    """Returns the learning rates of each recipe at comma-separated positions.

    Raises:
        ValueError: a position is outside one of the runs.
    """
    rates = []
    for name, recipe in recipes.items():
        for position in positions.split(","):
            try:
                step = parse_step(position, recipe)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if len(recipes) > 1 else str(error)) from None
            [point] = _points(recipe, [step])
            rates.append(RateAtPosition(name, position.strip(), *point))
    return rates


_NO_BASE = "the base"
"""Stands for a base, of which a schedule without a recipe needs the last rate only."""

_MINIMAL_RECIPE = """\
run: none
data: {context: 1, train: {all: {shards: none}}}
batch: {tokens: 2_097_152, microbatch: 1}
"""  # all settings that a curve needs; the batch is Pythia's


def recipe_for_schedule(
    schedule: str,
    tokens: str | None,
    overrides: list[str],
    *,
    base_lr: BaseRateLookup | None = None,
) -> Recipe:
    """Returns a minimal recipe: a schedule, a token budget, and placeholders for the rest.

    Args:
        schedule: the name of a schedule, or its settings in YAML: `{name: wsd, decay: 10%}`.
        tokens: the token budget; may be set by an override instead.
        overrides: settings to change, as for `load_recipe`.
        base_lr: as for `load_recipe`.

    Raises:
        RecipeError: a setting is wrong or missing.
    """
    option = f"--schedule {schedule}"
    document = YamlDocument(_MINIMAL_RECIPE, "--schedule")
    document.set_value(("model",), {"base": _NO_BASE}, option)
    key = "schedule" if schedule.lstrip().startswith("{") else "schedule.name"
    document.apply_override(f"{key}={schedule}", option)
    if tokens is not None:
        document.apply_override(f"tokens={tokens}", f"--tokens {tokens}")
    for override in overrides:
        document.apply_override(override)
    if "tokens" not in document.data:
        raise RecipeError([f"{option}: needs a token budget, such as --tokens 10B"])
    if document.data["model"].get("base") == _NO_BASE:
        base_lr = base_lr_in_recipe  # there is none to look up
    problems = resolve_paths(document, RECIPE_PATHS)
    return validate_recipe(document, base_lr=base_lr, problems=problems)
