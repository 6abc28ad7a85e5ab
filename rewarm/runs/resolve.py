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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
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
from rewarm.model.published_checkpoints import published_architecture
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


@dataclass(frozen=True)
class ResolvedRun:
    """A recipe with everything on disk that it refers to; what could not be read is missing."""

    recipe: Recipe
    resume: ResumeState | None = None
    """None for a new run."""
    base: BaseCheckpoint | None = None
    """Where weights, or with `fresh` only the shape, come from; None on resume."""
    base_state: TrainingState | None = None
    """The training state of a base that is a rewarm checkpoint."""
    architecture: Architecture | None = None
    ancestors: list[Ancestor] = field(default_factory=list)
    """The models that the weights descend from, the direct parent last."""
    carried: dict[str, int] = field(default_factory=dict)
    """Blocks of each corpus that were read before this run (data.carry)."""
    corpora: dict[str, Corpus] = field(default_factory=dict)
    """The training corpora that could be opened."""
    validation: dict[str, StoredBlocks] = field(default_factory=dict)
    """The validation sets that could be opened."""
    tokenizer_directory: Path | None = None
    """Where the tokenizer files come from that go into each checkpoint."""
    start: StartRecord | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def weights(self) -> Path | None:
        """The directory that weights are loaded from; None where new ones are drawn."""
        if self.resume:
            return self.resume.checkpoint
        return self.base.directory if self.base and not self.recipe.model.fresh else None

    @property
    def optimizer_state(self) -> Path | None:
        """The directory that optimizer state is loaded from; None where it is fresh."""
        if self.resume:
            return self.resume.checkpoint
        return self.weights if self.recipe.optimizer.carry else None

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
    resolver = _Resolver(recipe, thorough=thorough)
    resolver.problems += run_directory_problems(Path(recipe.run), resume=resume)
    with resolver.collecting():
        if resume and (checkpoint := last_checkpoint(Path(recipe.run))):
            resolver.resume_from(checkpoint, accept_changes=accept_changes)
        else:
            resolver.find_model()
    resolver.open_datasets()
    resolver.match_model_and_data(accept_changes=accept_changes)
    with resolver.collecting():
        resolver.describe_start()
    return ResolvedRun(
        recipe=recipe,
        resume=resolver.resume,
        base=resolver.base,
        base_state=resolver.base_state,
        architecture=resolver.architecture,
        ancestors=resolver.ancestors,
        carried=resolver.carried,
        corpora=resolver.corpora,
        validation=resolver.validation,
        tokenizer_directory=resolver.tokenizer_directory,
        start=resolver.start,
        problems=resolver.problems,
    )


