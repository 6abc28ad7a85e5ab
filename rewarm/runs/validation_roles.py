"""Which validation sets hold what the base was trained on, and which hold what is new to it.

```
 the corpora of the base's lineage ──┐
 data.validation.NAME.role ──────────┼──> upstream: its loss measures forgetting
 the names upstream and downstream ──┘    downstream: its loss measures adaptation
```
The first of these that tells decides. A run that starts writes the role to its recipe.yaml, from
which reports and studies read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, get_args

from rewarm.recipe.fields import Role
from rewarm.recipe.recipe import Recipe

Corpora = Mapping[str, str]
"""The shards of each training corpus of a model, by name; empty if they are not known."""

ROLES: tuple[Role, ...] = get_args(Role)


class _ValidationSet(NamedTuple):
    name: str
    shards: str
    role: Role | None
    """As the recipe states it."""


class SetRole(NamedTuple):
    """The role of a validation set, and how it is known."""

    role: Role | None
    reason: str

    def __str__(self) -> str:
        return f"{self.role} ({self.reason})" if self.role else f"no role ({self.reason})"


def resolve_roles(recipe: Recipe, lineage: Sequence[Corpora]) -> dict[str, SetRole]:
    """Returns the role of each validation set of a recipe.

    Args:
        recipe: the recipe.
        lineage: what each model was trained on that the weights descend from, the oldest first;
            empty for new weights.
    """
    corpora = {name: settings.shards for name, settings in recipe.data.train.items()}
    return {
        name: _resolve_role(_ValidationSet(name, settings.shards, settings.role), corpora, lineage)
        for name, settings in recipe.data.validation.items()
    }


def with_roles(recipe: Recipe, roles: Mapping[str, SetRole]) -> Recipe:
    """Returns a recipe whose validation sets have these roles."""
    validation = {
        name: settings.model_copy(update={"role": roles[name].role})
        for name, settings in recipe.data.validation.items()
    }
    data = recipe.data.model_copy(update={"validation": validation})
    return recipe.model_copy(update={"data": data})


def saved_roles(settings: Mapping[str, Any], lineage: Sequence[Corpora]) -> dict[str, Role]:
    """Returns the roles of a run's validation sets, which its recipe.yaml states.

    That of an earlier version does not: then they are those that a new run would have.

    Args:
        settings: the recipe, as {"a.b": value}.
        lineage: as of `resolve_roles`.
    """
    corpora = _values_by_name(settings, "data.train.", ".shards")
    roles = _values_by_name(settings, "data.validation.", ".role")
    known: dict[str, Role] = {}
    for name, shards in _values_by_name(settings, "data.validation.", ".shards").items():
        role = roles.get(name)
        if role not in ROLES:
            role = _resolve_role(_ValidationSet(name, shards, None), corpora, lineage).role
        if role:
            known[name] = role
    return known


def _values_by_name(settings: Mapping[str, Any], prefix: str, suffix: str) -> dict[str, str]:
    """Returns the values of the settings `prefix NAME suffix`, by the name."""
    return {
        path[len(prefix) : -len(suffix)]: str(value)
        for path, value in settings.items()
        if path.startswith(prefix) and path.endswith(suffix)
    }


def merge_roles(name: str, roles: Iterable[Role | None]) -> Role | None:
    """Returns the role of a validation set in a study, from its roles in the study's runs.

    The runs may have different bases: what any of them was trained on is upstream.
    """
    known = set(roles)
    return next((role for role in ROLES if role in known), None) or _role_by_name(name)


def reads_corpus(validation_set: str, shards: str, corpora: Corpora) -> bool:
    """Returns whether a validation set is of one of these corpora: by its folder, or by its name.

    `rewarm shard --validation` writes the two to `DIR/val` and `DIR/train`.
    """
    return validation_set in corpora or _is_held_out(shards, corpora)


def _resolve_role(
    validation_set: _ValidationSet, corpora: Corpora, lineage: Sequence[Corpora]
) -> SetRole:
    """Returns the role of a validation set of a run that trains on these corpora."""
    name, _, given = validation_set
    if known := _role_in_lineage(validation_set, corpora, lineage):
        if given not in (None, known.role):
            return known._replace(reason=f"{known.reason}; its role in the recipe is not used")
        return known
    if given:
        return SetRole(given, f"data.validation.{name}.role")
    if by_name := _role_by_name(name):
        return SetRole(by_name, "by its name")
    return SetRole(None, f"data.validation.{name}.role: upstream, or downstream")


def _role_in_lineage(
    validation_set: _ValidationSet, corpora: Corpora, lineage: Sequence[Corpora]
) -> SetRole | None:
    """Returns a role that follows from what the base was trained on; None if it does not tell.

    A folder tells more than a name, which a corpus of another text may have now.
    """
    name, shards, _ = validation_set
    is_held_out_of_old = any(_is_held_out(shards, old) for old in lineage)
    is_old = is_held_out_of_old or any(name in _unless_other_text(old, corpora) for old in lineage)
    is_read = _is_held_out(shards, corpora) or (name in corpora and not is_held_out_of_old)
    # A run that continues on its base's data: all of its corpora are old, and none is upstream.
    continues = all(
        any(corpus in old or own in old.values() for old in lineage)
        for corpus, own in corpora.items()
    )
    if is_old and not (is_read and continues):
        return SetRole("upstream", "the base was trained on it")
    if is_read and not is_old and lineage and all(lineage):
        return SetRole("downstream", "the base was not trained on it, this run is")
    return None


def _unless_other_text(old: Corpora, corpora: Corpora) -> Corpora:
    """Returns the old corpora without those of which only the name is in use again."""
    return {name: shards for name, shards in old.items() if corpora.get(name, shards) == shards}


def _is_held_out(shards: str, corpora: Corpora) -> bool:
    """Returns whether shards were held out of one of these corpora, going by their folders."""
    return any(_is_held_out_of(shards, corpus) for corpus in corpora.values())


def _is_held_out_of(shards: str, corpus: str) -> bool:
    """Returns whether shards are in the folder of a corpus, or in `val` beside its `train`."""
    if not shards or not corpus:
        return False
    folder, corpus_folder = _folder(shards), _folder(corpus)
    is_split = (folder.name, corpus_folder.name) == ("val", "train")
    return folder == corpus_folder or (is_split and folder.parent == corpus_folder.parent)


def _folder(shards: str) -> PurePosixPath:
    """Returns the folder of shards, which may name some of them by braces or wildcards."""
    path = PurePosixPath(shards)
    return path.parent if any(character in path.name for character in "{*?[") else path


def _role_by_name(name: str) -> Role | None:
    return next((role for role in ROLES if role == name), None)
