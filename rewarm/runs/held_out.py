"""Whether validation sets were held out of training, as far as that can be told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewarm.data.sharding.dataset_card import CARD
from rewarm.paths import short_path
from rewarm.recipe.data_settings import TrainSet, ValidationSet
from rewarm.recipe.recipe import Recipe
from rewarm.runs.validation_roles import Corpora


def held_out_warnings(recipe: Recipe, lineage: Sequence[Corpora]) -> list[str]:
    """Returns which validation sets are trained on, or were by the base perhaps, one line each.

    Args:
        recipe: the recipe, with the role of each validation set.
        lineage: what each model was trained on that the weights descend from, the oldest first;
            empty for new weights.
    """
    corpora = {shards for corpora in lineage for shards in corpora.values()}
    warnings = []
    for name, settings in recipe.data.validation.items():
        folder = settings.shards.rstrip("/")
        if folder in corpora and settings.split is None:
            warnings.append(f"{name}: {short_path(folder)} is text that the base was trained on")
            continue
        if any(_is_in(settings, corpus) for corpus in recipe.data.train.values()):
            warnings.append(f"{name}: {short_path(folder)} is text that this run trains on")
            continue
        if not lineage:
            continue
        train = _other_part_of_split(Path(folder))
        if settings.role == "upstream" and train and str(train) not in corpora:
            warnings.append(
                f"{name}: {short_path(folder)} was split from the text of "
                f"{short_path(str(train))}, and {short_path(recipe.model.base or 'the base')} was "
                "not trained on what is left there: it may have been trained on all of it; use "
                "text that its training left out, for Pythia the Pile's own val.jsonl.zst"
            )
    return warnings


def _is_in(validation_set: ValidationSet, corpus: TrainSet) -> bool:
    """Returns whether a validation set is a corpus, or a file in its folder of text."""
    if validation_set.split != corpus.split:
        return False
    return Path(validation_set.shards).is_relative_to(corpus.shards)


def _other_part_of_split(folder: Path) -> Path | None:
    """Returns DIR/train for a DIR/val that `rewarm shard --validation` wrote."""
    is_split = folder.name == "val" and (folder.parent / CARD).is_file()
    return folder.parent / "train" if is_split else None
