"""Finds everything on disk that a recipe needs: base, lineage, data, tokenizer, resume state.

```
 recipe ──> run directory ──> base or checkpoint ──> datasets ──> start record ──> ResolvedRun
                 └───────────────────┴──── problems ────┴──────────────┘
```
`check`, `train`, `plan` and `compare` all use a `ResolvedRun`, so `check` reports the same problems
as `train`, with the same messages. Problems that need all data or weights to be read are found
only by `train` (`thorough`).
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
    later_checkpoints,
    list_checkpoints,
    locate_base,
    read_architecture,
    resolve_checkpoint_reference,
)
from rewarm.checkpoints.lineage import model_lineage, recipe_of_checkpoint
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
from rewarm.paths import short_path
from rewarm.recipe.fields import ModelSettings
from rewarm.recipe.recipe import Recipe
from rewarm.runs.corpus_mixture import corpus_mixture, weight_change
from rewarm.runs.preconditions import (
    check_no_changes,
    check_open_files,
    check_same_recipe,
    check_same_shards,
    check_same_validation,
    check_training_state,
    epoch_problems,
    foreign_file_problems,
    run_directory_problems,
)
from rewarm.runs.recorded_metrics import check_metrics, metrics_of_checkpoint
from rewarm.runs.resume_changes import read_saved_recipe, recipe_changes, recorded_microbatch
from rewarm.runs.start_record import StartRecord, describe_start
from rewarm.safe_loading import check_files_inside

Problem = RewarmError
"""What prevents a run from starting: the error that `rewarm train` would end with."""


class ResumeState(NamedTuple):
    """What a run is resumed from."""

    checkpoint: Path
    state: TrainingState
    changes: list[str]
    """Differences from the saved recipe that change the result, accepted by --accept-changes."""
    microbatch: int | None
    """The microbatch that `auto` resolved to when the run was started."""
    skipped: list[Path]
    """Later checkpoints, complete or not, that the user does not resume from (--resume-from)."""


class ModelOrigin(NamedTuple):
    """Where a run's model comes from."""

    architecture: Architecture
    directory: Path | None = None
    """Directory with the model's configuration and, if any, tokenizer; None without a base."""
    base: BaseCheckpoint | None = None
    """The base model; None on resume, and if the recipe gives the architecture itself."""
    base_state: TrainingState | None = None
    """The training state of a base that is a rewarm checkpoint."""
    resume_state: ResumeState | None = None
    """None for a new run."""
    ancestors: tuple[Ancestor, ...] = ()
    """The models that the weights descend from, the direct parent last."""
    carried: Mapping[str, int] = MappingProxyType({})
    """Blocks of each corpus that the base has read (data.carry)."""


