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

from rewarm import (
    bases,
    checkpoint,
    contract,
    fp8,
    kernels,
    lineage,
    manifest,
    memory,
    neox,
    optim,
    schedules,
    stream,
    trial,
    untrusted,
    weights,
)
from rewarm.architecture import Architecture
from rewarm.bases import Base
from rewarm.checkpoint import TokenizerSource
from rewarm.contract import Contract
from rewarm.device import autocast, device_name, find_device
from rewarm.errors import CheckpointError, printable
from rewarm.guard import Memory
from rewarm.mix import Mix
from rewarm.neox import NeoX
from rewarm.places import Place
from rewarm.progress import Ancestor, Progress, read_progress
from rewarm.recipe import Recipe
from rewarm.run import Run
from rewarm.stream import Corpus, Stream


class Start(NamedTuple):
    """Everything that a run begins or goes on with."""

    model: NeoX
    optimizer: torch.optim.Optimizer
    stream: Stream
    tokenizer: TokenizerSource
    separator: int | None
    """The end-of-text token, if documents should not see each other."""
    progress: Progress
    contract: Contract
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
            Place(one.shards, cache_bytes=data.cache),
            context=data.context,
            seed=recipe.seed,
            lanes=data.lanes,
            order=one.order,
            first=carried.get(name, 0),
            verify=data.verify,
        )
        for name, one in data.train.items()
    ]
    validation = [Place(one.shards, cache_bytes=data.cache) for one in data.validation.values()]
    places = [*(corpus.place for corpus in corpora), *validation]
    stream.agree({str(place): place.index for place in places})
    needed = Mix(recipe.weights).exact(recipe.steps * recipe.sequences)
    for corpus in corpora:
        stream.insist_on_epochs(
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


def start(recipe: Recipe, run: Run) -> Start:
    """Builds model, optimiser and stream: new, from a base, or from the run's last checkpoint."""
    origin = _origin(recipe, run)
    then = read_progress(run.resumed) if run.resumed else None
    if then and run.resumed:
        _same_place(recipe, run, then, run.resumed)
    carried = then.carried if then else {}
    if recipe.data.carry and not then and origin.base:
        carried = contract.carried(recipe, origin.base)
    corpora = open_corpora(recipe, carried)
    _same_data(recipe, run, corpora, then, origin)
    facts, first = corpora[0].index.tokenizer, corpora[0].place
    bases.fits(origin.architecture, origin.tokenizer, facts, str(first), recipe.data.context)
    recipe.insist_on_widths(origin.architecture)
    agreed = contract.agree(recipe, origin.base, origin.ancestors, run.resumed)
    progress = _progress(recipe, corpora, then, carried, origin.ancestors)
    if origin.weights:
        model, matched = weights.load(origin.architecture, origin.weights)
        tensors = f"{matched.tensors:,} of {len(model.state_dict()):,} tensors matched"
        if matched.ignored:
            tensors += f", {matched.ignored:,} that follow from the configuration left out"
        agreed = agreed.model_copy(update={"tensors": tensors})
    else:
        model = NeoX(origin.architecture)
        neox.initialise(model, recipe.seed)
    device = find_device()
    model.to(device)
    optimizer = optim.adamw(model, recipe.optimizer)
    chosen, said = kernels.choose(recipe.kernels, device)
    model.use(chosen, memory=recipe.memory, precision=recipe.precision)
    if model.scaling:
        said += fp8.insist_on(device)
    if origin.moments:
        checkpoint.load_optimizer(origin.moments, model, optimizer)
    triton = chosen is not kernels.PLAIN
    separator = facts.eos if recipe.data.documents == "separate" else None
    eager = []
    if device.type == "cuda" and recipe.compile:
        attempt = partial(
            trial.run_once,
            model,
            microbatch=recipe.microbatch,
            context=recipe.data.context,
            cast=autocast(recipe.precision, device),
            separator=separator,
        )
        eager = trial.compile_layers(model, attempt)
    own = origin.tokenizer and (origin.tokenizer / "tokenizer.json").is_file()
    folder = origin.tokenizer if own and origin.tokenizer else first.tokenizer_folder()
    untrusted.insist_on_own_files(folder)  # its tokenizer goes into every checkpoint
    same = ", with the same bits each time" if recipe.deterministic else ""
    step = min(progress.step + 1, recipe.steps)
    rows = origin.architecture.vocabulary
    padding = f", {rows - facts.vocabulary} of them padding" if rows > facts.vocabulary else ""
    return Start(
        model,
        optimizer,
        Stream(corpora, recipe.weights, sequences=recipe.sequences, position=progress.position),
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
            f"memory  {memory.of_recipe(recipe, origin.architecture, triton=triton).in_words()}",
            f"steps   {step:,} to {recipe.steps:,} of {recipe.batch.tokens:,} tokens; "
            f"lr {recipe.lr(step):.4g} → {recipe.lr(recipe.steps):.4g}",
        ],
    )


