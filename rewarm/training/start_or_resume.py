"""How a run begins or goes on: which weights, which Adam moments, which place in the data.

Three ways, each said aloud: a base's weights with a fresh optimiser (the usual one), a base's
weights and Adam moments (`optimizer.carry`), or everything from this run's last checkpoint
(`--resume`). New weights are drawn for a preset, an architecture, or a base with `fresh`.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError

from rewarm import schedules
from rewarm.checkpoints import load_weights
from rewarm.checkpoints.find_checkpoint import (
    Base,
    locate_base,
    read_architecture,
)
from rewarm.checkpoints.lineage import ancestry
from rewarm.checkpoints.manifest import verify_checkpoint
from rewarm.checkpoints.optimizer_state import load_optimizer_state
from rewarm.checkpoints.training_state import Ancestor, TrainingState, read_training_state
from rewarm.checkpoints.write_checkpoint import TokenizerSource
from rewarm.data import batch_loader
from rewarm.data.batch_loader import BatchLoader
from rewarm.data.corpus import Corpus, check_epochs
from rewarm.data.mixture import Mixture
from rewarm.data.shard_source import ShardSource
from rewarm.data.tokenizer import check_model_matches_shards, check_same_tokenizer
from rewarm.errors import CheckpointError, printable
from rewarm.estimates.memory import estimate_recipe_memory
from rewarm.model.architecture import Architecture
from rewarm.model.kernels.fp8.scaling import check_fp8_device
from rewarm.model.kernels.selection import PYTORCH_KERNELS, choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.recipe.recipe import Recipe
from rewarm.runs import start_record
from rewarm.runs.run_directory import RunDirectory
from rewarm.runs.start_record import StartRecord
from rewarm.safe_loading import check_files_inside, first_problem
from rewarm.training.device_setup import autocast, device_name, find_device
from rewarm.training.divergence_guard import GuardState
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass
from rewarm.training.optimizer import build_adamw


class StartedRun(NamedTuple):
    """Everything that a run begins or goes on with."""

    model: NeoX
    optimizer: torch.optim.Optimizer
    stream: BatchLoader
    tokenizer: TokenizerSource
    separator: int | None
    """The end-of-text token, if documents should not see each other."""
    progress: TrainingState
    contract: StartRecord
    said: list[str]


def open_corpora(recipe: Recipe, carried: dict[str, int]) -> list[Corpus]:
    """Returns the training corpora of a recipe, having read their indices.

    Args:
        recipe: what names them.
        carried: blocks of each that were taken before this run (data.carry).

    Raises:
        DataError: one is missing, too small, or would be read too often; or the tokenizers of two
            sets, validation included, differ.
    """
    data = recipe.data
    corpora = [
        Corpus(
            name,
            ShardSource(one.shards, cache_bytes=data.cache),
            context=data.context,
            seed=recipe.seed,
            lanes=data.lanes,
            order=one.order,
            first=carried.get(name, 0),
            verify=data.verify,
        )
        for name, one in data.train.items()
    ]
    validation = [
        ShardSource(one.shards, cache_bytes=data.cache) for one in data.validation.values()
    ]
    places = [*(corpus.place for corpus in corpora), *validation]
    check_same_tokenizer({str(place): place.index for place in places})
    needed = Mixture(recipe.weights).exact(recipe.steps * recipe.sequences)
    for corpus in corpora:
        check_epochs(
            corpus.name,
            corpus.index,
            float(needed[corpus.name]) + carried.get(corpus.name, 0),
            context=data.context,
            most=data.max_epochs,
        )
    return corpora


class Origin(NamedTuple):
    """Where weights and moments come from; None for those that are new."""

    architecture: Architecture
    weights: Path | None
    moments: Path | None
    tokenizer: Path | None
    """A directory whose tokenizer goes with the weights."""
    base: Base | None
    ancestors: list[Ancestor]


def start_or_resume(recipe: Recipe, run: RunDirectory) -> StartedRun:
    """Builds model, optimiser and stream: new, from a base, or from the run's last checkpoint."""
    origin = _origin(recipe, run)
    then = read_training_state(run.resumed) if run.resumed else None
    if then and run.resumed:
        _same_place(recipe, run, then, run.resumed)
    carried = then.carried if then else {}
    if recipe.data.carry and not then and origin.base:
        carried = start_record.carried_blocks(recipe, origin.base)
    corpora = open_corpora(recipe, carried)
    _same_data(recipe, run, corpora, then, origin)
    facts, first = corpora[0].index.tokenizer, corpora[0].place
    check_model_matches_shards(
        origin.architecture, origin.tokenizer, facts, str(first), recipe.data.context
    )
    recipe.insist_on_widths(origin.architecture)
    agreed = start_record.describe_start(recipe, origin.base, origin.ancestors, run.resumed)
    progress = _progress(recipe, corpora, then, carried, origin.ancestors)
    if origin.weights:
        model, matched = load_weights.load_model(origin.architecture, origin.weights)
        tensors = f"{matched.tensors:,} of {len(model.state_dict()):,} tensors matched"
        if matched.ignored:
            tensors += f", {matched.ignored:,} that follow from the configuration left out"
        agreed = agreed.model_copy(update={"tensors": tensors})
    else:
        model = NeoX(origin.architecture)
        initialize_weights(model, recipe.seed)
    device = find_device()
    model.to(device)
    optimizer = build_adamw(model, recipe.optimizer)
    chosen, said = choose_kernels(recipe.kernels, device)
    model.use(chosen, memory=recipe.memory, precision=recipe.precision)
    if model.scaling:
        said += check_fp8_device(device)
    if origin.moments:
        load_optimizer_state(origin.moments, model, optimizer)
    triton = chosen is not PYTORCH_KERNELS
    separator = facts.eos if recipe.data.documents == "separate" else None
    eager = []
    if device.type == "cuda" and recipe.compile:
        attempt = partial(
            run_trial_pass,
            model,
            microbatch=recipe.microbatch,
            context=recipe.data.context,
            cast=autocast(recipe.precision, device),
            separator=separator,
        )
        eager = compile_or_run_eagerly(model, attempt)
    own = origin.tokenizer and (origin.tokenizer / "tokenizer.json").is_file()
    folder = origin.tokenizer if own and origin.tokenizer else first.tokenizer_folder()
    check_files_inside(folder)  # its tokenizer goes into every checkpoint
    same = ", with the same bits each time" if recipe.deterministic else ""
    step = min(progress.step + 1, recipe.steps)
    rows = origin.architecture.vocabulary
    padding = f", {rows - facts.vocabulary} of them padding" if rows > facts.vocabulary else ""
    return StartedRun(
        model,
        optimizer,
        BatchLoader(
            corpora, recipe.weights, sequences=recipe.sequences, position=progress.position
        ),
        TokenizerSource(folder, facts.eos, facts.eos_token),
        separator,
        progress,
        agreed,
        [
            *(f"{head:<8}{text}" for head, text in agreed.lines()),
            *(f"changed {change}" for change in run.changes),
            *(_new_plugin(then, progress) if then else []),
            f"model   {origin.architecture.parameters:,} parameters, {rows:,} embedding "
            f"rows{padding}",
            f"runs    in {recipe.precision}{', products in TF32,' if recipe.tf32 else ''} "
            f"on {device_name(device)}{said}{same}",
            *eager,
            "memory  "
            + estimate_recipe_memory(recipe, origin.architecture, triton=triton).in_words(),
            f"steps   {step:,} to {recipe.steps:,} of {recipe.batch.tokens:,} tokens; "
            f"lr {recipe.lr(step):.4g} → {recipe.lr(recipe.steps):.4g}",
        ],
    )


