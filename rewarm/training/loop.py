"""Training: one optimizer step, and the loop around it. A run starts in `train`.

```
 train ── resolve ──> start_or_resume ──> _run_steps, for each step:
   BatchLoader ── tokens ──> take_step ── loss, gradient norm ──> DivergenceGuard ── skip or apply
        └── data position after the batch ──> TrainingState ──> RunRecorder ── metrics, checkpoints
```
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rewarm.data.batch_loader import TokenBlocks
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX
from rewarm.recipe.batch_split import BatchSplit
from rewarm.recipe.gpu_sharing import shard_size_on
from rewarm.recipe.profiled_steps import StepRange
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_writer import cut_metrics
from rewarm.runs.model_origin import ResumeState
from rewarm.runs.resolve_run import ResolvedRun, resolve
from rewarm.runs.run_directory import RunDirectory, RunDirectoryOfRankZero
from rewarm.training.applied_rate_check import AppliedRateProbe
from rewarm.training.device_setup import (
    autocast,
    describe_environment,
    find_device,
    keep_freed_memory,
    set_up_device,
)
from rewarm.training.divergence_guard import not_finite
from rewarm.training.microbatch_search import resolve_microbatch
from rewarm.training.optimizer import apply_update, clip_gradient
from rewarm.training.padding import padded
from rewarm.training.preemption import StopRequested, StopRequests
from rewarm.training.processes import ALONE, Processes
from rewarm.training.profiler import profiled
from rewarm.training.progress_line import NoProgressLine, ProgressLine
from rewarm.training.run_recorder import RunRecorder
from rewarm.training.start_or_resume import StartedRun, start_or_resume
from rewarm.training.tensor_norms import TensorNorms
from rewarm.training.weight_average import WeightAverage


class StepResult(NamedTuple):
    """Results of a step, still on the device: reading them waits for the step to finish."""

    loss: Tensor
    """Mean cross-entropy of the batch before the update, in nats, without the z-loss."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping."""
    skipped: Tensor
    """1 if the update was not applied, else 0."""
    z_loss: Tensor | None = None
    """Mean z-loss of the batch before the update; None without one."""


