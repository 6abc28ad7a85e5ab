"""What a search varies: the values of schedule, replay and length, within the limits of the law."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np

from rewarm.errors import RecipeError
from rewarm.predict.arms import StudiedArms
from rewarm.predict.reach import ReachLimits, limits_of, reach_of
from rewarm.quantities import Budget, Span, format_count
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.schedules import Schedule

# The settings of a schedule that are searched, by the names that schedules give them.
_SETTINGS = {
    "peak": ("peak_lr", "lr"),
    "minimum": ("min_lr",),
    "warmup": ("warmup",),
    "decay": ("decay", "shape", "cooldown"),
    "length": ("decay", "annealing"),
}
_PEAK_RATIO = 2 ** (1 / 16)  # of neighbouring peaks
_MINIMUMS = (0.0, 0.05, 0.1, 0.2)
_WARMUPS = ("1%", "2%", "5%", "10%")
_LENGTHS = ("10%", "20%", "30%", "50%")
_REPLAY = (0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_NO_REPLAY = "no arm has any, and what it does differs between corpora; train an arm with about 5%"
_BUDGETS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)

SETTINGS = ("peak", "minimum", "warmup", "decay", "length", "replay", "tokens")
"""What a search varies: the fields of `Choice` and of `SearchSpace`."""


class Choice(NamedTuple):
    """A value for each setting that a search varies; None where the schedule does not have it."""

    peak: float | None
    """The peak rate."""
    minimum: float | None
    """The lowest rate, as a share of the peak."""
    warmup: float | None
    """A share of the run; a Span where it was written as something else."""
    decay: str | None
    """The shape of the decay."""
    length: float | None
    """That of the decay, as a share of the run."""
    replay: float
    """The share of old data among the training tokens."""
    tokens: int


class SearchSpace(NamedTuple):
    """The values that a search tries for each field of `Choice`: all combinations that are valid.

    A field has a single value, None, if the schedule does not have this setting.
    """

    peak: Sequence[float | None]
    minimum: Sequence[float | None]
    warmup: Sequence[float | None]
    decay: Sequence[str | None]
    length: Sequence[float | None]
    replay: Sequence[float]
    tokens: Sequence[int]
    notes: list[str]
    """What is not searched, and why."""
    most_sequences: Mapping[str, float] = MappingProxyType({})
    """How many sequences of each corpus may be read, where that is known."""

    def by_shape(self, tokens: int) -> Iterator[list[Choice]]:
        """Yields, for each combination but that of peaks and replay, its choices by peak."""
        for values in product(self.minimum, self.warmup, self.decay, self.length):
            yield [Choice(peak, *values, self.replay[0], tokens) for peak in self.peak]


def default_space(
    arms: StudiedArms,
    recipe: Recipe,
    ranges: Mapping[str, Sequence[Any]] | None = None,
    *,
    most_tokens: int | None = None,
) -> SearchSpace:
    """Returns the values to try, starting from a recipe.

    Args:
        arms: the arms, which limit peaks, replay and length.
        recipe: the recipe.
        ranges: values by the names in SETTINGS, which replace those tried by default.
        most_tokens: the largest budget; by default the recipe's own is the only one.

    Raises:
        RecipeError: the schedule has no such setting, or all values are beyond the limits.
    """
    limits, notes = limits_of(arms), []
    names = setting_names(recipe.schedule)
    replay, replay_note = _replay_shares(arms, recipe, limits)
    if replay_note:
        notes.append(replay_note)
    missing = [name for name in ("peak", "minimum", "warmup", "decay") if name not in names]
    if missing:
        notes.append(
            f"schedule {recipe.schedule.name} has no {', '.join(missing)} that could be searched"
        )
    values: dict[str, Any] = {
        name: _default_values(name, names, recipe, arms, limits) for name in _SETTINGS
    }
    values |= {"replay": replay, "tokens": _budgets(recipe, limits, most_tokens)}
    for name, own in (ranges or {}).items():
        if name in _SETTINGS and name not in names:
            raise RecipeError([f"{name}: schedule {recipe.schedule.name} has no such setting"])
        if name == "decay" and (unknown := [one for one in own if one not in shapes_of(recipe)]):
            raise RecipeError(
                [
                    f"{unknown[0]}: schedule {recipe.schedule.name} has no such decay (decays: "
                    f"{', '.join(shapes_of(recipe))})"
                ]
            )
        if name == "replay" and replay_note and any(share not in replay for share in own):
            raise RecipeError([replay_note])
        values[name] = tuple(own)
    _check_limits(values, limits, arms, recipe)
    return SearchSpace(**{name: values[name] for name in SETTINGS}, notes=notes)


def setting_names(schedule: Schedule) -> dict[str, str]:
    """Returns the schedule's own names of what can be searched, by the fields of `Choice`."""
    fields = type(schedule).model_fields
    names: dict[str, str] = {}
    for setting, candidates in _SETTINGS.items():
        for name in candidates:
            if name in fields and name not in names.values():
                is_shape = get_origin(fields[name].annotation) is Literal
                if is_shape is (setting == "decay") and (
                    is_shape or isinstance(getattr(schedule, name), float | None)
                ):
                    names[setting] = name
                    break
    return names