def _origin(recipe: Recipe, run: RunDirectory) -> Origin:
    """Returns where the run begins or goes on: each of the three ways is one branch."""
    if last := run.resumed:
        verify_checkpoint(last)
        shape = read_architecture(last)
        return Origin(shape, last, last, last, None, read_training_state(last).lineage)
    if recipe.model.base is None:
        assert recipe.model.shape is not None
        return Origin(recipe.model.shape, None, None, None, None, [])
    fresh = recipe.model.fresh
    base = locate_base(recipe.model.base, recipe.model.revision, weights=not fresh)
    if fresh:
        return Origin(base.architecture, None, None, base.directory, base, [])
    if base.kind == "rewarm checkpoint":
        verify_checkpoint(base.directory)
    moments = base.directory if recipe.optimizer.carry else None
    ancestors = ancestry(base)
    return Origin(base.architecture, base.directory, moments, base.directory, base, ancestors)


def _new_plugin(then: TrainingState, now: TrainingState) -> list[str]:
    """Returns a warning if the schedule is of another version than the run went on with so far."""
    if then.schedule == now.schedule:
        return []
    was, is_now = (
        "{name} of {distribution} {version}".format_map({**now.schedule, **one.schedule})
        for one in (then, now)
    )
    return [printable(f"warning: the schedule is {is_now}, and was {was}")]