def take_step(
    model: NeoX,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    *,
    split: BatchSplit,
    lr: float,
    max_grad_norm: float | None,
    z_loss: float = 0.0,
    autocast_context: AbstractContextManager[object],
    should_skip: Callable[[Tensor, Tensor], Tensor] = not_finite,
    separator_id: int | None = None,
    loss_scale: Tensor | None = None,
    processes: Processes = ALONE,
    norms: TensorNorms | None = None,
    average: WeightAverage | None = None,
) -> StepResult:
    """Takes one optimizer step, and returns its loss, gradient norm and whether it was skipped.

    Args:
        model: the model to train.
        optimizer: its optimizer; gradients are zero before and after the step.
        tokens: the sequences of the batch that this process runs, shape (sequences, context + 1).
        split: how the batch is divided among processes, and into forward and backward passes.
        lr: the learning rate of this step.
        max_grad_norm: the norm that the gradient is clipped to; None for no clipping.
        z_loss: the coefficient of the z-loss; 0 for none.
        autocast_context: the precision of the forward pass.
        should_skip: is given loss and gradient norm; returns 1 to skip the update, else 0.
        separator_id: the end-of-text token, if documents must not attend to each other.
        loss_scale: the loss scale of fp16.
        processes: that share the batch.
        norms: measures weights and gradients before the gradient is clipped.
        average: the average of the weights, which follows them.

    The first step in fp8 runs its first microbatch several extra times, to calibrate the scales.
    """
    device = next(model.parameters()).device
    tokens = tokens.to(device, non_blocking=True)
    targets = split.sequences * (tokens.shape[1] - 1)
    losses = torch.zeros(2 if z_loss else 1, device=device)

    def add_gradient(part: int) -> Tensor:
        rows = tokens[part * split.microbatch :][: split.microbatch]
        inputs, part_targets = padded(rows, split.microbatch)
        with autocast_context:
            part_losses = model.loss(
                inputs, part_targets, separator_id=separator_id, reduction="sum", z_loss=z_loss
            ).reshape(-1)
            # Gradients are averaged over the processes, so that they are those of the mean loss.
            part_losses = part_losses * (processes.size / targets)
        torch.autograd.backward(part_losses[0], loss_scale)
        return part_losses.detach()

    if model.fp8_scaling and model.fp8_scaling.needs_calibration:
        processes.set_last_microbatch(model, True)
        model.fp8_scaling.calibrate(lambda: (add_gradient(0), optimizer.zero_grad()))
    for part in range(split.parts):
        processes.set_last_microbatch(model, part == split.parts - 1)
        losses += add_gradient(part)
    minimized, *z_losses = processes.sum(losses) / processes.size
    loss = minimized - z_losses[0] if z_losses else minimized
    if norms:
        norms.measure(loss_scale)
    norm = clip_gradient(model, max_grad_norm, loss_scale, processes)
    skipped = should_skip(loss, norm)
    apply_update(optimizer, lr, skipped)
    if average:
        average.update(skipped)
    optimizer.zero_grad()
    if model.fp8_scaling:
        model.fp8_scaling.update(skipped)
    return StepResult(loss, norm, skipped, *z_losses)


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    resume_from: str | None = None,
    accept_changes: bool = False,
    stop_after_step: int | None = None,
    deadline: float = math.inf,
    profile: StepRange | None = None,
    progress_line_class: type[ProgressLine] = ProgressLine,
) -> Path:
    """Runs a recipe to its end, and returns the path of the last checkpoint.

    Args:
        recipe: the recipe to run.
        resume: continue after the last checkpoint in the run directory, if there is one.
        resume_from: continue after this checkpoint instead: a step, or `before-decay`.
        accept_changes: resume even if the recipe has changed in a way that changes the result.
        stop_after_step: save and stop after this step, as on SIGTERM.
        deadline: a `time.monotonic()` value by which to save and exit.
        profile: steps to record a trace of.
        progress_line_class: the class that displays progress.

    Raises:
        RewarmError: see rewarm.errors.
    """
    with StopRequests(stop_after_step, deadline) as stop_requests, ExitStack() as stack:
        with stop_requests.while_starting():
            processes = stack.enter_context(_join_processes(recipe.parallel.timeout_minutes))
            keep_freed_memory(layers_are_gathered=processes.size > 1 and recipe.parallel.shard != 1)
            set_up_device(find_device(), tf32=recipe.tf32, deterministic=recipe.deterministic)
            with processes.first_of_node("the recipe and its data") as is_first:
                resolved = resolve(
                    recipe,
                    resume=resume or processes.restarts > 0,
                    resume_from=None if processes.restarts else resume_from,
                    accept_changes=accept_changes,
                    thorough=is_first,  # its checks hold for the others
                )
                resolved.raise_problems()
                resolved.check_sharded()
            shard_size_on(recipe, processes.size)
            processes.check_same(_inputs(resolved))
        resume_state = resolved.resume_state
        if resume_state and resume_state.state.is_complete(recipe.steps):
            if processes.is_main:
                _finish_complete_run(recipe, resume_state)
            return resume_state.checkpoint
        with stop_requests.while_starting():
            resolved, microbatch_messages = resolve_microbatch(resolved, processes)
        with processes.agreement("the run directory"):
            run_directory = stack.enter_context(_open_run_directory(resolved, processes))
        with stop_requests.while_starting():
            run = start_or_resume(resolved, processes)
        with processes.agreement("the start"):
            cleanup_messages = run_directory.prepare(run.recipe.to_yaml(), run.state)
        record = run.start_record.model_dump(mode="json")
        record["environment"] = describe_environment(find_device(), run.attention)
        record["processes"] = processes.size
        record["cpu_threads"] = run.state.cpu_threads
        run_directory.log_event("start", step=run.state.step, pid=os.getpid(), **record)
        if not processes.is_main:
            progress_line_class = NoProgressLine
        with progress_line_class(steps=recipe.steps, done=run.state.step) as progress_line:
            for message in [*run.start_messages, *microbatch_messages, *cleanup_messages]:
                progress_line.print(message)
            stop_requests.announce = progress_line.print
            run_directory.start_trackers(run.recipe, progress_line.print)
            recorder = RunRecorder(run, run_directory, progress_line, stop_requests)
            steps = range(run.state.step + 1, recipe.steps + 1)
            traced = profile if processes.is_main else None
            steps_taken = profiled(steps, traced, run_directory.path, progress_line.print)
            return _run_steps(run, recorder, steps_taken)


