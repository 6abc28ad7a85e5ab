"""The recipe that a probe is for, after checks that the law can describe it and its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rewarm.checkpoints.training_state import Ancestor
from rewarm.errors import RecipeError, RewarmError
from rewarm.paths import short_path
from rewarm.predict.arms import StudiedArms, arms_of_base, highest_rate
from rewarm.predict.probe_plan import REPLAY
from rewarm.predict.reach import undescribed_base
from rewarm.recipe.data_settings import TrainSet
from rewarm.recipe.fields import Role
from rewarm.recipe.recipe import Recipe
from rewarm.runs.corpus_sources import open_corpus
from rewarm.runs.resolve_run import ResolvedRun
from rewarm.runs.validation_roles import ROLES, Corpora, SetRole, reads_corpus


class ProbeTarget(NamedTuple):
    """A recipe whose losses can be predicted from arms that are still to be trained."""

    recipe: Recipe
    arms: StudiedArms
    """What is known of the arms before they are trained; no losses."""
    corpora: dict[str, TrainSet]
    """What arms train on: the corpora of the recipe, and those that are replayed."""
    new: dict[str, float]
    """The corpora that are new to the base, by name, with their shares of the new data."""
    old: dict[str, float]
    """The corpora that an arm replays, with their shares of the old data; empty for none."""
    replay: float
    """The replay share of that arm; 0 without old data."""
    note: str
    """Where the old data is known from, or why there is none."""

    def train(self, replay: float) -> dict[str, Any]:
        """Returns `data.train` with a replay share, as plain data."""
        shares = {name: (1 - replay) * share for name, share in self.new.items()}
        if replay:
            shares |= {name: replay * share for name, share in self.old.items()}
        return {
            name: self.corpora[name].model_dump(mode="json", by_alias=True, exclude_defaults=True)
            | {"weight": f"{100 * share:.10g}%"}
            for name, share in shares.items()
        }


def check_base(recipe: Recipe) -> None:
    """Checks that a recipe continues from a base, before anything is read.

    Raises:
        RecipeError: it does not.
    """
    if recipe.model.base is None or recipe.model.fresh:
        setting = "model.fresh: true" if recipe.model.fresh else "model.base: none"
        raise RecipeError(
            [
                f"{setting}: newly initialized weights have nothing to forget; a probe is for a "
                "recipe that continues from a base model"
            ]
        )


def probe_target(resolved: ResolvedRun) -> ProbeTarget:
    """Returns a recipe as the target of a probe.

    Args:
        resolved: the recipe, and what it refers to on disk.

    Raises:
        RecipeError: the law does not describe its base, its validation sets or its data.
        CheckpointError: the weights of its corpora change during the run.
    """
    recipe = resolved.recipe
    ancestors = resolved.origin.ancestors if resolved.origin else ()
    arms = _arms_to_come(resolved, ancestors)
    if missing := [role for role in ROLES if not arms.sets(role)]:
        raise RecipeError([_no_set(missing, resolved.roles, arms.old_corpora)])
    if refusal := undescribed_base(arms):
        raise RecipeError([f"model.base: {refusal}"])
    own = arms.replay_share(recipe)
    if own == 1:
        raise RecipeError(
            ["data.train: all of it is old data, known to the base; a probe needs new data, too"]
        )
    weights = {name: pieces[0][1] for name, pieces in recipe.corpus_weights.items()}
    old = _shares({name: weight for name, weight in weights.items() if arms.is_old(name, recipe)})
    new = _shares({name: weight for name, weight in weights.items() if name not in old})
    corpora = dict(recipe.data.train)
    if old:
        return ProbeTarget(recipe, arms, corpora, new, old, own, f"{', '.join(old)}, in data.train")
    replayed, note = _corpus_of_base(recipe, ancestors, list(arms.sets("upstream")))
    shares, replay = dict.fromkeys(replayed, 1.0), REPLAY if replayed else 0.0
    return ProbeTarget(recipe, arms, corpora | replayed, new, shares, replay, note)


def _arms_to_come(resolved: ResolvedRun, ancestors: Sequence[Ancestor]) -> StudiedArms:
    """Returns what will be known of the arms of a probe whatever their losses are.

    Raises:
        RecipeError: no rate of the base is known.
    """
    recipe = resolved.recipe
    if not (ancestors and ancestors[-1].lrs) and recipe.model.base_lr is None:
        raise RecipeError(
            [
                f"model.base: the learning rates of {short_path(str(recipe.model.base))} are not "
                "on record, and the law needs the last one; give it as model.base_lr"
            ]
        )
    roles = {name: role.role for name, role in resolved.roles.items() if role.role}
    starts = dict.fromkeys(roles, 0.0)
    return arms_of_base(recipe, ancestors, starts, roles, highest_rate(recipe))


def _no_set(missing: Sequence[Role], roles: Mapping[str, SetRole], record: Corpora) -> str:
    """Returns that no validation set is of some roles, with advice that the record lets work."""
    sets = "; ".join(
        f"{name}: {one.role or 'no role'}, {one.reason}" for name, one in roles.items()
    )
    paths = [f"{name} ({short_path(shards)})" for name, shards in record.items() if shards]
    advice = []
    if "upstream" in missing:
        if paths:
            advice.append(
                f"by its record, the base was trained on {', '.join(paths)}: if that is elsewhere "
                "now, put a link there, and name the recorded path in data.train, and val beside "
                "it in data.validation"
            )
        other = " and data.train does not have" if paths else ""
        advice.append(
            f"{'or ' if paths else ''}add a set of text that the base was trained on{other}, with "
            "role: upstream"
        )
    if "downstream" in missing:
        other = f", under another name and in another folder than {', '.join(paths)}"
        advice.append(
            "add a set of text that is new to the base, with role: downstream"
            f"{other if paths else ''}"
        )
    return (
        f"data.validation: no set is {' or '.join(missing)} (sets: {sets or 'none'}); a probe "
        f"measures the loss on old and on new data: {'; '.join(advice)}"
    )


def _shares(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _corpus_of_base(
    recipe: Recipe, ancestors: Sequence[Ancestor], upstream: list[str]
) -> tuple[dict[str, TrainSet], str]:
    """Returns a corpus that the base was trained on and that can be read here, and a note.

    Of several corpora it is one that an upstream validation set was held out of, if any was. If
    there is none, the note says why.
    """
    known = next((one.corpora for one in reversed(ancestors) if any(one.corpora.values())), {})
    sets = recipe.data.validation
    corpora = sorted(
        ((name, shards) for name, shards in known.items() if shards),
        key=lambda item: (
            not any(reads_corpus(one, sets[one].shards, {item[0]: item[1]}) for one in upstream)
        ),
    )
    none = "no arm replays old data, and none is recommended; for that"
    if not corpora:
        return {}, (
            f"what the base was trained on is not on record: {none}, add it to data.train, under "
            f"the name {upstream[0]} and with a weight of 5%"
        )
    name, shards = corpora[0]
    corpus = TrainSet.model_validate({"shards": shards})
    try:
        open_corpus(recipe, corpus)
    except RewarmError as error:
        return {}, (
            f"{name} of the base cannot be read ({error}): {none}, put it, or a link to it, there"
        )
    free_name = name if name not in recipe.data.train else f"{name}-of-base"
    return {free_name: corpus}, f"{name}, on which the base was trained: {short_path(shards)}"