def choice_of(arms: StudiedArms, recipe: Recipe) -> Choice:
    """Returns what a recipe itself has chosen."""
    names = setting_names(recipe.schedule)
    values = {
        name: getattr(recipe.schedule, names[name]) if name in names else None for name in _SETTINGS
    }
    if values["minimum"] is not None and values["peak"]:
        values["minimum"] = float(f"{values['minimum'] / values['peak']:.4g}")
    return Choice(**values, replay=arms.replay_share(recipe), tokens=recipe.tokens)


def _default_values(
    name: str, names: Mapping[str, str], recipe: Recipe, arms: StudiedArms, limits: ReachLimits
) -> tuple[Any, ...]:
    if name not in names:
        return (None,)
    own = getattr(choice_of(arms, recipe), name)
    match name:
        case "peak":
            # A higher peak than that of any arm may diverge, which the law does not describe.
            low, high = limits.lowest_peak * arms.unit, arms.highest_peak
            count = 1 + int(np.ceil(np.log(high / low) / np.log(_PEAK_RATIO)))
            peaks = {float(f"{peak:.3g}") for peak in np.geomspace(low, high, count)}
            return tuple(sorted(peak for peak in {*peaks, own} if low <= peak <= high))
        case "minimum":
            return tuple(sorted({*_MINIMUMS, *([] if own is None else [own])}))
        case "decay":
            return shapes_of(recipe)
    shares = [Span(share) for share in (_WARMUPS if name == "warmup" else _LENGTHS)]
    return tuple(sorted({*shares, own}))


def shapes_of(recipe: Recipe) -> tuple[str, ...]:
    """Returns the shapes of decay that a recipe's schedule has, without `none`."""
    name = setting_names(recipe.schedule).get("decay")
    shapes = get_args(type(recipe.schedule).model_fields[name].annotation) if name else ()
    return tuple(shape for shape in shapes if shape != "none")


def _replay_shares(
    arms: StudiedArms, recipe: Recipe, limits: ReachLimits
) -> tuple[tuple[float, ...], str]:
    """Returns the shares of replay, and why no other than the recipe's is tried."""
    own = arms.replay_share(recipe)
    if own == 1:
        raise RecipeError([f"{recipe.run}: trains on old data only; a search needs new data, too"])
    old = [name for name in recipe.data.train if arms.is_old(name, recipe)]
    if not old:
        shards = next(iter(arms.old_corpora.values()), "DIR")
        return (own,), (
            "replay is not searched, as the recipe has no corpus of old data; add one, such as "
            f"data.train.upstream: {{shards: {shards}, weight: 5%}}, and "
            "give the others 95%"
        )
    if not limits.replay:
        return (own,), (f"replay is not searched, as {_NO_REPLAY}")
    shares = {float(share) for share in _REPLAY if share <= limits.replay * (1 + 1e-9)}
    return tuple(sorted(shares | {own})), ""


