"""Resolves a recipe against the disk, once: base, lineage, datasets, tokenizer and resume state.

```
 recipe ──> run directory ──> base or checkpoint ──> datasets ──> start record ──> ResolvedRun
                 └────────────────┴── what prevents a start ──┴────────┴──> problems
```
`check`, `train`, `plan` and `compare` all take what they need from a `ResolvedRun`, so that what
`train` refuses before its first step is refused by `check` too, in the same words. What only
reading all of the data or the weights can tell is found by `train` alone (`thorough`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rewarm.checkpoints.find_checkpoint import (
    BaseCheckpoint,
    find_local_model,
    last_checkpoint,
    locate_base,
    read_architecture,
)
from rewarm.checkpoints.lineage import ancestry, recipe_of_checkpoint
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.checkpoints.training_state import Ancestor, TrainingState, read_training_state
from rewarm.checkpoints.weight_files import find_weight_files
from rewarm.data.corpus import Corpus
from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.data.tokenizer import check_model_matches_shards, check_same_tokenizer
from rewarm.errors import CheckpointError, RewarmError
from rewarm.model.architecture import Architecture
from rewarm.model.published_pythia import published_architecture
from rewarm.recipe.fields import ModelSettings
from rewarm.recipe.recipe import Recipe
from rewarm.runs.preconditions import (
    check_no_changes,
    check_same_shards,
    check_training_state,
    epoch_problems,
    run_directory_problems,
)
from rewarm.runs.resume_changes import read_saved_recipe, recipe_changes, recorded_microbatch
from rewarm.runs.run_directory import checkpoint_path
from rewarm.runs.start_record import StartRecord, describe_start
from rewarm.safe_loading import check_files_inside

Problem = RewarmError
"""What prevents a run from starting: the error that `rewarm train` would end with."""


class ResumeState(NamedTuple):
    """What a run is resumed from."""

    checkpoint: Path
    state: TrainingState
    changes: list[str]
    """What the recipe changes, accepted by --accept-changes."""
    microbatch: int | None
    """The number that `microbatch: auto` became when the run was started."""


class ModelOrigin(NamedTuple):
    """Where a run's model comes from."""

    architecture: Architecture
    directory: Path | None = None
    """Its configuration, and its tokenizer if it has one; None for an architecture in a recipe."""
    base: BaseCheckpoint | None = None
    """None on resume, and for new weights that are of no base's shape."""
    base_state: TrainingState | None = None
    """The training state of a base that is a rewarm checkpoint."""
    resume: ResumeState | None = None
    ancestors: tuple[Ancestor, ...] = ()
    """The models that the weights descend from, the direct parent last."""
    carried: Mapping[str, int] = MappingProxyType({})
    """Blocks of each corpus that were read before this run (data.carry)."""


@dataclass(frozen=True)
class ResolvedRun:
    """A recipe with everything on disk that it refers to; what could not be read is missing."""

    recipe: Recipe
    origin: ModelOrigin | None
    corpora: dict[str, Corpus]
    """The training corpora that could be opened."""
    validation: dict[str, StoredBlocks]
    """The validation sets that could be opened."""
    tokenizer_directory: Path | None
    """Where the tokenizer files come from that go into each checkpoint."""
    start: StartRecord | None
    problems: list[Problem]

    @property
    def resume(self) -> ResumeState | None:
        """What the run is resumed from; None for a new run."""
        return self.origin.resume if self.origin else None

    @property
    def architecture(self) -> Architecture | None:
        """The model's, where it was found."""
        return self.origin.architecture if self.origin else None

    @property
    def weights(self) -> Path | None:
        """The directory that weights are loaded from; None where new ones are drawn."""
        if self.resume:
            return self.resume.checkpoint
        base = self.origin.base if self.origin else None
        return base.directory if base and not self.recipe.model.fresh else None

    @property
    def optimizer_state(self) -> Path | None:
        """The directory that optimizer state is loaded from; None where it is fresh."""
        return self.weights if self.resume or self.recipe.optimizer.carry else None

    def with_recipe(self, recipe: Recipe) -> ResolvedRun:
        """Returns the same run with a recipe that differs in its microbatch only."""
        return replace(self, recipe=recipe)

    def raise_problems(self) -> None:
        """Makes sure that the run can start.

        Raises:
            RewarmError: all problems in one message, with the exit code of the first.
        """
        if self.problems:
            error = self.problems[0]
            error.args = ("\n".join(dict.fromkeys(map(str, self.problems))),)
            raise error


