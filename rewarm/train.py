"""Training: what a step is, and the loop around it.

```
 stream ── Batch ──> take_step ── loss, gradient norm (on the device) ──> metrics.jsonl, screen
   position behind the batch ──> Progress ──> checkpoint
```
"""

from __future__ import annotations

import ctypes
import math
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from rewarm import bases, checkpoint, optim
from rewarm.errors import DataError, Diverged, Preempted
from rewarm.evaluate import autocast, device_name, measure_all, perplexity
from rewarm.metrics import Meter, Screen, peak_flops
from rewarm.neox import NeoX
from rewarm.progress import Progress
from rewarm.recipe import Recipe
from rewarm.run import Run
from rewarm.start import Start, start
from rewarm.stream import Blocks


class Taken(NamedTuple):
    """What a step found, still on the device: reading it waits for the step to finish."""

    loss: Tensor
    """Mean cross-entropy of the batch before the update, in nats."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping."""


def take_step(
    model: NeoX,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    *,
    microbatch: int,
    lr: float,
    clip: float | None,
    cast: AbstractContextManager[object],
    separator: int | None = None,
) -> Taken:
    """Takes one optimiser step on tokens of shape (sequences, context + 1)."""
    device = next(model.parameters()).device
    parts: tuple[Tensor, ...] = tokens.split(microbatch)  # type: ignore[no-untyped-call]
    loss = torch.zeros((), device=device)
    for part in parts:
        block = part.to(device, non_blocking=True)
        with cast:
            part_loss = model.loss(block[:, :-1], block[:, 1:], separator=separator) / len(parts)
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += part_loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    optim.set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    return Taken(loss, norm)


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    screen: type[Screen] = Screen,
) -> Path:
    """Runs a recipe to its end, and returns the last checkpoint.

    Args:
        recipe: what to do.
        resume: go on behind the run directory's last checkpoint, if it has one.
        accept_changes: go on although the recipe now says something else.
        screen: where numbers appear.

    Raises:
        RewarmError: see `errors`; what was reached before is saved.
    """
    _keep_freed_memory()
    with Run(recipe, resume=resume, accept_changes=accept_changes) as run:
        begun = start(recipe, run)
        done = begun.progress.step
        if run.resumed and done >= recipe.steps:
            print(f"complete: step {done:,} of {recipe.steps:,} is saved", file=sys.stderr)
            return run.resumed
        run.begin(done)
        with screen(steps=recipe.steps, done=done) as shown, _Interruptions() as interruptions:
            for line in begun.said:
                shown.say(line)
            return _loop(recipe, run, begun, shown, interruptions)


def _loop(
    recipe: Recipe, run: Run, begun: Start, screen: Screen, interruptions: _Interruptions
) -> Path:
    """Takes the steps that are left; what happens now and then is a line each."""
    model, progress, every = begun.model, begun.progress, recipe.every
    device = next(model.parameters()).device
    cast = autocast(recipe.precision, device)
    meter = Meter(
        model.architecture.flops_per_token(recipe.data.context), peak_flops(device_name(device))
    )
    saved, taken = run.resumed, None
    if progress.step == 0:
        progress = _evaluate(recipe, run, begun, progress, screen)
    batches = begun.stream.batches(
        recipe.data.workers, then=_pinned if device.type == "cuda" else _as_it_is
    )
    meter.read()
    try:
        for step in range(progress.step + 1, recipe.steps + 1):
            with meter.waiting():
                tokens, position = next(batches)
            lr, last = recipe.lr(step), step == recipe.steps
            taken = take_step(
                model,
                begun.optimizer,
                torch.from_numpy(tokens),
                microbatch=recipe.batch.microbatch,
                lr=lr,
                clip=recipe.optimizer.clip,
                cast=cast,
                separator=begun.separator,
            )
            progress = progress.after(step, recipe.batch.tokens, lr, position)
            meter.count(recipe.batch.tokens)
            screen.step(step)
            if last or _due(step, every.log):
                _log(run, progress, taken, meter, screen, recipe.data.context)
            if last or _due(step, every.evaluate):
                with meter.paused(device):
                    progress = _evaluate(recipe, run, begun, progress, screen)
            if last or _due(step, every.save) or interruptions.asked:
                with meter.paused(device):
                    saved = _save(recipe, run, begun, progress, taken)
            if interruptions.asked and not last:
                raise interruptions.preempted(step, run)
    except DataError as error:
        if taken is not None and saved != run.checkpoint(progress.step):
            saved = _save(recipe, run, begun, progress, taken)
        where = f"; everything up to step {progress.step:,} is saved in {saved}" if saved else ""
        raise DataError(f"{error}{where}") from error
    finally:
        batches.close()
    assert saved is not None
    return saved


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _log(
    run: Run, progress: Progress, taken: Taken, meter: Meter, screen: Screen, context: int
) -> None:
    _insist_finite(run, progress, taken)
    numbers = {
        "tokens": progress.tokens,
        "lr": progress.lr,
        "loss": taken.loss.item(),
        "grad_norm": taken.grad_norm.item(),
        **meter.read(),
    }
    seen = {f"{name}/tokens": blocks * context for name, blocks in progress.blocks.items()}
    run.log("train", step=progress.step, **numbers, **seen, stream=progress.stream)
    screen.trained(progress.step, numbers)


