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

from rewarm import bases, checkpoint, manifest, neox, optim, schedules, stream, untrusted
from rewarm.architecture import Architecture
from rewarm.checkpoint import TokenizerSource
from rewarm.errors import CheckpointError
from rewarm.evaluate import device_name
from rewarm.mix import Mix
from rewarm.neox import NeoX
from rewarm.places import Place
from rewarm.progress import Progress, read_progress
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


class Origin(NamedTuple):
    """Where weights and moments come from; None for those that are new."""

    architecture: Architecture
    weights: Path | None
    moments: Path | None
    tokenizer: Path | None
    """A directory whose tokenizer goes with the weights."""
    said: str


def start(recipe: Recipe, run: Run) -> Start:
    """Builds model, optimiser and stream: new, from a base, or from the run's last checkpoint."""
    corpora = open_corpora(recipe)
    facts, first = corpora[0].index.tokenizer, corpora[0].place
    origin = _origin(recipe, run)
    bases.fits(origin.architecture, origin.tokenizer, facts, str(first), recipe.data.context)
    progress = _progress(recipe, run, corpora)
    if origin.weights:
        model = neox.load(origin.architecture, origin.weights)
    else:
        model = NeoX(origin.architecture)
        neox.initialise(model, recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimizer = optim.adamw(model, recipe.optimizer)
    if origin.moments:
        checkpoint.load_optimizer(origin.moments, model, optimizer)
    if device.type == "cuda" and recipe.compile:
        model.compile_layers()
    own = origin.tokenizer and (origin.tokenizer / "tokenizer.json").is_file()
    folder = origin.tokenizer if own and origin.tokenizer else first.tokenizer_folder()
    untrusted.insist_on_own_files(folder)  # its tokenizer goes into every checkpoint
    step = min(progress.step + 1, recipe.steps)
    return Start(
        model,
        optimizer,
        Stream(corpora, recipe.weights, sequences=recipe.sequences, position=progress.position),
        TokenizerSource(folder, facts.eos, facts.eos_token),
        facts.eos if recipe.data.documents == "separate" else None,
        progress,
        [
            f"start   {origin.said}",
            *(f"changed {change}" for change in run.changes),
            f"model   {model.architecture.parameters:,} parameters, {recipe.precision} on "
            f"{device_name(device)}",
            f"steps   {step:,} to {recipe.steps:,} of {recipe.batch.tokens:,} tokens; "
            f"lr {recipe.lr(step):.4g} → {recipe.lr(recipe.steps):.4g}",
        ],
    )


def _origin(recipe: Recipe, run: Run) -> Origin:
    """Returns where the run begins or goes on: each of the three ways is one branch."""
    if last := run.resumed:
        manifest.verify(last)
        said = f"{last}: weights, Adam moments and place in the data (resumed)"
        return Origin(bases.read_architecture(last), last, last, last, said)
    if recipe.model.base is None:
        assert recipe.model.shape is not None
        said = f"new weights (seed {recipe.seed}), fresh Adam moments"
        return Origin(recipe.model.shape, None, None, None, said)
    name, fresh = recipe.model.base, recipe.model.fresh
    base = bases.locate(name, recipe.model.revision, weights=not fresh)
    if fresh:
        said = f"new weights (seed {recipe.seed}) in the shape of {name}, fresh Adam moments"
        return Origin(base.architecture, None, None, base.directory, said)
    if base.kind == "rewarm checkpoint":
        manifest.verify(base.directory)
    carried = recipe.optimizer.carry
    said = f"{base.kind} {name}: its weights, {'its' if carried else 'fresh'} Adam moments"
    moments = base.directory if carried else None
    return Origin(base.architecture, base.directory, moments, base.directory, said)


def _progress(recipe: Recipe, run: Run, corpora: list[Corpus]) -> Progress:
    """Returns the progress to begin with, or to go on from if the data is still the same."""
    plugin = schedules.origin(recipe.schedule.name)
    now = Progress(
        step=0,
        tokens=0,
        lr=0.0,
        blocks=dict.fromkeys(recipe.data.train, 0),
        stream=stream.NOTHING,
        corpora={corpus.name: corpus.index.digest() for corpus in corpora},
        baseline={},
        schedule={
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
        },
        rewarm=version("rewarm"),
    )
    if run.resumed is None:
        return now
    then = read_progress(run.resumed)
    if run.checkpoint(then.step) != run.resumed:
        raise CheckpointError(
            f"{run.resumed}: its progress.json is of step {then.step:,}; use another checkpoint"
        )
    if then.blocks.keys() != now.blocks.keys():
        raise CheckpointError(
            f"{run.resumed}: its place in the data is one in {', '.join(then.blocks)}, and the "
            f"recipe reads {', '.join(now.blocks)}; resume with the same corpora"
        )
    changed = [name for name, digest in now.corpora.items() if then.corpora.get(name) != digest]
    if changed and not run.accept_changes:
        raise CheckpointError(
            f"{run.resumed}: the shards of {', '.join(changed)} are not those that the run began "
            "with; put them back, or say --accept-changes to go on with these from the same place"
        )
    return then.model_copy(
        update={"corpora": now.corpora, "schedule": now.schedule, "rewarm": now.rewarm}
    )