def _same_place(recipe: Recipe, run: RunDirectory, then: TrainingState, resumed: Path) -> None:
    """Makes sure that a checkpoint's progress is whole, of its step, and of the recipe's corpora.

    Raises:
        CheckpointError: it is not.
    """
    if run.checkpoint(then.step) != resumed:
        raise CheckpointError(
            f"{resumed}: its progress.json is of step {then.step:,}; use another checkpoint"
        )
    try:
        GuardState.model_validate(then.guard)
    except ValidationError as error:
        raise CheckpointError(
            f"{resumed / 'progress.json'}: guard: {first_problem(error)}; use another checkpoint"
        ) from None
    if then.blocks.keys() != recipe.data.train.keys():
        raise CheckpointError(
            f"{resumed}: its place in the data is one in {', '.join(then.blocks)}, and the "
            f"recipe reads {', '.join(recipe.data.train)}; resume with the same corpora"
        )


def _same_data(
    recipe: Recipe,
    run: RunDirectory,
    corpora: list[Corpus],
    then: TrainingState | None,
    origin: Origin,
) -> None:
    """Makes sure that a place in the data is a place in this data.

    Raises:
        CheckpointError: the shards of a corpus are not those that the place was reached in.
    """
    if run.accept_changes:
        return
    before, whose = then, "the run began with"
    if recipe.data.carry and not then and origin.base:
        before, whose = read_training_state(origin.base.directory), "the base was trained on"
    if before is None:
        return
    now = {corpus.name: corpus.index.digest() for corpus in corpora}
    # A corpus that the base did not have begins at its beginning; a run's own cannot be new.
    changed = [n for n, one in now.items() if before.corpora.get(n, "" if then else one) != one]
    if changed:
        raise CheckpointError(
            f"{recipe.run}: the shards of {', '.join(changed)} are not those that {whose}; put "
            "them back, or say --accept-changes to go on with these from the same place"
        )


def _progress(
    recipe: Recipe,
    corpora: list[Corpus],
    then: TrainingState | None,
    carried: dict[str, int],
    ancestors: list[Ancestor],
) -> TrainingState:
    """Returns the progress to begin with, or to go on from."""
    now = TrainingState(
        step=0,
        tokens=0,
        lrs=None,
        blocks=dict.fromkeys(recipe.data.train, 0),
        carried=carried,
        stream=batch_loader.EMPTY_DIGEST,
        corpora={corpus.name: corpus.index.digest() for corpus in corpora},
        baseline={},
        losses={},
        guard={},
        schedule=schedules.identity(recipe.schedule.name),
        curve=schedules.sample_curve(recipe.schedule),
        lineage=ancestors,
        rewarm=version("rewarm"),
    )
    if then is None:
        return now
    return then.model_copy(
        update={
            "corpora": now.corpora,
            "schedule": now.schedule,
            "curve": now.curve,
            "rewarm": now.rewarm,
        }
    )
