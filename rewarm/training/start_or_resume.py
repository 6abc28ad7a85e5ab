"""Builds what a run starts or resumes with: model, optimizer, batches.

Three ways to start, each shown by `check` and `train`: a base's weights with fresh optimizer state
(the usual one), a base's weights and optimizer state (`optimizer.carry`), or everything from this
run's last checkpoint (`--resume`). New weights are drawn for a preset, an architecture, or a base
with `fresh`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from pydantic import ValidationError

from rewarm import open_files, schedules
from rewarm.checkpoints.load_weights import load_weights
from rewarm.checkpoints.manifest import AVERAGE
from rewarm.checkpoints.model_files import TokenizerSource
from rewarm.checkpoints.optimizer_state import load_optimizer_state
from rewarm.checkpoints.training_state import TrainingState
from rewarm.checkpoints.weight_files import find_weight_files
from rewarm.data.batch_loader import EMPTY_DIGEST, BatchLoader
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.errors import CheckpointError, printable
from rewarm.estimates.memory import estimate_recipe_memory
from rewarm.estimates.run_plan import cpu_note
from rewarm.model.attention_backend import observed_backend
from rewarm.model.kernels.fp8.scaling import check_fp8_device
from rewarm.model.kernels.selection import PYTORCH_KERNELS, Kernels, choose_kernels
from rewarm.model.neox import NeoX, initialize_weights
from rewarm.quantities import format_rates
from rewarm.recipe.batch_split import BatchSplit
from rewarm.recipe.gpu_sharing import split_on
from rewarm.recipe.recipe import Recipe
from rewarm.runs.corpus_mixture import corpus_mixture
from rewarm.runs.model_origin import ResumeState
from rewarm.runs.resolve_run import ResolvedRun
from rewarm.runs.start_record import StartRecord
from rewarm.safe_loading import first_validation_error
from rewarm.training.device_setup import autocast, cpu_threads, device_name, find_device
from rewarm.training.divergence_guard import GuardState
from rewarm.training.layer_compilation import compile_or_run_eagerly, run_trial_pass
from rewarm.training.optimizer import build_adamw
from rewarm.training.processes import ALONE, Processes
from rewarm.training.weight_average import WeightAverage
from rewarm.version import __version__


class StartedRun(NamedTuple):
    """Everything that a run starts or resumes with."""

    recipe: Recipe
    model: NeoX
    optimizer: torch.optim.Optimizer
    loader: BatchLoader
    validation: dict[str, StoredBlocks]
    tokenizer: TokenizerSource
    separator_id: int | None
    """The end-of-text token, if documents must not attend to each other."""
    processes: Processes
    split: BatchSplit
    """How the batch is divided among the processes, and into microbatches."""
    attention: str
    """The backend of attention that ran, or `flex`."""
    average: WeightAverage | None
    """The average of the weights, if the run keeps one."""
    state: TrainingState
    start_record: StartRecord
    start_messages: list[str]
    """What to print before the first step."""


def start_or_resume(resolved: ResolvedRun, processes: Processes = ALONE) -> StartedRun:
    """Builds model, optimizer and batches of a run that was resolved without problems."""
    recipe, start, architecture = resolved.recipe, resolved.start, resolved.architecture
    assert start
    assert architecture
    assert resolved.tokenizer_directory
    if resolved.resume_state:
        _check_guard_state(resolved.resume_state)
    split = split_on(recipe, processes.size)
    state = _training_state(resolved, processes)
    device = find_device()
    with torch.device("meta"):
        model = NeoX(architecture)
    processes.divide(model, recipe.parallel.shard_size(processes.size))
    with processes.agreement("the weights"):
        model.allocate(device)
        tensors = _fill_weights(model, resolved)
        average = _weight_average(model, resolved)
    start = start.model_copy(update={"tensors": tensors})
    optimizer = build_adamw(model, recipe.optimizer)
    kernels, kernels_text = choose_kernels(recipe.kernels, device)
    model.configure(kernels, memory=recipe.memory, precision=recipe.precision)
    if model.fp8_scaling:
        check_fp8_device(device)
        model.fp8_scaling.maximum = processes.maximum
    if resolved.optimizer_state_directory:
        load_optimizer_state(resolved.optimizer_state_directory, model, optimizer)
    open_files.hold_reserve()
    corpora = list(resolved.corpora.values())
    info = corpora[0].index.tokenizer
    separator_id = info.eos if recipe.data.documents == "separate" else None
    trial_pass = _trial_pass(model, recipe, split, separator_id)
    compile_lines = _compile(model, recipe, trial_pass)
    if processes.size > 1:  # the profiler cannot observe collectives
        lone_layer = _one_layer(model, recipe, kernels)
        trial_pass = _trial_pass(lone_layer, recipe, split, separator_id)
    attention = observed_backend(trial_pass) or ("flex" if separator_id is not None else "math")
    mixture = corpus_mixture(recipe, state.weight_change)
    loader = BatchLoader(
        corpora,
        mixture.weights,
        weights_start=mixture.start,
        sequences=recipe.sequences_per_step,
        position=state.position,
        rank=processes.rank,
        world_size=processes.size,
    )
    return StartedRun(
        recipe,
        model,
        optimizer,
        loader,
        resolved.validation,
        TokenizerSource(resolved.tokenizer_directory, info.eos, info.eos_token),
        separator_id,
        processes,
        split,
        attention,
        average,
        state,
        start,
        [
            *_restart_lines(processes),
            *(f"{heading:<8}{text}" for heading, text in start.lines()),
            *_resume_lines(resolved.resume_state, state),
            _model_line(model, info.vocabulary),
            _device_line(recipe, device, attention, kernels_text),
            *_processes_lines(recipe, split, device),
            *compile_lines,
            _memory_line(model, recipe, processes.size, triton=kernels is not PYTORCH_KERNELS),
            _steps_line(recipe, state),
        ],
    )


def _fill_weights(model: NeoX, resolved: ResolvedRun) -> str | None:
    """Loads or initializes all weights; returns how many tensors of loaded ones matched."""
    if resolved.weights_directory is None:
        initialize_weights(model, resolved.recipe.seed)
        return None
    growth = resolved.origin.growth if resolved.origin else None
    stored = model.architecture
    if growth:  # the base's files are without the new rows
        stored = stored.model_copy(update={"vocabulary": growth.base_rows})
    find_weight_files(resolved.weights_directory, stored)
    counts = load_weights(model, resolved.weights_directory, growth)
    tensors = f"{counts.loaded:,} of {len(model.state_dict()):,} tensors matched"
    if counts.derived:
        tensors += f", {counts.derived:,} that follow from the configuration ignored"
    return tensors


def _weight_average(model: NeoX, resolved: ResolvedRun) -> WeightAverage | None:
    """Returns the average of the weights that the run keeps: a new one, or the checkpoint's.

    Raises:
        CheckpointError: the checkpoint should have one, and does not.
    """
    settings, resume = resolved.recipe.optimizer.ema, resolved.resume_state
    if settings is None:
        return None
    average = WeightAverage(model, settings.decay)
    if resume and (resume.checkpoint / AVERAGE).is_dir():
        with average.in_model():
            load_weights(model, resume.checkpoint / AVERAGE)
    elif resume and not any(line.startswith("optimizer.ema") for line in resume.changes):
        raise CheckpointError(
            f"{resume.checkpoint}: has no folder {AVERAGE}, with the average of the weights; copy "
            "the checkpoint again, or use another one"
        )
    return average


def _one_layer(model: NeoX, recipe: Recipe, kernels: Kernels) -> NeoX:
    """Returns an undivided model whose one layer computes as those of a divided model."""
    architecture = model.architecture.model_copy(update={"layers": 1, "vocabulary": 1})
    with torch.device(next(model.parameters()).device):
        lone_layer = NeoX(architecture)
        lone_layer.configure(kernels, memory=recipe.memory, precision=recipe.precision)
    return lone_layer


def _trial_pass(
    model: NeoX, recipe: Recipe, split: BatchSplit, separator_id: int | None
) -> Callable[[], None]:
    """Returns a function that runs one microbatch of zeros, on a CPU one sequence."""
    device = next(model.parameters()).device
    return partial(
        run_trial_pass,
        model,
        microbatch=split.microbatch if device.type == "cuda" else 1,
        context=recipe.data.context,
        cast=autocast(recipe.precision, device),
        separator_id=separator_id,
    )


def _compile(model: NeoX, recipe: Recipe, trial_pass: Callable[[], None]) -> list[str]:
    """Compiles the layers on a GPU; returns a warning where that fails."""
    device = next(model.parameters()).device
    if device.type != "cuda" or not recipe.compile:
        return []
    return compile_or_run_eagerly(model, trial_pass)


def _check_guard_state(resume: ResumeState) -> None:
    """Makes sure that the divergence guard can continue from a checkpoint.

    Raises:
        CheckpointError: its part of progress.json is damaged.
    """
    try:
        GuardState.model_validate(resume.state.guard)
    except ValidationError as error:
        raise CheckpointError(
            f"{resume.checkpoint / 'progress.json'}: guard: {first_validation_error(error)}; use "
            "another checkpoint"
        ) from None


def _training_state(resolved: ResolvedRun, processes: Processes) -> TrainingState:
    """Returns the training state to start with, or to resume from."""
    recipe, origin = resolved.recipe, resolved.origin
    assert origin
    current = {
        "corpora": {name: corpus.index.digest() for name, corpus in resolved.corpora.items()},
        "schedule": schedules.identity(recipe.schedule.name),
        "curve": schedules.sample_curve(recipe.schedule),
        "processes": processes.size,
        "cpu_threads": cpu_threads(find_device()),
        "rewarm": __version__,
    }
    if resolved.resume_state:
        return resolved.resume_state.state.model_copy(update=current)
    return TrainingState(
        step=0,
        tokens=0,
        lrs=None,
        blocks=dict.fromkeys(recipe.data.train, 0),
        carried=dict(origin.carried),
        stream=EMPTY_DIGEST,
        baseline={},
        losses={},
        evaluation_owed=True,  # forgetting needs a baseline
        guard={},
        lineage=list(origin.ancestors),
        **current,
    )


def _restart_lines(processes: Processes) -> list[str]:
    if not processes.restarts:
        return []
    return [f"restart {processes.restarts}: a process was lost"]


def _resume_lines(resume: ResumeState | None, now: TrainingState) -> list[str]:
    """Returns the accepted changes of a resumed run, and what differs without having changed it."""
    if resume is None:
        return []
    lines = [f"changed {change}" for change in resume.changes]
    if resume.state.evaluation_owed:
        lines.append(f"step {now.step:,}  its evaluation was stopped, and is repeated now")
    if (threads := resume.state.cpu_threads) and now.cpu_threads not in (None, threads):
        lines.append(
            f"warning: CPU threads: {now.cpu_threads} now, {threads} before: sums are in another "
            "order, so the last bits will differ from those of a run that was not stopped; for the "
            f"same bits set OMP_NUM_THREADS={threads}"
        )
    if resume.state.processes != now.processes:
        lines.append(
            f"warning: processes: {now.processes} now, {resume.state.processes} before: sums are "
            "in another order, so the last bits will differ from those of a run that was not "
            "stopped"
        )
    if resume.state.schedule != now.schedule:
        before, after = (
            "{name} of {distribution} {version}".format_map({**now.schedule, **state.schedule})
            for state in (resume.state, now)
        )
        lines.append(printable(f"warning: the schedule is {after}, and was {before}"))
    return lines


def _model_line(model: NeoX, vocabulary: int) -> str:
    rows = model.architecture.vocabulary
    padding = f", {rows - vocabulary} of them padding" if rows > vocabulary else ""
    return f"model   {model.architecture.parameters:,} parameters, {rows:,} embedding rows{padding}"


def _device_line(recipe: Recipe, device: torch.device, attention: str, kernels_text: str) -> str:
    precision = f"{recipe.precision}, matmuls in TF32" if recipe.tf32 else recipe.precision
    deterministic = ", deterministic" if recipe.deterministic else ""
    note = f"; {cpu_note(recipe.precision)}" if device.type == "cpu" else ""
    return (
        f"device  {device_name(device)}, {precision}{kernels_text}, {attention} attention"
        f"{deterministic}{note}"
    )


def _processes_lines(recipe: Recipe, split: BatchSplit, device: torch.device) -> list[str]:
    """Returns how several processes share a batch, and what padding costs."""
    if split.processes == 1:
        return []
    size = recipe.parallel.shard_size(split.processes)
    copies = f"{split.processes // size} copies of the weights, each divided among {size}"
    if size == split.processes:
        copies = "weights divided among all"
    elif size == 1:
        copies = "all weights on each"
    padding = ""
    if split.useful < 1:
        padding = f"; {1 - split.useful:.1%} of what is computed is padding"
    share = f"gpus    {split.processes}"
    if device.type == "cpu":
        share = f"shared  {split.processes} processes on the CPU"
    return [
        f"{share}, {copies}; {split.per_process} of {split.sequences:,} "
        f"sequences each, in {split.parts} × {split.microbatch}{padding}"
    ]


def _memory_line(model: NeoX, recipe: Recipe, processes: int, *, triton: bool) -> str:
    estimate = estimate_recipe_memory(recipe, model.architecture, triton=triton, gpus=processes)
    device = "a CPU" if next(model.parameters()).device.type == "cpu" else "a GPU"
    return f"memory  {estimate.as_text(device)}"


def _steps_line(recipe: Recipe, state: TrainingState) -> str:
    step = min(state.step + 1, recipe.steps)
    later = [n for n in schedules.sampled_steps(recipe.schedule, recipe.steps) if n > step]
    highest = max(map(recipe.lr, [step, *later]))
    return (
        f"steps   {step:,} to {recipe.steps:,} of {recipe.batch.tokens:,} tokens; "
        f"lr {format_rates(recipe.lr(step), highest, recipe.lr(recipe.steps))}"
    )
