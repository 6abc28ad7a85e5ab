"""Training: what a step is, and the loop around it.

```
 stream ── Batch ──> take_step ── loss, norm ──> Guard ──> applied or not
   position behind the batch ──> Progress ──> Saver ──> checkpoint, while the next steps run
```
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rewarm.checkpoints.background_writer import BackgroundWriter, SaveResult
from rewarm.checkpoints.find_checkpoint import last_checkpoint, list_checkpoints
from rewarm.checkpoints.retention import prune_checkpoints
from rewarm.checkpoints.training_state import TrainingState
from rewarm.data.batch_loader import TokenBlocks
from rewarm.errors import CheckpointError, DataError, Diverged
from rewarm.estimates.throughput import peak_flops
from rewarm.model.neox import NeoX
from rewarm.quantities import perplexity
from rewarm.recipe.recipe import Recipe
from rewarm.runs.run_directory import RunDirectory
from rewarm.training.applied_rate_check import AppliedRateProbe
from rewarm.training.device_setup import autocast, device_name, find_device, set_up_device
from rewarm.training.divergence_guard import DivergenceGuard, not_finite
from rewarm.training.microbatch_search import resolve_microbatch
from rewarm.training.optimizer import apply_update, clip_gradient
from rewarm.training.preemption import StopRequests
from rewarm.training.progress_line import ProgressLine
from rewarm.training.speed_meter import SpeedMeter
from rewarm.training.start_or_resume import StartedRun, start_or_resume
from rewarm.training.validation_loss import measure_validation_sets
from rewarm.version import __version__

_COMING_AND_GOING = 2.0  # seconds in which Python starts, before a time limit counts, and ends


class StepResult(NamedTuple):
    """What a step found, still on the device: reading it waits for the step to finish."""

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
    separator: int | None = None,
    scale: Tensor | None = None,
) -> StepResult:
    """Takes one optimiser step on tokens of shape (sequences, context + 1).

    `judge` is given the loss and the gradient's norm, and returns 1 where the update should not be
    applied, else 0. `scale` is the loss scale of fp16. The first step in fp8 runs its first
    microbatch some times more, to find the scales.
    """
    device = next(model.parameters()).device
    blocks = tokens.to(device, non_blocking=True)
    parts = torch.split(blocks, microbatch)
    loss = torch.zeros((), device=device)

    def add_gradient(part: Tensor) -> Tensor:
        with cast:
            part_loss = model.loss(part[:, :-1], part[:, 1:], separator=separator) / len(parts)
        torch.autograd.backward(part_loss, scale)
        return part_loss.detach()

    if model.scaling and model.scaling.is_guess:
        model.scaling.settle(lambda: (add_gradient(parts[0]), optimizer.zero_grad()))
    for part in parts:
        loss += add_gradient(part)
    norm = clip_gradient(model, clip, scale)
    skipped = judge(loss, norm)
    apply_update(optimizer, lr, skipped)
    optimizer.zero_grad()
    if model.scaling:
        model.scaling.follow(skipped)
    return StepResult(loss, norm, skipped)


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    until: int | None = None,
    deadline: float = math.inf,
    screen: type[ProgressLine] = ProgressLine,
) -> Path:
    """Runs a recipe to its end, and returns the last checkpoint.

    Args:
        recipe: what to do.
        resume: go on behind the run directory's last checkpoint, if it has one.
        accept_changes: go on although the recipe now says something else.
        until: stop behind this step, saved, as if a signal had asked for it.
        deadline: be saved and gone by this `time.monotonic()`.
        screen: where numbers appear.

    Raises:
        RewarmError: see `errors`; what was reached before is saved.
    """
    _keep_freed_memory()
    set_up_device(find_device(), tf32=recipe.tf32, deterministic=recipe.deterministic)
    recipe, settled = resolve_microbatch(recipe)
    with RunDirectory(recipe, resume=resume, accept_changes=accept_changes) as run:
        begun = start_or_resume(recipe, run)
        done = begun.progress.step
        if run.resumed and done >= recipe.steps:
            print(f"complete: step {done:,} of {recipe.steps:,} is saved", file=sys.stderr)
            return run.resumed
        cleared = run.begin(done)
        told = {
            "environment": describe_environment(begun.model),
            **begun.contract.model_dump(mode="json"),
        }
        run.note("start", step=done, pid=os.getpid(), **told)
        with (
            screen(steps=recipe.steps, done=done) as shown,
            StopRequests(until, deadline) as interruptions,
        ):
            for line in [*begun.said, *settled, *cleared]:
                shown.say(line)
            return _loop(begun, _Beside(recipe, run, begun, shown), interruptions)


def _loop(begun: StartedRun, beside: _Beside, interruptions: StopRequests) -> Path:
    """Takes the steps that are left; what happens now and then is a line each."""
    recipe, run, meter, guard = beside.recipe, beside.run, beside.meter, beside.guard
    model, optimizer, progress, every = begun.model, begun.optimizer, begun.progress, recipe.every
    device = next(model.parameters()).device
    cast = autocast(recipe.precision, device)
    if progress.step == 0:
        progress = beside.evaluate(progress)
    batches = begun.stream.batches(
        recipe.data.workers, then=_pinned if device.type == "cuda" else _as_it_is
    )
    meter.read()
    try:
        for step in range(progress.step + 1, recipe.steps + 1):
            with meter.waiting():
                tokens, position = next(batches)
            lr, last = recipe.lr(step), step == recipe.steps
            probe = AppliedRateProbe(model, optimizer) if step in begun.contract.rates else None
            guard.begin(step, lr, progress.position)
            taken = take_step(
                model,
                optimizer,
                torch.from_numpy(tokens),
                microbatch=recipe.microbatch,
                lr=lr,
                clip=recipe.optimizer.clip,
                cast=cast,
                judge=guard.judge,
                separator=begun.separator,
                scale=guard.scale,
            )
            progress = progress.after(step, recipe.batch.tokens, lr, position)
            meter.count(recipe.batch.tokens)
            beside.screen.step(step)
            if probe and not taken.skipped.item():
                promised = begun.contract.rates[step]
                measured = probe.insist(promised, step)
                run.note("rate", step=step, scheduled=promised, measured=measured)
            stopping = interruptions.asked(step, beside.to_leave)
            if last or _due(step, every.log):
                beside.log(progress, taken)
            if last or _due(step, every.evaluate):
                progress = beside.evaluate(progress)
            if last or stopping or _due(step, every.save) or step == beside.branch:
                beside.save(progress, must=last or bool(stopping))
            beside.saved(wait=last or bool(stopping))
            if stopping and not last:
                raise interruptions.preempted(stopping, step, run.checkpoint(step))
    except DataError as error:
        raise DataError(f"{error}{beside.rescue(progress)}") from error
    except Exception:
        beside.saver.end()  # what is being written is from before the trouble
        raise
    finally:
        batches.close()
    if waiting := run.catch_up():
        raise CheckpointError(waiting)
    return run.checkpoint(recipe.steps)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def describe_environment(model: NeoX) -> dict[str, str]:
    """Returns on what a run runs: the versions that its numbers may depend on, and the device."""
    device = next(model.parameters()).device
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "device": device_name(device) + threads,
        "rewarm": __version__,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


class _Beside:
    """What is done beside the steps: metrics, evaluations, checkpoints, and an eye on the loss."""

    def __init__(
        self, recipe: Recipe, run: RunDirectory, begun: StartedRun, screen: ProgressLine
    ) -> None:
        self.recipe, self.run, self.begun, self.screen = recipe, run, begun, screen
        self._device = next(begun.model.parameters()).device
        self.meter = SpeedMeter(
            begun.model.architecture.flops_per_token(recipe.data.context),
            peak_flops(device_name(self._device)),
        )
        self.guard = DivergenceGuard(
            recipe.guard,
            self._device,
            begun.progress.guard,
            begun.contract.base_lr,
            recipe.loss_scale if recipe.precision == "fp16" else None,
        )
        self.branch = recipe.before_decay if recipe.branches else None
        """The step whose checkpoint others will want to branch from, saved whatever else is."""
        self.saver = BackgroundWriter(
            run.checkpoint,
            begun.model,
            begun.optimizer,
            recipe.to_yaml(),
            begun.tokenizer,
            prune=lambda: prune_checkpoints(run.directory, recipe.keep, self.branch),
        )
        self._begun_saves = {begun.progress.step} if run.resumed else set[int]()

    @property
    def to_leave(self) -> float:
        """Seconds that one more step and a checkpoint take, by those that were, and the rest."""
        return self.meter.step_seconds + self.saver.to_end + _COMING_AND_GOING

    def log(self, progress: TrainingState, taken: StepResult) -> None:
        """Logs the numbers of a step."""
        self._watch()
        numbers = {
            "tokens": progress.tokens,
            "lr": progress.lr,
            "loss": taken.loss.item(),
            "grad_norm": taken.grad_norm.item(),
            "skipped": self.guard.skipped,
            **({"loss_scale": scale} if (scale := self.guard.loss_scale) else {}),
            **self.meter.read(),
        }
        context = self.recipe.data.context
        seen = {f"{name}/tokens": blocks * context for name, blocks in progress.blocks.items()}
        self.run.log("train", step=progress.step, **numbers, **seen, stream=progress.stream)
        self.screen.trained(progress.step, numbers)

    def evaluate(self, progress: TrainingState) -> TrainingState:
        """Logs the loss of every validation set; before the first step, it is the baseline too."""
        with self.meter.paused(self._device):
            began = time.perf_counter()
            measured = measure_validation_sets(self.begun.model, self.recipe, self.begun.separator)
            seconds = time.perf_counter() - began
        losses = {name: one.loss for name, one in measured.items()}
        baseline = progress.baseline if progress.step else losses
        line: dict[str, float] = {}
        for name, loss in losses.items():
            line |= {f"{name}/loss": loss, f"{name}/perplexity": perplexity(loss)}
            if name in baseline:  # a set that --resume added has none
                line[f"{name}/forgetting"] = loss - baseline[name]
        if losses:
            self.run.log("evaluate", step=progress.step, tokens=progress.tokens, **line)
            self.run.note("evaluate", step=progress.step, seconds=seconds)
            self.screen.evaluated(progress.step, losses, baseline)
        # JSON has no NaN: a checkpoint that held one could not be read again.
        kept = {
            key: {name: loss for name, loss in of.items() if math.isfinite(loss)}
            for key, of in (("losses", losses), ("baseline", baseline))
        }
        return progress.model_copy(update=kept)

    def save(self, progress: TrainingState, *, must: bool) -> None:
        """Begins to write a checkpoint; unless it `must` be, not of a model that may be broken."""
        with self.meter.paused(self._device):
            self._watch()
            if self.guard.in_trouble and not must:
                self.screen.say(f"step {progress.step:,}  not saved: its loss was not finite")
                return
            state = self.guard.state()
            self.run.catch_up()  # a resume goes on behind this step, and would miss what waits
            self._tell(self.saver.begin(progress.model_copy(update={"guard": state})))
        self._begun_saves.add(progress.step)

    def saved(self, *, wait: bool) -> None:
        """Notes how a save went that has ended by now; with `wait`, it has to end, and well.

        Raises:
            CheckpointError: it failed, and the recipe wants to stop then, or has to.
        """
        if wait:
            with self.meter.paused(self._device):
                self._tell(self.saver.end(), must=True)
        else:
            self._tell(self.saver.ready())

    def rescue(self, progress: TrainingState) -> str:
        """Saves what was reached when the data ended; returns what to add to the message."""
        if progress.step and progress.step not in self._begun_saves:
            self.save(progress, must=True)
        self.saved(wait=True)
        last = last_checkpoint(self.run.directory)
        return f"; everything up to step {progress.step:,} is saved in {last}" if last else ""

    def _tell(self, saved: SaveResult | None, *, must: bool = False) -> None:
        if saved is None:
            return
        self.meter.stalled(saved.stall)
        self.run.note("save", **saved._asdict() | {"error": saved.error and str(saved.error)})
        if saved.error and (must or self.recipe.on_save_error == "stop"):
            raise saved.error
        if saved.error:
            self.screen.say(f"warning: {saved.error}; training goes on (on_save_error: continue)")

    def _watch(self) -> None:
        """Logs what the guard saw since it was last asked.

        Raises:
            Diverged: it saw reason to stop.
        """
        events, stop = self.guard.read(self.recipe.batch.tokens)
        for event in events:
            self.run.log(event.kind, step=event.step, **event.values)
            self.screen.say(event.in_words())
        if stop:
            shards = "; ".join(
                f"{name}: {', '.join(tars)}"
                for name, tars in self.begun.stream.shards(stop.before).items()
            )
            self.saver.end()
            there = list_checkpoints(self.run.directory)
            good = [path for step, path in there.items() if step < stop.trouble]
            last = f"the last checkpoint before it is {good[-1]}" if good else "nothing was saved"
            raise Diverged(
                f"{self.run.directory}: {stop.reason}; its batch was read from {shards}; {last}; "
                "try a lower peak_lr, a longer warmup, or look at those shards"
            )


def _as_it_is(blocks: TokenBlocks) -> TokenBlocks:
    return blocks


def _pinned(blocks: TokenBlocks) -> TokenBlocks:
    """Returns the blocks in memory that a GPU copies from by itself, while it computes."""
    pinned: TokenBlocks = torch.from_numpy(blocks).pin_memory().numpy()
    return pinned


def _keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks: on a CPU, logits come and go at every step.

    Giving them back to the system and clearing them anew cost 35 to 80 % of the speed of a small
    model on two cores. Other C libraries have no such setting and need none of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)
