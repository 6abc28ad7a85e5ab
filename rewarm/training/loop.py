"""Training: one optimizer step, and the loop around it.

```
 BatchLoader ── TokenBatch ──> take_step ── loss, gradient norm ──> DivergenceGuard ── applied?
      position after the batch ──> TrainingState ──> RunRecorder ── metrics, checkpoints
```
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rewarm.data.batch_loader import TokenBlocks
from rewarm.errors import CheckpointError, DataError
from rewarm.model.neox import NeoX
from rewarm.recipe.recipe import Recipe
from rewarm.runs.resolve_run import resolve
from rewarm.runs.run_directory import RunDirectory
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
from rewarm.training.preemption import StopRequests
from rewarm.training.progress_line import ProgressLine
from rewarm.training.run_recorder import RunRecorder
from rewarm.training.start_or_resume import StartedRun, start_or_resume


class StepResult(NamedTuple):
    """Results of a step, still on the device: reading them waits for the step to finish."""

    loss: Tensor
    """Mean cross-entropy of the batch before the update, in nats."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping."""
    skipped: Tensor
    """1 where the update was not applied, else 0."""


def take_step(
    model: NeoX,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    *,
    microbatch: int,
    lr: float,
    clip: float | None,
    cast: AbstractContextManager[object],
    judge: Callable[[Tensor, Tensor], Tensor] = not_finite,
    separator_id: int | None = None,
    scale: Tensor | None = None,
) -> StepResult:
    """Takes one optimizer step on tokens of shape (sequences, context + 1).

    `judge` is given the loss and the gradient norm, and returns 1 where the update should not be
    applied, else 0. `scale` is the loss scale of fp16. The first step in fp8 runs its first
    microbatch several times more, to calibrate the scales.
    """
    device = next(model.parameters()).device
    blocks = tokens.to(device, non_blocking=True)
    parts = torch.split(blocks, microbatch)
    loss = torch.zeros((), device=device)

    def add_gradient(part: Tensor) -> Tensor:
        with cast:
            part_loss = model.loss(part[:, :-1], part[:, 1:], separator_id=separator_id) / len(parts)
        torch.autograd.backward(part_loss, scale)
        return part_loss.detach()

    if model.fp8_scaling and model.fp8_scaling.needs_calibration:
        model.fp8_scaling.calibrate(lambda: (add_gradient(parts[0]), optimizer.zero_grad()))
    for part in parts:
        loss += add_gradient(part)
    norm = clip_gradient(model, clip, scale)
    skipped = judge(loss, norm)
    apply_update(optimizer, lr, skipped)
    optimizer.zero_grad()
    if model.fp8_scaling:
        model.fp8_scaling.update(skipped)
    return StepResult(loss, norm, skipped)


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    until: int | None = None,
    deadline: float = math.inf,
    progress_line: type[ProgressLine] = ProgressLine,
) -> Path:
    """Runs a recipe to its end, and returns the last checkpoint.

    Args:
        recipe: the run's.
        resume: continue after the run directory's last checkpoint, if it has one.
        accept_changes: although the recipe changes the outcome of the run.
        until: stop after this step, saved, as if a signal had asked for it.
        deadline: save and exit by this `time.monotonic()`.
        progress_line: shows the progress.

    Raises:
        RewarmError: see `errors`; what was reached before is saved.
    """
    keep_freed_memory()
    set_up_device(find_device(), tf32=recipe.tf32, deterministic=recipe.deterministic)
    resolved = resolve(recipe, resume=resume, accept_changes=accept_changes, thorough=True)
    resolved.raise_problems()
    resumed = resolved.resume
    if resumed and resumed.state.step >= recipe.steps:
        print(f"complete: step {recipe.steps:,} of {recipe.steps:,} is saved", file=sys.stderr)
        return resumed.checkpoint
    resolved, microbatch_lines = resolve_microbatch(resolved)
    with RunDirectory(Path(recipe.run), resumed.checkpoint if resumed else None) as directory:
        run = start_or_resume(resolved)
        removed = directory.prepare(run.recipe.to_yaml(), run.state.step)
        environment = {"environment": describe_environment(find_device())}
        record = environment | run.start.model_dump(mode="json")
        directory.log_event("start", step=run.state.step, pid=os.getpid(), **record)
        with (
            progress_line(steps=recipe.steps, done=run.state.step) as line,
            StopRequests(until, deadline) as stop_requests,
        ):
            for text in [*run.lines, *microbatch_lines, *removed]:
                line.print(text)
            return _run_steps(run, RunRecorder(run, directory, line), stop_requests)


def _run_steps(run: StartedRun, recorder: RunRecorder, stop_requests: StopRequests) -> Path:
    """Takes the steps that are left; periodic work is a line each."""
    recipe, model, optimizer = run.recipe, run.model, run.optimizer
    meter, guard, state, every = recorder.meter, recorder.guard, run.state, recipe.every
    device = next(model.parameters()).device
    cast = autocast(recipe.precision, device)
    if state.step == 0:
        state = recorder.evaluate(state)
    batches = run.loader.batches(
        recipe.data.workers, transform=_pin_memory if device.type == "cuda" else _as_read
    )
    meter.read()
    try:
        for step in range(state.step + 1, recipe.steps + 1):
            with meter.waiting():
                tokens, position = next(batches)
            lr, last = recipe.lr(step), step == recipe.steps
            probe = AppliedRateProbe(model, optimizer) if step in run.start.rates else None
            guard.start_step(step, lr, state.position)
            result = take_step(
                model,
                optimizer,
                torch.from_numpy(tokens),
                microbatch=recipe.microbatch,
                lr=lr,
                clip=recipe.optimizer.clip,
                cast=cast,
                judge=guard.judge,
                separator_id=run.separator_id,
                scale=guard.scale,
            )
            state = state.after_step(step, recipe.batch.tokens, lr, position)
            recorder.count_step(step)
            if probe and not result.skipped.item():
                recorder.record_rate(step, run.start.rates[step], probe)
            stop = stop_requests.reason_to_stop(step, recorder.seconds_to_exit)
            if last or _is_due(step, every.log):
                recorder.log(state, result.loss, result.grad_norm)
            if last or _is_due(step, every.evaluate):
                state = recorder.evaluate(state)
            if last or stop or _is_due(step, every.save) or step == recorder.branch_step:
                recorder.save(state, required=last or bool(stop))
            recorder.report_save(wait=last or bool(stop))
            if stop and not last:
                raise stop_requests.preempted(stop, step, recorder.checkpoint_path(step))
    except DataError as error:
        raise DataError(f"{error}{recorder.save_after_data_error(state)}") from error
    except Exception:
        recorder.writer.wait_for_save()  # the checkpoint being written is from before the error
        raise
    finally:
        batches.close()
    if pending := recorder.flush_metrics():
        raise CheckpointError(pending)
    return recorder.checkpoint_path(recipe.steps)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _as_read(blocks: TokenBlocks) -> TokenBlocks:
    return blocks


def _pin_memory(blocks: TokenBlocks) -> TokenBlocks:
    """Returns the blocks in pinned memory, which a GPU copies from while it computes."""
    pinned: TokenBlocks = torch.from_numpy(blocks).pin_memory().numpy()
    return pinned