def _join_processes(timeout_minutes: float) -> Processes:
    """Returns the processes of this run, as a launcher has described them in the environment."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return ALONE
    from rewarm.training.distributed import ProcessGroup  # its imports take most of a second

    return ProcessGroup(60 * timeout_minutes)


def _inputs(resolved: ResolvedRun) -> dict[str, str | None]:
    """Returns what all processes of a run have to have read, each for itself."""
    resume_state = resolved.resume_state
    corpora = {name: corpus.index.digest() for name, corpus in resolved.corpora.items()}
    validation = {name: blocks.digest() for name, blocks in resolved.validation.items()}
    return {
        "the recipe": resolved.recipe.to_yaml(),
        "the checkpoint to resume from": resume_state and str(resume_state.checkpoint),
        **{f"the corpus {name}": digest for name, digest in corpora.items()},
        **{f"the validation set {name}": digest for name, digest in validation.items()},
    }


def _open_run_directory(resolved: ResolvedRun, processes: Processes) -> RunDirectory:
    directory, resume_state = resolved.recipe.run_directory, resolved.resume_state
    checkpoint = resume_state.checkpoint if resume_state else None
    if not processes.is_main:
        return RunDirectoryOfRankZero(directory, checkpoint)
    return RunDirectory(directory, checkpoint, skipped=resume_state.skipped if resume_state else [])


def _finish_complete_run(recipe: Recipe, resume_state: ResumeState) -> None:
    """Clears what a killed process left in a complete run."""
    checkpoint = resume_state.checkpoint
    step = resume_state.state.step
    messages = [f"complete: step {step:,} of {recipe.steps:,} is saved"]
    with (
        suppress(CheckpointError, OSError),  # it may be archived, where nothing can be written
        RunDirectory(recipe.run_directory, checkpoint, skipped=resume_state.skipped) as directory,
    ):
        messages += directory.remove_leftovers()
        messages += cut_metrics(directory.path, checkpoint, resume_state.state, is_complete=True)
    print("\n".join(messages), file=sys.stderr)


def _run_steps(run: StartedRun, recorder: RunRecorder, steps: Generator[int, None, None]) -> Path:
    """Runs the remaining steps, with logging, evaluation and saving; returns the checkpoint."""
    recipe, model, optimizer, state = run.recipe, run.model, run.optimizer, run.state
    speed_meter, guard, every = recorder.speed_meter, recorder.guard, recipe.every
    device = next(model.parameters()).device
    autocast_context = autocast(recipe.precision, device)
    batches = run.loader.batches(
        recipe.data.workers,
        transform=_pin_memory if device.type == "cuda" else _unchanged,
        wait=recorder.wait_for,
    )
    try:
        state = recorder.evaluations.measure_baseline(state)
        if state.evaluation_owed:
            state = recorder.evaluate_again(state)
        speed_meter.reset()
        for step in steps:
            with speed_meter.waiting():
                tokens, data_position = next(batches)
            lr, is_last = recipe.lr(step), step == recipe.steps
            probe = AppliedRateProbe(model, optimizer) if recorder.checks_rate(step) else None
            norms = TensorNorms(model, run.processes) if _is_due(step, every.norms) else None
            guard.start_step(step, lr, state.position)
            result = take_step(
                model,
                optimizer,
                torch.from_numpy(tokens),
                split=run.split,
                lr=lr,
                max_grad_norm=recipe.optimizer.clip,
                z_loss=recipe.optimizer.z_loss,
                autocast_context=autocast_context,
                should_skip=guard.should_skip,
                separator_id=run.separator_id,
                loss_scale=guard.scale,
                processes=run.processes,
                norms=norms,
                average=run.average,
            )
            if probe and not result.skipped.item():
                recorder.check_applied_rate(step, probe)
            owed = recorder.evaluations.is_due(step)
            state = state.after_step(
                step, recipe.batch.tokens, lr, data_position, evaluation_owed=owed
            )
            recorder.count_step()
            if is_last or _is_due(step, every.log):
                recorder.log(state, result.loss, result.grad_norm, result.z_loss)
            if norms:
                recorder.log_norms(state, norms)
            if state.evaluation_owed:
                state = recorder.evaluations.measure(state)
            if is_last or _is_due(step, every.save) or step == recorder.branch_step:
                recorder.save(state, even_if_unhealthy=is_last)
            recorder.finish_save(wait=is_last)
            recorder.finish_step(state, result.loss)
    except StopRequested as request:
        raise recorder.stop(request, state) from None
    except BaseException as error:
        report = run.processes.report(error)
        recorder.save_after_error(state, report)
        if report.error is error:
            raise
        raise report.error from None
    finally:
        steps.close()
        batches.close()
    if write_error := recorder.flush_metrics():
        raise CheckpointError(write_error)
    return recorder.checkpoint_path(recipe.steps)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _unchanged(blocks: TokenBlocks) -> TokenBlocks:
    return blocks


def _pin_memory(blocks: TokenBlocks) -> TokenBlocks:
    """Returns the blocks in pinned memory, which a GPU copies from while it computes."""
    pinned: TokenBlocks = torch.from_numpy(blocks).pin_memory().numpy()
    return pinned