class _Resolver:
    """Gathers the parts of a `ResolvedRun`; each method takes up where the one before ended."""

    def __init__(self, recipe: Recipe, *, thorough: bool) -> None:
        self.recipe, self.thorough = recipe, thorough
        self.problems: list[Problem] = []
        self.resume: ResumeState | None = None
        self.base: BaseCheckpoint | None = None
        self.base_state: TrainingState | None = None
        self.architecture: Architecture | None = None
        self.model_directory: Path | None = None
        self.ancestors: list[Ancestor] = []
        self.carried: dict[str, int] = {}
        self.corpora: dict[str, Corpus] = {}
        self.validation: dict[str, StoredBlocks] = {}
        self.tokenizer_directory: Path | None = None
        self.start: StartRecord | None = None
        self._has_model = False

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Adds an error that is raised inside to the problems."""
        try:
            yield
        except RewarmError as error:
            self.problems.append(error)

    def resume_from(self, checkpoint: Path, *, accept_changes: bool) -> None:
        """Reads the checkpoint that the run is resumed from."""
        recipe = self.recipe
        verify_checkpoint(checkpoint, digests=self.thorough)
        state = read_training_state(checkpoint)
        expected = checkpoint_path(Path(recipe.run), state.step)
        check_training_state(recipe, checkpoint, expected, state)
        saved = read_saved_recipe(checkpoint)
        changes = recipe_changes(saved, state, recipe)
        if not accept_changes:
            check_no_changes(recipe, changes)
        self.architecture = read_architecture(checkpoint)
        self.model_directory = checkpoint
        self.ancestors, self.carried = state.lineage, state.carried
        microbatch = recorded_microbatch(saved, recipe)
        self.resume = ResumeState(checkpoint, state, changes, microbatch)
        self._has_model = True

    def find_model(self) -> None:
        """Locates the base, and reads its architecture and lineage; or takes the recipe's."""
        model = self.recipe.model
        if model.base is None:
            self.architecture, self._has_model = model.stated_architecture, True
            return
        base = _locate(model, weights=self.thorough and not model.fresh)
        self.base, self.architecture = base, base.architecture
        self.model_directory = base.directory
        if base.kind == "rewarm checkpoint":
            self.base_state = read_training_state(base.directory)
        if not model.fresh:
            if base.kind == "rewarm checkpoint":
                verify_checkpoint(base.directory, digests=self.thorough)
            if self.thorough or base.kind != "hub model":  # a hub model may not be downloaded yet
                find_weight_files(base.directory, base.architecture)
            self.ancestors = ancestry(base, self.base_state, digest=self.thorough)
        if self.recipe.data.carry:
            self.carried = carried_blocks(self.recipe, base, self.base_state)
        self._has_model = True

    def open_datasets(self) -> None:
        """Opens the index of every training corpus and validation set."""
        data = self.recipe.data
        sources: dict[str, ShardSource] = {}

        def source(shards: str) -> ShardSource:
            if shards not in sources:
                sources[shards] = ShardSource(shards, cache_bytes=data.cache)
            return sources[shards]

        for name, settings in data.train.items():
            with self.collecting():
                self.corpora[name] = Corpus(
                    name,
                    source(settings.shards),
                    context=data.context,
                    seed=self.recipe.seed,
                    lanes=data.lanes,
                    order=settings.order,
                    skip=self.carried.get(name, 0),
                    verify=data.verify,
                )
        for name, validation in data.validation.items():
            with self.collecting():
                self.validation[name] = StoredBlocks(
                    source(validation.shards), context=data.context, tokens=validation.tokens
                )
        self.problems += epoch_problems(self.recipe, self.corpora, self.carried)
        if sources:
            with self.collecting():
                check_same_tokenizer({name: one.index for name, one in sources.items()})

    def match_model_and_data(self, *, accept_changes: bool) -> None:
        """Checks that model, tokenizer, context, precision and shards go together."""
        recipe, architecture = self.recipe, self.architecture
        if architecture:
            with self.collecting():
                recipe.check_widths(architecture)
        if not self.corpora:
            return
        corpus = next(iter(self.corpora.values()))
        info, shards = corpus.index.tokenizer, str(corpus.source)
        if architecture:
            with self.collecting():
                context = recipe.data.context
                check_model_matches_shards(
                    architecture, self.model_directory, info, shards, context
                )
        with self.collecting():
            own = self.model_directory
            has_own = own is not None and (own / "tokenizer.json").is_file()
            folder = own if own and has_own else corpus.source.tokenizer_folder()
            check_files_inside(folder)  # its tokenizer files are copied into every checkpoint
            self.tokenizer_directory = folder
        before = self.resume.state if self.resume else None
        if recipe.data.carry and not before:
            before = self.base_state
        if before and not accept_changes:
            with self.collecting():
                check_same_shards(recipe, self.corpora, before, resumed=bool(self.resume))

    def describe_start(self) -> None:
        """Writes the start record, where the model was found."""
        if not self._has_model:
            return
        resumed = (self.resume.checkpoint, self.resume.state) if self.resume else None
        self.start = describe_start(
            self.recipe, self.ancestors, base=self.base, carried=self.carried, resumed=resumed
        )


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
