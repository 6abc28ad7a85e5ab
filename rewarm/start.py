"""How a run begins or goes on: which weights, which Adam moments, which place in the data.

Three ways, each said aloud: a base's weights with a fresh optimiser (the usual one), a base's
weights and Adam moments (`optimizer.carry`), or everything from this run's last checkpoint
(`--resume`). New weights are drawn for a preset, an architecture, or a base with `fresh`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from rewarm import bases, checkpoint, optim, schedules, stream
from rewarm.checkpoint import TokenizerSource
from rewarm.errors import CheckpointError
from rewarm.evaluate import device_name
from rewarm.neox import NeoX, initialise, load_weights
from rewarm.places import Place
from rewarm.progress import Progress, read_progress
from rewarm.recipe import Recipe
from rewarm.run import Run
from rewarm.stream import Corpus, Mix, Stream


class Start(NamedTuple):
    """Everything that a run begins or goes on with."""

    model: NeoX
    optimizer: torch.optim.Optimizer
    stream: Stream
    tokenizer: TokenizerSource
    separator: int | None
    """The end-of-text token, if documents should not see each other."""
    progress: Progress
    said: list[str]


def open_corpora(recipe: Recipe) -> list[Corpus]:
    """Returns the training corpora of a recipe, having read their indices.

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
            float(needed[corpus.name]),
            context=data.context,
            most=data.max_epochs,
        )
    return corpora


def start(recipe: Recipe, run: Run) -> Start:
    """Builds model, optimiser and stream: new, from a base, or from the run's last checkpoint."""
    corpora = open_corpora(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plugin = schedules.origin(recipe.schedule.name)
    identity = {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
    }
    digests = {corpus.name: corpus.index.digest() for corpus in corpora}
    progress = Progress(
        step=0,
        tokens=0,
        lr=0.0,
        blocks=dict.fromkeys(recipe.data.train, 0),
        stream=stream.NOTHING,
        corpora=digests,
        baseline={},
        schedule=identity,
        rewarm=version("rewarm"),
    )
    base = None
    source = run.resumed
    if source:
        checkpoint.verify(source)
        progress = _resumed(read_progress(source), progress, run, source)
        architecture = bases.read_architecture(source)
    elif recipe.model.base:
        base = bases.locate(
            recipe.model.base, recipe.model.revision, weights=not recipe.model.fresh
        )
        architecture = base.architecture
        if base.kind == "rewarm checkpoint":
            checkpoint.verify(base.directory)
    else:
        assert recipe.model.shape is not None
        architecture = recipe.model.shape
    facts = corpora[0].index.tokenizer
    directory = source or (base.directory if base else None)
    bases.fits(architecture, directory, facts, str(corpora[0].place), recipe.data.context)

    model = NeoX(architecture)
    if source or (base and not recipe.model.fresh):
        load_weights(model, source or base.directory)  # type: ignore[union-attr]
    else:
        initialise(model, recipe.seed)
    model.to(device)
    optimizer = optim.adamw(model, recipe.optimizer)
    if source:
        checkpoint.load_optimizer(source, model, optimizer)
    elif base and recipe.optimizer.carry:
        checkpoint.load_optimizer(base.directory, model, optimizer)
    if device.type == "cuda" and recipe.compile:
        model.compile_layers()

    folder = base.directory if base and (base.directory / "tokenizer.json").is_file() else None
    return Start(
        model,
        optimizer,
        Stream(corpora, recipe.weights, sequences=recipe.sequences, position=progress.position),
        TokenizerSource(
            source or folder or corpora[0].place.tokenizer_folder(), facts.eos, facts.eos_token
        ),
        facts.eos if recipe.data.documents == "separate" else None,
        progress,
        _said(recipe, run, base, progress, model),
    )


def _resumed(then: Progress, now: Progress, run: Run, source: Path) -> Progress:
    """Returns the progress to go on from, having made sure that the data is still the same."""
    changed = [name for name, digest in now.corpora.items() if then.corpora.get(name) != digest]
    if changed and not run.accept_changes:
        raise CheckpointError(
            f"{source}: the shards of {', '.join(changed)} are not those that the run began with; "
            "put them back, or say --accept-changes to go on with these from the same place"
        )
    return then.model_copy(
        update={"corpora": now.corpora, "schedule": now.schedule, "rewarm": now.rewarm}
    )


def _said(
    recipe: Recipe, run: Run, base: bases.Base | None, progress: Progress, model: NeoX
) -> list[str]:
    device = next(model.parameters()).device
    if run.resumed:
        start = f"{run.resumed}: weights, Adam moments and place in the data (resumed)"
    elif base and not recipe.model.fresh:
        moments = "its Adam moments" if recipe.optimizer.carry else "fresh Adam moments"
        start = f"{base.kind} {recipe.model.base}: its weights, {moments}"
    else:
        start = f"new weights (seed {recipe.seed}), fresh Adam moments"
    first = progress.step + 1
    return [
        f"start   {start}",
        *(f"changed {change}" for change in run.changes),
        f"model   {model.architecture.parameters:,} parameters, {recipe.precision} on "
        + device_name(device),
        f"steps   {first:,} to {recipe.steps:,} of {recipe.batch.tokens:,} tokens; "
        f"lr {recipe.lr(min(first, recipe.steps)):.4g} → {recipe.lr(recipe.steps):.4g}",
    ]