@dataclass(frozen=True)
class ResolvedRun:
    """A recipe with everything on disk that it refers to; what could not be read is left out."""

    recipe: Recipe
    origin: ModelOrigin | None
    corpora: dict[str, Corpus]
    """The training corpora that could be opened."""
    validation: dict[str, StoredBlocks]
    """The validation sets that could be opened."""
    tokenizer_directory: Path | None
    """Directory from which the tokenizer files are copied into each checkpoint."""
    start: StartRecord | None
    problems: list[Problem]

    @property
    def resume_state(self) -> ResumeState | None:
        """What the run is resumed from; None for a new run."""
        return self.origin.resume_state if self.origin else None

    @property
    def architecture(self) -> Architecture | None:
        """The model's architecture; None if it was not found."""
        return self.origin.architecture if self.origin else None

    @property
    def weights_directory(self) -> Path | None:
        """The directory that weights are loaded from; None if they are newly initialized."""
        if self.resume_state:
            return self.resume_state.checkpoint
        base = self.origin.base if self.origin else None
        return base.directory if base and not self.recipe.model.fresh else None

    @property
    def optimizer_state_directory(self) -> Path | None:
        """The directory that optimizer state is loaded from; None if it is fresh."""
        is_loaded = self.resume_state or self.recipe.optimizer.carry
        return self.weights_directory if is_loaded else None

    def with_recipe(self, recipe: Recipe) -> ResolvedRun:
        """Returns the same run with a recipe that differs in its microbatch only."""
        return replace(self, recipe=recipe)

    def raise_problems(self) -> None:
        """Raises all problems as one error, if there are any.

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
    recipe: Recipe,
    *,
    resume: bool = False,
    resume_from: str | None = None,
    accept_changes: bool = False,
    thorough: bool = False,
) -> ResolvedRun:
    """Returns a recipe with everything on disk that it refers to, and a list of problems.

    Args:
        recipe: the recipe to run.
        resume: continue after the last checkpoint in the run directory, if there is one.
        resume_from: continue after this checkpoint instead: a step, or `before-decay`.
        accept_changes: resume even if the recipe has changed in a way that changes the result.
        thorough: also run the slow checks: download a hub model, and compute the sha256 of every
            file of a checkpoint.
    """
    directory, origin, start = recipe.run_directory, None, None
    resume = resume or resume_from is not None
    problems: list[Problem] = [
        *run_directory_problems(directory, resume=resume),
        *foreign_file_problems(directory),
    ]
    problems_so_far = len(problems)
    with _collect_errors(problems):
        checkpoint = _checkpoint_to_resume(directory, resume_from) if resume else None
        if checkpoint:
            origin = _origin_from_own_checkpoint(
                recipe, checkpoint, accept_changes=accept_changes, thorough=thorough
            )
        else:
            if resume and not accept_changes:
                check_same_recipe(recipe, directory)
            origin = _origin_of_new_run(recipe, problems, thorough=thorough)
    is_model_intact = len(problems) == problems_so_far
    corpora, validation = _open_datasets(recipe, origin, problems)
    folder = _match_model_and_data(recipe, origin, corpora, problems, accept_changes=accept_changes)
    if origin and origin.resume_state and not accept_changes:
        with _collect_errors(problems):
            check_same_validation(recipe, validation, origin.resume_state.state)
    if origin and is_model_intact:
        with _collect_errors(problems):
            start = describe_start(
                recipe,
                list(origin.ancestors),
                base=origin.base,
                carried=dict(origin.carried),
                resume_state=origin.resume_state and origin.resume_state[:2],
            )
    return ResolvedRun(recipe, origin, corpora, validation, folder, start, problems)


@contextmanager
def _collect_errors(problems: list[Problem]) -> Iterator[None]:
    """Adds an error that is raised inside to the problems."""
    try:
        yield
    except RewarmError as error:
        problems.append(error)


def _checkpoint_to_resume(run: Path, resume_from: str | None) -> Path | None:
    """Returns the checkpoint that a run is resumed from; None if it has saved none yet."""
    return resolve_checkpoint_reference(run, resume_from) if resume_from else last_checkpoint(run)


@contextmanager
def _name_other_checkpoints(run: Path, checkpoint: Path) -> Iterator[None]:
    """Adds to an error about a checkpoint which others the run can be resumed from."""
    try:
        yield
    except CheckpointError as error:
        others = [f"{step:,}" for step, path in list_checkpoints(run).items() if path != checkpoint]
        if others:
            error.args = (f"{error}: --resume-from STEP, and STEP is {' or '.join(others)}",)
        raise


def _origin_from_own_checkpoint(
    recipe: Recipe, checkpoint: Path, *, accept_changes: bool, thorough: bool
) -> ModelOrigin:
    """Returns the origin of a run that is resumed from its own checkpoint."""
    run = recipe.run_directory
    with _name_other_checkpoints(run, checkpoint):
        verify_checkpoint(checkpoint, digests=thorough)
        state = read_training_state(checkpoint)
        saved = read_saved_recipe(checkpoint)
    check_training_state(recipe, checkpoint, state)
    changes = recipe_changes(saved, state, recipe)
    if not accept_changes:
        check_no_changes(recipe, changes)
        check_metrics(run, metrics_of_checkpoint(checkpoint))
    change = weight_change(saved.recipe, state, recipe)
    state = state.model_copy(update={"weight_change": change})
    return ModelOrigin(
        read_architecture(checkpoint),
        checkpoint,
        resume_state=ResumeState(
            checkpoint,
            state,
            changes,
            recorded_microbatch(saved, recipe),
            later_checkpoints(run, checkpoint),
        ),
        ancestors=tuple(state.lineage),
        carried=state.carried,
    )


def _origin_of_new_run(recipe: Recipe, problems: list[Problem], *, thorough: bool) -> ModelOrigin:
    """Returns the origin of a new run: its base, or the architecture in the recipe."""
    model = recipe.model
    if model.base is None:
        assert model.explicit_architecture
        return ModelOrigin(model.explicit_architecture)
    base = _locate(model, weights=thorough and not model.fresh)
    origin = ModelOrigin(base.architecture, base.directory, base)
    with _collect_errors(problems):
        is_checkpoint = base.kind == "rewarm checkpoint"
        state = read_training_state(base.directory) if is_checkpoint else None
        origin = origin._replace(base_state=state)
        if not model.fresh:
            if is_checkpoint:
                verify_checkpoint(base.directory, digests=thorough)
            if thorough or base.kind != "hub model":  # a hub model may not be downloaded yet
                find_weight_files(base.directory, base.architecture)
            lineage = model_lineage(base, state, compute_digest=thorough)
            origin = origin._replace(ancestors=tuple(lineage))
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

    def open_source(shards: str) -> ShardSource:
        if shards not in sources:
            sources[shards] = ShardSource(short_path(shards), cache_bytes=data.cache)
            with _collect_errors(problems):
                sources[shards].check_sizes()
        return sources[shards]

    for name, settings in data.train.items():
        with _collect_errors(problems):
            corpora[name] = Corpus(
                name,
                open_source(settings.shards),
                context=data.context,
                seed=recipe.seed,
                lanes=data.lanes,
                order=settings.order,
                skip=carried.get(name, 0),
                verify=data.verify,
            )
    for name, validation_set in data.validation.items():
        with _collect_errors(problems):
            shards = open_source(validation_set.shards)
            tokens = validation_set.tokens
            validation[name] = StoredBlocks(shards, context=data.context, tokens=tokens)
    state = origin.resume_state.state if origin and origin.resume_state else None
    mixture = corpus_mixture(recipe, state.weight_change if state else None)
    problems += epoch_problems(recipe, corpora, mixture, carried)
    with _collect_errors(problems):
        check_open_files(corpora, validation)
    if sources:
        with _collect_errors(problems):
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
        with _collect_errors(problems):
            recipe.check_fp8_widths(origin.architecture)
    if not corpora:
        return None
    corpus = next(iter(corpora.values()))
    if origin:
        info, shards = corpus.index.tokenizer, str(corpus.source)
        with _collect_errors(problems):
            check_model_matches_shards(
                origin.architecture, origin.directory, info, shards, recipe.data.context
            )
        is_resume = origin.resume_state is not None
        earlier_state = origin.resume_state.state if origin.resume_state else origin.base_state
        if earlier_state and (is_resume or recipe.data.carry) and not accept_changes:
            with _collect_errors(problems):
                check_same_shards(recipe, corpora, earlier_state, is_resume=is_resume)
    with _collect_errors(problems):
        model = origin.directory if origin else None
        has_tokenizer = model is not None and (model / "tokenizer.json").is_file()
        folder = model if model and has_tokenizer else corpus.source.tokenizer_folder()
        check_files_inside(folder)  # its tokenizer files are copied into every checkpoint
        return folder
    return None


def _locate(model: ModelSettings, *, weights: bool) -> BaseCheckpoint:
    """Returns the base of a model; a published architecture is known without a download."""
    assert model.base is not None
    published = published_architecture(model.base)
    if published and not weights and not find_local_model(model.base):
        return BaseCheckpoint(model.base, Path(model.base), published, "hub model", model.revision)
    return locate_base(model.base, model.revision, weights=weights)


def carried_blocks(
    recipe: Recipe, base: BaseCheckpoint, state: TrainingState | None
) -> dict[str, int]:
    """Returns the blocks of each corpus that the base has read, to continue after them.

    Raises:
        CheckpointError: the data position of the base cannot be used with this recipe.
    """
    prefix = f"{base.name}: data.carry continues reading the base's data, and"
    if state is None:
        raise CheckpointError(
            f"{prefix} this is a {base.kind}, which records no data position; remove data.carry, "
            "or name a rewarm checkpoint"
        )
    base_recipe = recipe_of_checkpoint(base.directory)
    settings: dict[str, tuple[object, object]] = {
        "seed": (base_recipe.seed, recipe.seed),
        "data.context": (base_recipe.data.context, recipe.data.context),
        "data.lanes": (base_recipe.data.lanes, recipe.data.lanes),
    }
    common = [name for name in recipe.data.train if name in base_recipe.data.train]
    for name in common:
        orders = (base_recipe.data.train[name].order, recipe.data.train[name].order)
        settings[f"data.train.{name}.order"] = orders
    differences = [f"{path} was {a} and is {b}" for path, (a, b) in settings.items() if a != b]
    if not common:
        corpora, base_corpora = ", ".join(recipe.data.train), ", ".join(base_recipe.data.train)
        differences = [f"no corpus in common: it has {base_corpora}, the recipe {corpora}"]
    if differences:
        raise CheckpointError(
            f"{prefix} the data order would differ: {'; '.join(differences)}; make them "
            "the same, or remove data.carry"
        )
    return {
        name: state.carried.get(name, 0) + state.blocks.get(name, 0) for name in recipe.data.train
    }