def _evaluate(
    recipe: Recipe, run: Run, begun: Start, progress: Progress, screen: Screen
) -> Progress:
    """Logs the loss of every validation set; before the first step, it is the baseline too."""
    measured = measure_all(begun.model, recipe, begun.separator)
    losses = {name: one.loss for name, one in measured.items()}
    if progress.step == 0:
        progress = progress.model_copy(update={"baseline": losses})
    line: dict[str, float] = {}
    for name, loss in losses.items():
        line |= {f"{name}/loss": loss, f"{name}/perplexity": perplexity(loss)}
        if name in progress.baseline:  # a set that --resume added has none
            line[f"{name}/forgetting"] = loss - progress.baseline[name]
    if losses:
        run.log("evaluate", step=progress.step, tokens=progress.tokens, **line)
        screen.evaluated(progress.step, losses, progress.baseline)
    return progress


def _save(recipe: Recipe, run: Run, begun: Start, progress: Progress, taken: Taken) -> Path:
    _insist_finite(run, progress, taken)
    path = run.checkpoint(progress.step)
    checkpoint.save(path, begun.model, begun.optimizer, progress, recipe.to_yaml(), begun.tokenizer)
    return path


def _insist_finite(run: Run, progress: Progress, taken: Taken) -> None:
    loss, norm = taken.loss.item(), taken.grad_norm.item()  # waits for the device
    if not (math.isfinite(loss) and math.isfinite(norm)):
        last = bases.last_checkpoint(run.directory)
        raise Diverged(
            f"{run.directory}: not finite at step {progress.step:,}: loss {loss}, gradient norm "
            f"{norm}; "
            + (f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet")
            + "; try a lower peak_lr, a longer warmup, or gradient clipping"
        )


def _as_it_is(blocks: Blocks) -> Blocks:
    return blocks


def _pinned(blocks: Blocks) -> Blocks:
    """Returns the blocks in memory that a GPU copies from by itself, while it computes."""
    pinned: Blocks = torch.from_numpy(blocks).pin_memory().numpy()
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


class _Interruptions:
    """Turns the first signal into a wish to stop at the next step; the second one stops at once."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._before = {one: signal.signal(one, self._note) for one in self._SIGNALS}
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise SystemExit(128 + number)
        self.asked = signal.Signals(number)

    def preempted(self, step: int, run: Run) -> Preempted:
        """Returns the error that ends the run after its checkpoint is saved."""
        assert self.asked is not None
        error = Preempted(
            f"{self.asked.name}: stopped after step {step:,}, saved in {run.checkpoint(step)}; "
            "go on with the same command and --resume"
        )
        if self.asked == signal.SIGINT:
            error.exit_code = 130
        return error
