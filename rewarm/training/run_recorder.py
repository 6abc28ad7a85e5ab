"""Records a run beside its steps: metrics, evaluations, checkpoints, and what the guard found."""

from __future__ import annotations

import math
import time
from pathlib import Path

from torch import Tensor

from rewarm.checkpoints.background_writer import BackgroundWriter, SaveResult
from rewarm.checkpoints.find_checkpoint import last_checkpoint, list_checkpoints
from rewarm.checkpoints.retention import prune_checkpoints
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import Diverged
from rewarm.estimates.throughput import peak_flops
from rewarm.runs.run_directory import RunDirectory
from rewarm.training.applied_rate_check import AppliedRateProbe
from rewarm.training.device_setup import device_name
from rewarm.training.divergence_guard import DivergenceGuard, StopReason
from rewarm.training.progress_line import ProgressLine
from rewarm.training.speed_meter import SpeedMeter
from rewarm.training.start_or_resume import StartedRun
from rewarm.training.validation_loss import measure_losses

_STARTUP_AND_EXIT = 2.0  # seconds in which Python starts, before a time limit counts, and exits


class RunRecorder:
    """Writes a run's metrics, events and checkpoints, and shows its progress."""

    def __init__(self, run: StartedRun, directory: RunDirectory, line: ProgressLine) -> None:
        """Opens nothing: `directory` is open already."""
        recipe = run.recipe
        self._run, self._recipe, self._directory, self._line = run, recipe, directory, line
        self._device = next(run.model.parameters()).device
        self.meter = SpeedMeter(
            run.model.architecture.flops_per_token(recipe.data.context),
            peak_flops(device_name(self._device)),
        )
        self.guard = DivergenceGuard(
            recipe.guard,
            self._device,
            run.state.guard,
            run.start.base_lr,
            recipe.loss_scale if recipe.precision == "fp16" else None,
        )
        self.branch_step = recipe.step_before_decay if recipe.has_plateau_before_decay else None
        """The step whose checkpoint others will want to branch from; it is always saved."""
        self.writer = BackgroundWriter(
            directory.checkpoint_path,
            run.model,
            run.optimizer,
            recipe.to_yaml(),
            run.tokenizer,
            prune=lambda: prune_checkpoints(directory.directory, recipe.keep, self.branch_step),
        )
        self._saved_steps = {run.state.step} if directory.resumed else set[int]()

    @property
    def seconds_to_exit(self) -> float:
        """Seconds that one more step, a checkpoint and the exit take, by those so far."""
        return self.meter.step_seconds + self.writer.seconds_to_finish + _STARTUP_AND_EXIT

    def checkpoint_path(self, step: int) -> Path:
        """Returns where the checkpoint of a step belongs."""
        return self._directory.checkpoint_path(step)

    def flush_metrics(self) -> str | None:
        """Writes the lines of metrics that are pending, or returns why they cannot be written."""
        return self._directory.flush_metrics()

    def count_step(self, step: int) -> None:
        """Counts a step that was taken."""
        self.meter.count(self._recipe.batch.tokens)
        self._line.show_step(step)

    def record_rate(self, step: int, scheduled: float, probe: AppliedRateProbe) -> None:
        """Writes down the rate that a step was applied at, measured on the weights.

        Raises:
            ScheduleError: it is not the scheduled one.
        """
        measured = probe.check(scheduled, step)
        self._directory.log_event("rate", step=step, scheduled=scheduled, measured=measured)

    def log(self, state: TrainingState, loss: Tensor, grad_norm: Tensor) -> None:
        """Logs the numbers of a step. Waits for the device."""
        self._read_guard()
        numbers = {
            "tokens": state.tokens,
            "lr": state.lr,
            "loss": loss.item(),
            "grad_norm": grad_norm.item(),
            "skipped": self.guard.skipped,
            **({"loss_scale": scale} if (scale := self.guard.loss_scale) else {}),
            **self.meter.read(),
        }
        context = self._recipe.data.context
        corpora = {f"{name}/tokens": blocks * context for name, blocks in state.blocks.items()}
        self._directory.log_metrics(
            "train", step=state.step, **numbers, **corpora, stream=state.stream
        )
        self._line.show_training(state.step, numbers)

    def evaluate(self, state: TrainingState) -> TrainingState:
        """Logs the loss of every validation set; before the first step, it is the baseline too."""
        with self.meter.paused(self._device):
            started = time.perf_counter()
            measured = measure_losses(
                self._run.model,
                self._run.validation,
                microbatch=self._recipe.microbatch,
                precision=self._recipe.precision,
                separator_id=self._run.separator_id,
            )
            seconds = time.perf_counter() - started
        losses = {name: result.loss for name, result in measured.items()}
        baseline = state.baseline if state.step else losses
        line: dict[str, float] = {}
        for name, result in measured.items():
            line |= {f"{name}/loss": result.loss, f"{name}/perplexity": result.perplexity}
            if name in baseline:  # a set that --resume added has none
                line[f"{name}/forgetting"] = result.loss - baseline[name]
        if losses:
            self._directory.log_metrics("evaluate", step=state.step, tokens=state.tokens, **line)
            self._directory.log_event("evaluate", step=state.step, seconds=seconds)
            self._line.show_evaluation(state.step, losses, baseline)
        # JSON has no NaN: a checkpoint that held one could not be read again.
        return state.model_copy(update={"losses": _finite(losses), "baseline": _finite(baseline)})

    def save(self, state: TrainingState, *, required: bool) -> None:
        """Starts to write a checkpoint; unless `required`, not of a model that may be broken."""
        with self.meter.paused(self._device):
            self._read_guard()
            if self.guard.in_trouble and not required:
                self._line.print(f"step {state.step:,}  not saved: its loss was not finite")
                return
            guard = self.guard.state()
            self.flush_metrics()  # a resume continues after this step, and would miss pending lines
            self._record_save(self.writer.start_save(state.model_copy(update={"guard": guard})))
        self._saved_steps.add(state.step)

    def report_save(self, *, wait: bool) -> None:
        """Records how a save went that has ended by now; with `wait`, it has to end, and well.

        Raises:
            CheckpointError: it failed, and the recipe wants to stop then, or has to.
        """
        if wait:
            with self.meter.paused(self._device):
                self._record_save(self.writer.wait_for_save(), required=True)
        else:
            self._record_save(self.writer.poll_save())

    def save_after_data_error(self, state: TrainingState) -> str:
        """Saves what was reached before the data failed; returns what to add to the message."""
        if state.step and state.step not in self._saved_steps:
            self.save(state, required=True)
        self.report_save(wait=True)
        last = last_checkpoint(self._directory.directory)
        return f"; everything up to step {state.step:,} is saved in {last}" if last else ""

    def _record_save(self, save: SaveResult | None, *, required: bool = False) -> None:
        if save is None:
            return
        self.meter.add_stall(save.stall)
        error = save.error and str(save.error)
        self._directory.log_event("save", **save._asdict() | {"error": error})
        if save.error and (required or self._recipe.on_save_error == "stop"):
            raise save.error
        if save.error:
            self._line.print(f"warning: {error}; training continues (on_save_error: continue)")

    def _read_guard(self) -> None:
        """Logs what the guard found since it was last read.

        Raises:
            Diverged: it found a reason to stop.
        """
        events, stop = self.guard.read(self._recipe.batch.tokens)
        for event in events:
            self._directory.log_metrics(event.kind, step=event.step, **event.values)
            self._line.print(event.message())
        if stop:
            self.writer.wait_for_save()
            raise Diverged(self._divergence_message(stop))

    def _divergence_message(self, stop: StopReason) -> str:
        shards = "; ".join(
            f"{name}: {', '.join(tars)}"
            for name, tars in self._run.loader.shards_of_batch(stop.before).items()
        )
        checkpoints = list_checkpoints(self._directory.directory)
        good = [path for step, path in checkpoints.items() if step < stop.first_bad_step]
        last = f"the last checkpoint before it is {good[-1]}" if good else "nothing was saved"
        return (
            f"{self._directory.directory}: {stop.reason}; its batch was read from {shards}; "
            f"{last}; try a lower peak_lr, a longer warmup, or check those shards"
        )


def _finite(losses: dict[str, float]) -> dict[str, float]:
    return {name: loss for name, loss in losses.items() if math.isfinite(loss)}
