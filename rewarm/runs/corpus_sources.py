"""The shards of each corpus in a recipe; of text, those that the cache has for the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rewarm.checkpoints.find_checkpoint import find_local_model, last_checkpoint, locate_base
from rewarm.checkpoints.hub_download import find_hub_tokenizer, is_hub_name
from rewarm.data.shard_source import ShardSource
from rewarm.data.sharding.shards_of_text import InputText, find_text, has_shards
from rewarm.data.tokenizer import Tokenizer, check_context_fits, load_tokenizer
from rewarm.data.vocabulary_growth import tokenizer_folder
from rewarm.errors import CheckpointError, DataError, RewarmError
from rewarm.files import FileStamp
from rewarm.model.architecture import Architecture
from rewarm.paths import short_path
from rewarm.quantities import format_bytes
from rewarm.recipe.data_settings import TrainSet, ValidationSet
from rewarm.recipe.recipe import Recipe


class UnshardedText(NamedTuple):
    """Text of which there are no shards yet: `shard_text` writes them."""

    text: InputText
    tokenizer: Tokenizer | None
    """None if the base's is not on this machine yet."""
    tokenizer_name: str
    """The folder or hub name that it is from."""

    def __str__(self) -> str:
        files = len(self.text.files)
        size = f"{format_bytes(self.text.bytes)} in {files:,} {'file' if files == 1 else 'files'}"
        return f"{self.text.location}, {size}"


def open_corpus(
    recipe: Recipe, settings: TrainSet | ValidationSet, *, download: bool = False
) -> ShardSource | UnshardedText:
    """Returns the shards of a corpus, or its text if that is not sharded yet.

    Args:
        recipe: the recipe.
        settings: of the corpus.
        download: a base's tokenizer from the hub if it is needed.

    Raises:
        DataError: the shards or the text cannot be read, or no tokenizer is known for the text.
        CheckpointError: the base, whose tokenizer is needed, cannot be found.
    """
    location = short_path(settings.shards)
    text_source = _find_text(recipe, settings, download=download)
    if isinstance(text_source, UnshardedText):
        return text_source
    if text_source is None:
        source = ShardSource(location, cache_bytes=recipe.data.cache)
        if (settings.field, settings.split) != ("text", None):
            raise DataError(
                f"{location}: token shards, to which field and split do not apply; remove them"
            )
        return source
    try:
        source = ShardSource(str(text_source))
        source.check_sizes()
    except DataError as error:
        raise DataError(
            f"{error}; these are the shards of {location}: delete {text_source}"
        ) from None
    source.location = location
    return source


def _find_text(
    recipe: Recipe, settings: TrainSet | ValidationSet, *, download: bool
) -> UnshardedText | Path | None:
    """Returns the folder with the shards of a text, or the text; None for a corpus of shards."""
    location = short_path(settings.shards)
    text = find_text(location, settings.field, settings.split)
    if text is None:
        return None
    folder = _find_tokenizer(recipe, download=download)
    if folder is None:
        return UnshardedText(text, None, str(recipe.model.base))
    tokenizer = _load_tokenizer(folder, _stamps(folder))
    shards = text.shard_folder(tokenizer)
    return shards if has_shards(shards) else UnshardedText(text, tokenizer, str(folder))


def check_unsharded(text: UnshardedText, architecture: Architecture, context: int) -> None:
    """Checks that a model can be trained on text, as far as that is known before it is sharded.

    Raises:
        CheckpointError: the tokenizer has more entries than the model rows, or the context is
            longer than its positions.
    """
    if text.tokenizer and text.tokenizer.vocabulary > architecture.vocabulary:
        raise CheckpointError(
            f"{text.tokenizer_name}: has {text.tokenizer.vocabulary:,} entries, and the model only "
            f"{architecture.vocabulary:,} embedding rows; name the model's own tokenizer"
        )
    check_context_fits(architecture, context)


def unsharded_texts(recipes: Iterable[Recipe], *, download: bool) -> list[UnshardedText]:
    """Returns the texts of recipes that have to be sharded before training, each once.

    Left out is what cannot be read: `resolve` reports it.

    Args:
        recipes: the recipes.
        download: the tokenizers of bases on the hub if they are needed; else they stay None.
    """
    texts: dict[object, UnshardedText] = {}
    for recipe in recipes:
        data = recipe.data
        corpora: list[TrainSet | ValidationSet] = [*data.train.values(), *data.validation.values()]
        for settings in corpora:
            with suppress(RewarmError):
                source = _find_text(recipe, settings, download=download)
                if isinstance(source, UnshardedText):
                    key = source.tokenizer and source.text.shard_folder(source.tokenizer)
                    texts.setdefault(key or (source.text, source.tokenizer_name), source)
    return list(texts.values())


def _find_tokenizer(recipe: Recipe, *, download: bool) -> Path | None:
    """Returns a folder with the tokenizer of a recipe's model; None if it is not downloaded yet.

    Raises:
        DataError: the model has none.
        CheckpointError: the base cannot be found.
    """
    model = recipe.model
    own = last_checkpoint(recipe.run_directory)
    if own and (own / "tokenizer.json").is_file():
        return own
    if model.tokenizer:
        return tokenizer_folder(model.tokenizer)
    if model.base is None:
        names = (f"EleutherAI/{model.preset}", f"EleutherAI/{model.preset}-deduped")
        cached = [find_hub_tokenizer(name, None, download=False) for name in names if model.preset]
        folder = next(filter(None, cached), None)
        what = "model.architecture has no tokenizer"
        if model.preset:
            what = f"{names[0]}, whose tokenizer {model.preset} has, is not in the hub's cache here"
    elif find_local_model(model.base) is None and is_hub_name(short_path(model.base)):
        return find_hub_tokenizer(short_path(model.base), model.revision, download=download)
    else:
        folder = locate_base(model.base, model.revision, weights=False).directory
        folder = folder if (folder / "tokenizer.json").is_file() else None
        what = f"{short_path(model.base)} has no tokenizer.json"
    if folder is None:
        raise DataError(
            f"no tokenizer is known with which to shard text: {what}; "
            + ("copy it there" if model.base else "set model.tokenizer to a folder with one")
            + ", or write shards with `rewarm shard TEXT --out DIR --tokenizer T`, and name DIR"
        )
    return folder


def _stamps(folder: Path) -> tuple[FileStamp, ...]:
    return tuple(FileStamp.of(path.stat()) for path in sorted(folder.glob("tokenizer*.json")))


@lru_cache(maxsize=8)
def _load_tokenizer(folder: Path, _stamps: tuple[FileStamp, ...]) -> Tokenizer:
    """Returns the tokenizer in a folder, which is read again when its files change."""
    return load_tokenizer(str(folder))