def _origin(recipe: Recipe, run: Run) -> Origin:
    """Returns where the run begins or goes on: each of the three ways is one branch."""
    if last := run.resumed:
        manifest.verify(last)
        shape = bases.read_architecture(last)
        return Origin(shape, last, last, last, None, read_progress(last).lineage)
    if recipe.model.base is None:
        assert recipe.model.shape is not None
        return Origin(recipe.model.shape, None, None, None, None, [])
    fresh = recipe.model.fresh
    base = bases.locate(recipe.model.base, recipe.model.revision, weights=not fresh)
    if fresh:
        return Origin(base.architecture, None, None, base.directory, base, [])
    if base.kind == "rewarm checkpoint":
        manifest.verify(base.directory)
    moments = base.directory if recipe.optimizer.carry else None
    ancestors = lineage.ancestry(base)
    return Origin(base.architecture, base.directory, moments, base.directory, base, ancestors)


def _new_plugin(then: Progress, now: Progress) -> list[str]:
    """Returns a warning if the schedule is of another version than the run went on with so far."""
    if then.schedule == now.schedule:
        return []
    was, is_now = (
        "{name} of {distribution} {version}".format_map({**now.schedule, **one.schedule})
        for one in (then, now)
    )
    return [printable(f"warning: the schedule is {is_now}, and was {was}")]


def _same_place(recipe: Recipe, run: Run, then: Progress, resumed: Path) -> None:
    """Makes sure that a checkpoint's progress is whole, of its step, and of the recipe's corpora.

    Raises:
        CheckpointError: it is not.
    """
    if run.checkpoint(then.step) != resumed:
        raise CheckpointError(
            f"{resumed}: its progress.json is of step {then.step:,}; use another checkpoint"
        )
    try:
        Memory.model_validate(then.guard)
    except ValidationError as error:
        raise CheckpointError(
            f"{resumed / 'progress.json'}: guard: {untrusted.first_problem(error)}; use another "
            "checkpoint"
        ) from None
    if then.blocks.keys() != recipe.data.train.keys():
        raise CheckpointError(
            f"{resumed}: its place in the data is one in {', '.join(then.blocks)}, and the "
            f"recipe reads {', '.join(recipe.data.train)}; resume with the same corpora"
        )


def _same_data(
    recipe: Recipe, run: Run, corpora: list[Corpus], then: Progress | None, origin: Origin
) -> None:
    """Makes sure that a place in the data is a place in this data.

    Raises:
        CheckpointError: the shards of a corpus are not those that the place was reached in.
    """
    if run.accept_changes:
        return
    before, whose = then, "the run began with"
    if recipe.data.carry and not then and origin.base:
        before, whose = read_progress(origin.base.directory), "the base was trained on"
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
    then: Progress | None,
    carried: dict[str, int],
    ancestors: list[Ancestor],
) -> Progress:
    """Returns the progress to begin with, or to go on from."""
    now = Progress(
        step=0,
        tokens=0,
        lrs=None,
        blocks=dict.fromkeys(recipe.data.train, 0),
        carried=carried,
        stream=stream.NOTHING,
        corpora={corpus.name: corpus.index.digest() for corpus in corpora},
        baseline={},
        losses={},
        guard={},
        schedule=schedules.identity(recipe.schedule.name),
        curve=schedules.sampled(recipe.schedule),
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