def _budgets(recipe: Recipe, limits: ReachLimits, most_tokens: int | None) -> tuple[int, ...]:
    if most_tokens is None:
        return (recipe.tokens,)
    batch = recipe.batch.tokens
    if most_tokens < batch:
        raise RecipeError(
            [f"{most_tokens:,} tokens are less than one step of {batch:,}; search with more"]
        )
    budgets = {int(most_tokens * share) // batch * batch for share in _BUDGETS}
    own = [recipe.tokens] if recipe.tokens <= most_tokens else []
    return tuple(sorted({*budgets, *own} - {0}))


def _check_limits(
    values: Mapping[str, Sequence[Any]], limits: ReachLimits, arms: StudiedArms, recipe: Recipe
) -> None:
    batch = recipe.batch.tokens
    problems = reach_of(arms, arms.probes[0].curve, arms.probes[0].replay).refusals  # of the base
    if max(values["tokens"]) > limits.steps * batch * (1 + 1e-6):
        problems.append(
            f"{format_count(max(values['tokens']))} tokens: predictions are known to hold up to "
            f"{format_count(limits.steps * batch)}, twice the longest arm; search within it with "
            "--tokens, or train a longer arm"
        )
    peaks = [peak for peak in values["peak"] if peak is not None]
    low, high = limits.lowest_peak * arms.unit, limits.highest_peak * arms.unit
    outside = [peak for peak in peaks if not low * (1 - 1e-6) <= peak <= high * (1 + 1e-6)]
    if outside:
        problems.append(
            f"a peak of {outside[0]:.3g}: predictions are known to hold from {low:.3g} to "
            f"{high:.3g}; train an arm that is nearer"
        )
    if max(values["replay"]) > limits.replay * (1 + 1e-6):
        problems.append(
            f"{max(values['replay']):.3g} of replay: predictions are known to hold up to "
            f"{limits.replay:.3g}; {'train an arm that has more' if limits.replay else _NO_REPLAY}"
        )
    if problems:
        raise RecipeError(problems)


def schedule_with(recipe: Recipe, choice: Choice) -> Schedule | None:
    """Returns the schedule of a choice; None if its settings do not go together."""
    settings = recipe.schedule.model_dump(mode="json") | _schedule_settings(recipe, choice)
    budget = Budget(choice.tokens // recipe.batch.tokens, recipe.batch.tokens)
    kind = type(recipe.schedule)
    try:
        return kind.model_validate(settings, context={"budget": budget, "base_lr": None})
    except (ValueError, ArithmeticError):
        return None


def _schedule_settings(recipe: Recipe, choice: Choice) -> dict[str, Any]:
    names = setting_names(recipe.schedule)
    values: dict[str, Any] = choice._asdict()
    if choice.minimum is not None and choice.peak is not None:
        values["minimum"] = float(f"{choice.minimum * choice.peak:.6g}")
    for name in ("warmup", "length"):
        values[name] = getattr(values[name], "written", values[name])
    return {own: values[name] for name, own in names.items() if values[name] is not None}


def apply_choice(document: YamlDocument, recipe: Recipe, arms: StudiedArms, choice: Choice) -> None:
    """Changes the settings of a recipe's document to those of a choice.

    Args:
        document: the document, which is changed only where the choice differs from the recipe.
        recipe: the recipe that the document describes.
        arms: the arms, which say what is old data.
        choice: the choice.
    """
    plain = recipe.schedule.model_dump(mode="json")
    changes: dict[tuple[str, ...], Any] = {
        ("schedule", name): value
        for name, value in _schedule_settings(recipe, choice).items()
        if plain[name] != value
    }
    if choice.tokens != recipe.tokens:
        changes["tokens",] = choice.tokens
    if abs(choice.replay - arms.replay_share(recipe)) > 1e-12:
        for name, weight in _weights(recipe, arms, choice.replay).items():
            if weight:
                changes["data", "train", name, "weight"] = f"{100 * weight:.10g}%"
            else:
                del document.data["data"]["train"][name]
    for path, value in changes.items():
        document.set_value(path, value, "search")


def recipe_of(arms: StudiedArms, recipe: Recipe, choice: Choice) -> Recipe:
    """Returns a recipe with the settings of a choice."""
    document = YamlDocument("", "search")
    document.data = recipe.document()
    apply_choice(document, recipe, arms, choice)
    return validate_recipe(document)


def _weights(recipe: Recipe, arms: StudiedArms, replay: float) -> dict[str, float]:
    """Returns the weight of each corpus; old corpora, and new ones, keep their proportions."""
    weights = {name: pieces[0][1] for name, pieces in recipe.corpus_weights.items()}
    old = {name: weight for name, weight in weights.items() if arms.is_old(name, recipe)}
    total_old, total_new = sum(old.values()), sum(weights.values()) - sum(old.values())
    return {
        name: replay * weight / total_old if name in old else (1 - replay) * weight / total_new
        for name, weight in weights.items()
    }


def is_readable(
    recipe: Recipe,
    arms: StudiedArms,
    choice: Choice,
    most_sequences: Mapping[str, float] = MappingProxyType({}),
) -> bool:
    """Returns whether a run reads at least one sequence of each corpus, and no more than it may.

    Args:
        recipe: the recipe.
        arms: the arms, which say what is old data.
        choice: the run's share of replay and tokens count.
        most_sequences: how many sequences of each corpus may be read, where that is known.
    """
    sequences = choice.tokens // recipe.batch.tokens * recipe.sequences_per_step
    return all(
        weight == 0 or 1 <= weight * sequences <= most_sequences.get(name, math.inf)
        for name, weight in _weights(recipe, arms, choice.replay).items()
    )


def readable_shares(
    space: SearchSpace, recipe: Recipe, arms: StudiedArms, tokens: int
) -> list[float]:
    """Returns the shares of replay with which a run of a length can read each of its corpora."""
    own = choice_of(arms, recipe)._replace(tokens=tokens)
    return [
        share
        for share in space.replay
        if is_readable(recipe, arms, own._replace(replay=share), space.most_sequences)
    ]
