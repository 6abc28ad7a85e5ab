"""Finds where the model of a run comes from: its own checkpoint, a base, or new weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from rewarm.data.vocabulary_growth import VocabularyGrowth, find_growth, tokenizer_folder
from rewarm.errors import CheckpointError, RewarmError
from rewarm.model.architecture import Architecture
from rewarm.model.published_pythia import published_architecture
from rewarm.recipe.model_settings import ModelSettings
from rewarm.recipe.recipe import Recipe
from rewarm.runs.corpus_mixture import weight_change
from rewarm.runs.preconditions import check_no_changes, check_training_state
from rewarm.runs.recorded_metrics import check_metrics, metrics_of_checkpoint
from rewarm.runs.resume_changes import read_saved_recipe, recipe_changes, recorded_microbatch

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
    growth: VocabularyGrowth | None = None
    """New entries of the base's tokenizer (model.tokenizer)."""
    tokenizer: Path | None = None
    """The folder of the tokenizer of new weights (model.tokenizer)."""

    @property
    def tokenizer_directory(self) -> Path | None:
        """Directory with the model's tokenizer, if it has one; None if it is that of the shards."""
        return self.growth.directory if self.growth else self.tokenizer or self.directory


@contextmanager
def collect_errors(problems: list[Problem]) -> Iterator[None]:
    """Adds an error that is raised inside to the problems."""
    try:
        yield
    except RewarmError as error:
        problems.append(error)


def checkpoint_to_resume(run: Path, resume_from: str | None) -> Path | None:
    """Returns the checkpoint that a run is resumed from; None if it has saved none yet."""
    if resume_from == "ema":
        raise CheckpointError(
            f"{run}@ema: an average of weights, which has no optimizer state to resume with; start "
            "a new run from it with model.base"
        )
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


def origin_from_own_checkpoint(
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
        check_metrics(run, metrics_of_checkpoint(checkpoint, state))
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


def origin_of_new_run(recipe: Recipe, problems: list[Problem], *, thorough: bool) -> ModelOrigin:
    """Returns the origin of a new run: its base, or the architecture in the recipe."""
    model = recipe.model
    if model.base is None:
        assert model.explicit_architecture
        tokenizer = tokenizer_folder(model.tokenizer) if model.tokenizer else None
        return ModelOrigin(model.explicit_architecture, tokenizer=tokenizer)
    base = _locate(model, weights=thorough and not model.fresh)
    architecture = model.with_own_activation(base.architecture)
    origin = ModelOrigin(architecture, base.directory, base)
    with collect_errors(problems):
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
        if model.tokenizer:
            origin = _with_new_tokens(recipe, origin, base)
            if recipe.optimizer.carry:
                raise CheckpointError(
                    "optimizer.carry: should be false with model.tokenizer: the base's optimizer "
                    "state has no rows for the new tokens; remove it"
                )
        if recipe.data.carry:
            origin = origin._replace(carried=carried_blocks(recipe, base, state))
    return origin


def _with_new_tokens(recipe: Recipe, origin: ModelOrigin, base: BaseCheckpoint) -> ModelOrigin:
    """Returns the origin with the rows for the new entries of `model.tokenizer`.

    Raises:
        CheckpointError, DataError: the tokenizer does not extend the base's.
    """
    assert recipe.model.tokenizer
    growth = find_growth(
        recipe.model.tokenizer,
        base.directory,
        base.architecture.vocabulary,
        is_here=base.directory.is_dir(),
    )
    architecture = origin.architecture.model_copy(update={"vocabulary": growth.rows})
    return origin._replace(architecture=architecture, growth=growth)


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