def preflight(
    recipe: Recipe, *, resume: bool = False, accept_changes: bool = False
) -> list[Problem]:
    """Returns everything that prevents a run from starting, as far as can be told quickly."""
    return resolve(recipe, resume=resume, accept_changes=accept_changes).problems


def resolve(
    recipe: Recipe, *, resume: bool = False, accept_changes: bool = False, thorough: bool = False
) -> ResolvedRun:
    """Returns a recipe with everything on disk that it refers to, and what is wrong with that.

    Args:
        recipe: the run's.
        resume: continue after the run directory's last checkpoint, if it has one.
        accept_changes: although the recipe changes the outcome of the run.
        thorough: also read what takes long: download a hub model, and compute the sha256 of every
            file of a checkpoint.
    """
    directory, origin, start = Path(recipe.run), None, None
    problems: list[Problem] = [*run_directory_problems(directory, resume=resume)]
    known = len(problems)
    with _collected(problems):
        if resume and (checkpoint := last_checkpoint(directory)):
            origin = _resumed(recipe, checkpoint, accept_changes=accept_changes, thorough=thorough)
        else:
            origin = _new_run(recipe, problems, thorough=thorough)
    is_model_intact = len(problems) == known
    corpora, validation = _open_datasets(recipe, origin, problems)
    folder = _match_model_and_data(recipe, origin, corpora, problems, accept_changes=accept_changes)
    if origin and is_model_intact:
        with _collected(problems):
            start = describe_start(
                recipe,
                list(origin.ancestors),
                base=origin.base,
                carried=dict(origin.carried),
                resumed=origin.resume and (origin.resume.checkpoint, origin.resume.state),
            )
    return ResolvedRun(recipe, origin, corpora, validation, folder, start, problems)


@contextmanager
def _collected(problems: list[Problem]) -> Iterator[None]:
    """Adds an error that is raised inside to the problems."""
    try:
        yield
    except RewarmError as error:
        problems.append(error)


def _resumed(
    recipe: Recipe, checkpoint: Path, *, accept_changes: bool, thorough: bool
) -> ModelOrigin:
    """Reads the checkpoint that a run is resumed from."""
    verify_checkpoint(checkpoint, digests=thorough)
    state = read_training_state(checkpoint)
    check_training_state(recipe, checkpoint, checkpoint_path(Path(recipe.run), state.step), state)
    saved = read_saved_recipe(checkpoint)
    changes = recipe_changes(saved, state, recipe)
    if not accept_changes:
        check_no_changes(recipe, changes)
    return ModelOrigin(
        read_architecture(checkpoint),
        checkpoint,
        resume=ResumeState(checkpoint, state, changes, recorded_microbatch(saved, recipe)),
        ancestors=tuple(state.lineage),
        carried=state.carried,
    )


def _new_run(recipe: Recipe, problems: list[Problem], *, thorough: bool) -> ModelOrigin:
    """Locates the base of a new run, and reads its lineage; or takes the recipe's architecture."""
    model = recipe.model
    if model.base is None:
        assert model.stated_architecture
        return ModelOrigin(model.stated_architecture)
    base = _locate(model, weights=thorough and not model.fresh)
    origin = ModelOrigin(base.architecture, base.directory, base)
    with _collected(problems):
        is_checkpoint = base.kind == "rewarm checkpoint"
        state = read_training_state(base.directory) if is_checkpoint else None
        origin = origin._replace(base_state=state)
        if not model.fresh:
            if is_checkpoint:
                verify_checkpoint(base.directory, digests=thorough)
            if thorough or base.kind != "hub model":  # a hub model may not be downloaded yet
                find_weight_files(base.directory, base.architecture)
            origin = origin._replace(ancestors=tuple(ancestry(base, state, digest=thorough)))
        if recipe.data.carry:
            origin = origin._replace(carried=carried_blocks(recipe, base, state))
    return origin


