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

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rewarm.data.corpus import Corpus
from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.data.tokenizer import check_model_matches_shards, check_same_tokenizer
from rewarm.errors import DataError
from rewarm.model.architecture import Architecture
from rewarm.recipe.data_settings import TrainSet, ValidationSet
from rewarm.recipe.recipe import Recipe
from rewarm.runs.corpus_mixture import corpus_mixture
from rewarm.runs.corpus_sources import UnshardedText, check_unsharded, open_corpus
from rewarm.runs.measurement_preconditions import recipe_prompts, task_problems
from rewarm.runs.model_origin import (
    ModelOrigin,
    Problem,
    ResumeState,
    checkpoint_to_resume,
    collect_errors,
    origin_from_own_checkpoint,
    origin_of_new_run,
)
from rewarm.runs.preconditions import (
    check_open_files,
    check_same_recipe,
    check_same_shards,
    check_same_validation,
    epoch_problems,
    foreign_file_problems,
    run_directory_problems,
)
from rewarm.runs.start_record import StartRecord, describe_start
from rewarm.runs.validation_roles import SetRole, resolve_roles, with_roles
from rewarm.safe_loading import check_files_inside
from rewarm.trackers.run_trackers import check_trackers


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
    roles: Mapping[str, SetRole]
    """The role of each validation set; the recipe has it, too."""
    unsharded: Mapping[str, UnshardedText]
    """Text that has to be sharded before training, by `train.NAME` or `validation.NAME`."""

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

    def text_of(self, corpus: str) -> str | None:
        """Returns the text that a corpus is of and its size, in words; None if it is sharded."""
        return str(self.unsharded[corpus]) if corpus in self.unsharded else None

    def check_sharded(self) -> None:
        """Makes sure that all corpora are shards.

        Raises:
            DataError: a corpus is text that is not sharded yet.
        """
        if self.unsharded:
            first = next(iter(self.unsharded.values()))
            raise DataError(
                f"{first.text.location}: not sharded yet, or changed since; run the same command "
                "again"
            )


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
    with collect_errors(problems):
        checkpoint = checkpoint_to_resume(directory, resume_from) if resume else None
        if checkpoint:
            origin = origin_from_own_checkpoint(
                recipe, checkpoint, accept_changes=accept_changes, thorough=thorough
            )
        else:
            if resume and not accept_changes:
                check_same_recipe(recipe, directory)
            origin = origin_of_new_run(recipe, problems, thorough=thorough)
    is_model_intact = len(problems) == problems_so_far
    corpora, validation, unsharded = _open_datasets(recipe, origin, problems, download=thorough)
    for text in unsharded.values() if origin else []:
        with collect_errors(problems):
            check_unsharded(text, origin.architecture, recipe.data.context)
    folder = _match_model_and_data(recipe, origin, corpora, problems, accept_changes=accept_changes)
    problems += task_problems(recipe)
    if folder:
        with collect_errors(problems):
            recipe_prompts(recipe, folder, next(iter(corpora.values())).index.tokenizer.eos_token)
    if origin and origin.resume_state and not accept_changes:
        with collect_errors(problems):
            check_same_validation(recipe, validation, origin.resume_state.state)
    if origin and is_model_intact:
        with collect_errors(problems):
            start = describe_start(
                recipe,
                list(origin.ancestors),
                base=origin.base,
                carried=dict(origin.carried),
                resume_state=origin.resume_state and origin.resume_state[:2],
                vocabulary=str(origin.growth) if origin.growth else None,
            )
    if os.environ.get("RANK", "0") == "0":  # of several processes, the one that sends metrics
        with collect_errors(problems):
            check_trackers(recipe.trackers)
    lineage = [ancestor.corpora for ancestor in origin.ancestors] if origin else []
    roles = resolve_roles(recipe, lineage)
    recipe = with_roles(recipe, roles)
    return ResolvedRun(
        recipe, origin, corpora, validation, folder, start, problems, roles, unsharded
    )


def _open_datasets(
    recipe: Recipe, origin: ModelOrigin | None, problems: list[Problem], *, download: bool
) -> tuple[dict[str, Corpus], dict[str, StoredBlocks], dict[str, UnshardedText]]:
    """Opens the index of every training corpus and validation set, each folder once."""
    data, carried = recipe.data, dict(origin.carried) if origin else {}
    opened: dict[tuple[str, str, str | None], ShardSource | UnshardedText] = {}
    corpora: dict[str, Corpus] = {}
    validation: dict[str, StoredBlocks] = {}
    unsharded: dict[str, UnshardedText] = {}

    def open_shards(name: str, settings: TrainSet | ValidationSet) -> ShardSource | None:
        """Returns the shards of a corpus; None of text, which is added to `unsharded`."""
        key = (settings.shards, settings.field, settings.split)
        if key not in opened:
            source = opened[key] = open_corpus(recipe, settings, download=download)
            if isinstance(source, ShardSource):
                with collect_errors(problems):
                    source.check_sizes()
        source = opened[key]
        if isinstance(source, ShardSource):
            return source
        unsharded[name] = source
        return None

    for name, settings in data.train.items():
        with collect_errors(problems):
            if shards := open_shards(f"train.{name}", settings):
                corpora[name] = Corpus(
                    name,
                    shards,
                    context=data.context,
                    seed=recipe.seed,
                    lanes=data.lanes,
                    order=settings.order,
                    skip=carried.get(name, 0),
                    verify=data.verify,
                )
    for name, validation_set in data.validation.items():
        with collect_errors(problems):
            if shards := open_shards(f"validation.{name}", validation_set):
                tokens = validation_set.tokens
                validation[name] = StoredBlocks(shards, context=data.context, tokens=tokens)
    state = origin.resume_state.state if origin and origin.resume_state else None
    mixture = corpus_mixture(recipe, state.weight_change if state else None)
    problems += epoch_problems(recipe, corpora, mixture, carried)
    with collect_errors(problems):
        check_open_files(corpora, validation)
    indices = {str(s): s.index for s in opened.values() if isinstance(s, ShardSource)}
    if indices:
        with collect_errors(problems):
            check_same_tokenizer(indices)
    return corpora, validation, unsharded


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
        with collect_errors(problems):
            recipe.check_fp8_widths(origin.architecture)
    if not corpora:
        return None
    corpus = next(iter(corpora.values()))
    if origin:
        info, shards = corpus.index.tokenizer, str(corpus.source)
        with collect_errors(problems):
            check_model_matches_shards(
                origin.architecture, origin.tokenizer_directory, info, shards, recipe.data.context
            )
        is_resume = origin.resume_state is not None
        earlier_state = origin.resume_state.state if origin.resume_state else origin.base_state
        if earlier_state and (is_resume or recipe.data.carry) and not accept_changes:
            with collect_errors(problems):
                check_same_shards(recipe, corpora, earlier_state, is_resume=is_resume)
    with collect_errors(problems):
        model = origin.tokenizer_directory if origin else None
        has_tokenizer = model is not None and (model / "tokenizer.json").is_file()
        folder = model if model and has_tokenizer else corpus.source.tokenizer_folder()
        check_files_inside(folder)  # its tokenizer files are copied into every checkpoint
        return folder
    return None