def _open_datasets(
    recipe: Recipe, origin: ModelOrigin | None, problems: list[Problem]
) -> tuple[dict[str, Corpus], dict[str, StoredBlocks]]:
    """Opens the index of every training corpus and validation set, each folder once."""
    data, carried = recipe.data, dict(origin.carried) if origin else {}
    sources: dict[str, ShardSource] = {}
    corpora: dict[str, Corpus] = {}
    validation: dict[str, StoredBlocks] = {}

    def source(shards: str) -> ShardSource:
        if shards not in sources:
            sources[shards] = ShardSource(shards, cache_bytes=data.cache)
        return sources[shards]

    for name, settings in data.train.items():
        with _collected(problems):
            corpora[name] = Corpus(
                name,
                source(settings.shards),
                context=data.context,
                seed=recipe.seed,
                lanes=data.lanes,
                order=settings.order,
                skip=carried.get(name, 0),
                verify=data.verify,
            )
    for name, validation_set in data.validation.items():
        with _collected(problems):
            shards = source(validation_set.shards)
            tokens = validation_set.tokens
            validation[name] = StoredBlocks(shards, context=data.context, tokens=tokens)
    problems += epoch_problems(recipe, corpora, carried)
    if sources:
        with _collected(problems):
            check_same_tokenizer({name: opened.index for name, opened in sources.items()})
    return corpora, validation


def _match_model_and_data(
    recipe: Recipe,
    origin: ModelOrigin | None,
    corpora: dict[str, Corpus],
    problems: list[Problem],
    *,
    accept_changes: bool,
) -> Path | None:
    """Checks that model, precision, context and shards match; returns the tokenizer's folder."""
    if origin:
        with _collected(problems):
            recipe.check_widths(origin.architecture)
    if not corpora:
        return None
    corpus = next(iter(corpora.values()))
    if origin:
        info, shards = corpus.index.tokenizer, str(corpus.source)
        with _collected(problems):
            check_model_matches_shards(
                origin.architecture, origin.directory, info, shards, recipe.data.context
            )
        before = origin.resume.state if origin.resume else origin.base_state
        if before and (origin.resume or recipe.data.carry) and not accept_changes:
            with _collected(problems):
                check_same_shards(recipe, corpora, before, resumed=bool(origin.resume))
    with _collected(problems):
        own = origin.directory if origin else None
        has_own = own is not None and (own / "tokenizer.json").is_file()
        folder = own if own and has_own else corpus.source.tokenizer_folder()
        check_files_inside(folder)  # its tokenizer files are copied into every checkpoint
        return folder
    return None


def _locate(model: ModelSettings, *, weights: bool) -> BaseCheckpoint:
    """Returns the base of a model; the shape of a published one needs no download."""
    assert model.base is not None
    published = published_architecture(model.base)
    if published and not weights and not find_local_model(model.base):
        return BaseCheckpoint(model.base, Path(model.base), published, "hub model", model.revision)
    return locate_base(model.base, model.revision, weights=weights)


def carried_blocks(
    recipe: Recipe, base: BaseCheckpoint, state: TrainingState | None
) -> dict[str, int]:
    """Returns the blocks of each corpus that the base has read, for a run that continues there.

    Raises:
        CheckpointError: the base has no position in this data.
    """
    prefix = f"{base.name}: data.carry continues in the base's data, and"
    if state is None:
        raise CheckpointError(
            f"{prefix} this is a {base.kind}, which records no data position; remove data.carry, "
            "or name a rewarm checkpoint"
        )
    made_by = recipe_of_checkpoint(base.directory)
    settings: dict[str, tuple[object, object]] = {
        "seed": (made_by.seed, recipe.seed),
        "data.context": (made_by.data.context, recipe.data.context),
        "data.lanes": (made_by.data.lanes, recipe.data.lanes),
    }
    common = [name for name in recipe.data.train if name in made_by.data.train]
    for name in common:
        orders = (made_by.data.train[name].order, recipe.data.train[name].order)
        settings[f"data.train.{name}.order"] = orders
    differences = [f"{path} was {a} and is {b}" for path, (a, b) in settings.items() if a != b]
    if not common:
        mine, its = ", ".join(recipe.data.train), ", ".join(made_by.data.train)
        differences = [f"no corpus in common: it has {its}, the recipe {mine}"]
    if differences:
        raise CheckpointError(
            f"{prefix} its blocks come in another order here: {'; '.join(differences)}; make them "
            "the same, or remove data.carry"
        )
    return {
        name: state.carried.get(name, 0) + state.blocks.get(name, 0) for name in recipe.data.train
    }
