"""Records a run during training: metrics, evaluations, checkpoints, and guard events."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import Tensor

from rewarm import open_files
from rewarm.checkpoints.background_writer import BackgroundWriter, SaveResult
from rewarm.checkpoints.retention import prune_checkpoints
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import Diverged, Preempted, RewarmError, out_of_memory
from rewarm.estimates.throughput import peak_flops
from rewarm.runs.run_directory import RunDirectory
from rewarm.training.applied_rate_check import AppliedRateProbe
from rewarm.training.delayed_number import DelayedNumber
from rewarm.training.device_setup import device_name
from rewarm.training.divergence_guard import DivergenceGuard
from rewarm.training.failure_messages import divergence_message, what_is_saved
from rewarm.training.preemption import StopRequested, StopRequests, preempted
from rewarm.training.processes import Report
from rewarm.training.progress_line import ProgressLine
from rewarm.training.run_evaluations import RunEvaluations
from rewarm.training.speed_meter import SpeedMeter
from rewarm.training.start_or_resume import StartedRun
from rewarm.training.tensor_norms import TensorNorms

_STARTUP_AND_EXIT = 2.0  # seconds: start of Python, before the time limit counts, plus its exit


class RunRecorder:
    """Writes a run's metrics, events and checkpoints, and shows its progress."""

    def __init__(
        self,
        run: StartedRun,
        run_directory: RunDirectory,
        progress_line: ProgressLine,
        stop_requests: StopRequests,
    ) -> None:
        """Takes an open run directory and progress line."""
        recipe = run.recipe
        self._stop_requests = stop_requests
        self._run, self._recipe = run, recipe
        self._run_directory, self._progress_line = run_directory, progress_line
        self._processes = run.processes
        self._device = next(run.model.parameters()).device
        peak = peak_flops(device_name(self._device))
        self.speed_meter = SpeedMeter(
            run.model.architecture.flops_per_token(recipe.data.context),
            peak and peak * self._processes.size,
        )
        self.guard = DivergenceGuard(
            recipe.guard,
            self._device,
            run.state.guard,
            run.start_record.base_lr,
            recipe.loss_scale if recipe.precision == "fp16" else None,
        )
        self.branch_step = recipe.branch_step
        """The last step before the final decay; always saved, for other runs to start from."""
        self.writer = BackgroundWriter(
            run_directory.checkpoint_path,
            run.model,
            run.optimizer,
            recipe.to_yaml(),
            run.tokenizer,
            sync_metrics=run_directory.sync_metrics,
            prune=lambda: prune_checkpoints(run_directory.path, recipe.keep, self.branch_step),
            processes=self._processes,
            average=run.average.to_save() if run.average else None,
        )
        self.evaluations = RunEvaluations(
            run, run_directory, progress_line, self.speed_meter, self.wait_for
        )
        self._losses = DelayedNumber(self._device)
        self._last_loss: float | None = None
        self._last_step = run.state.step
        self._taken_step: int | None = None
        self._seconds_of_next_evaluation = 0.0
        self._saved_steps = {run.state.step} if run_directory.resumed_from else set[int]()

    @property
    def _seconds_to_exit(self) -> float:
        """Estimated seconds for one more step, a checkpoint and the exit, based on earlier ones."""
        return self.speed_meter.step_seconds + self.writer.seconds_to_finish + _STARTUP_AND_EXIT

    def wait_for(self, read: Future[Any]) -> Any:
        """Returns the result of a read, when every process has one.

        Raises:
            StopRequested: the run has to stop before. The first read after a step is the place
                where it may stop after that step; a time limit has to leave time for the next one
                and its evaluation.
        """
        seconds = self._seconds_to_exit + self._seconds_of_next_evaluation
        step, self._taken_step, self._seconds_of_next_evaluation = self._taken_step, None, 0.0
        with self._processes.agreement(f"the data after step {self._last_step:,}"):
            self._stop_requests.check(seconds, step)
            return self._stop_requests.wait_for(read, self._seconds_to_exit)

    def checkpoint_path(self, step: int) -> Path:
        """Returns where the checkpoint of a step belongs."""
        return self._run_directory.checkpoint_path(step)

    def flush_metrics(self) -> str | None:
        """Writes pending metric lines; returns an error message if that failed, else None."""
        return self._run_directory.flush_metrics()

    def count_step(self) -> None:
        """Counts the tokens of a step.

        Raises:
            Diverged: the guard found a reason to stop, in this step or one of the last few.
        """
        self.speed_meter.count(self._recipe.batch.tokens)
        if self.guard.must_stop:
            self._log_guard_events()

    def finish_step(self, state: TrainingState, loss: Tensor) -> None:
        """Shows a step as done."""
        step = state.step
        if self._progress_line.is_live and (losses := self._losses.add(loss)):
            self._last_loss = losses[-1]
        self._progress_line.show_step(step, self._recipe.lr(step), self._last_loss)
        self._taken_step = self._last_step = step
        self._seconds_of_next_evaluation = self.evaluations.seconds_of(step + 1)

    def checks_rate(self, step: int) -> bool:
        """Returns whether the applied learning rate of a step is measured."""
        return step in self._run.start_record.rates

    def check_applied_rate(self, step: int, probe: AppliedRateProbe) -> None:
        """Logs the learning rate of a step, computed from the change of the weights.

        Where the weights cannot tell, it is logged as null, and reported as not measured.

        Raises:
            ScheduleError: the applied learning rate differs from the scheduled one.
        """
        scheduled_lr = self._run.start_record.rates[step]
        applied_lr = probe.check(scheduled_lr, step)
        self._run_directory.log_event(
            "rate", step=step, scheduled=scheduled_lr, measured=applied_lr
        )
        if applied_lr is None:
            self._progress_line.print(
                f"step {step:,}  lr {scheduled_lr:.4g} was not measured on the weights: they moved "
                "too little to tell"
            )

    def log(
        self, state: TrainingState, loss: Tensor, grad_norm: Tensor, z_loss: Tensor | None
    ) -> None:
        """Logs the metrics of a step. Waits for the device."""
        stream = self._whole_digest(state)
        self._log_guard_events()
        metrics = {
            "tokens": state.tokens,
            "lr": state.lr,
            "loss": loss.item(),
            "grad_norm": grad_norm.item(),
            **({} if z_loss is None else {"z_loss": z_loss.item()}),
            "skipped": self.guard.skipped,
            **({"loss_scale": scale} if (scale := self.guard.loss_scale) else {}),
            **self.speed_meter.read(),
        }
        context = self._recipe.data.context
        tokens_per_corpus = {
            f"{name}/tokens": blocks * context for name, blocks in state.blocks.items()
        }
        self._run_directory.log_metrics(
            "train", step=state.step, **metrics, **tokens_per_corpus, stream=stream
        )
        self._progress_line.show_training(state.step, metrics)

    def log_norms(self, state: TrainingState, norms: TensorNorms) -> None:
        """Logs the norms of weights and gradients of a step. Waits for the device."""
        self._run_directory.log_metrics("norms", step=state.step, **norms.by_name())

    def _whole_digest(self, state: TrainingState) -> str:
        """Returns the digest of the stream; each process has that of what it has read itself."""
        digest = self._processes.agree(f"step {state.step:,}", digest=int(state.stream, 16))
        return f"{digest:032x}"

    def evaluate_again(self, state: TrainingState) -> TrainingState:
        """Logs the evaluation that a stop prevented, and returns the new state.

        The checkpoint that was saved without it is replaced by what it would have been.
        """
        state = self.evaluations.measure(state)
        self.save(state, even_if_unhealthy=True)
        self.finish_save(wait=True)
        return state

    def save(self, state: TrainingState, *, even_if_unhealthy: bool) -> None:
        """Starts writing a checkpoint; skipped if the last loss was not finite, unless told so."""
        with self.speed_meter.paused(self._device):
            stream = self._whole_digest(state)
            self._log_guard_events()
            if self.guard.last_step_not_finite and not even_if_unhealthy:
                self._progress_line.print(
                    f"step {state.step:,}  not saved: its loss was not finite"
                )
                return
            guard = self.guard.state()
            # All processes save together, or none.
            with self._processes.agreement(f"the checkpoint of step {state.step:,}"):
                self.flush_metrics()  # a resume starts after this step: lines would be lost
                metrics = self._run_directory.record_metrics()
            state = state.model_copy(update={"guard": guard, "stream": stream})
            self._log_save(self.writer.start_save(state, metrics))

    def finish_save(self, *, wait: bool) -> None:
        """Logs the result of the background save if it has finished; with `wait`, waits for it.

        Raises:
            CheckpointError: the save failed, and `wait` is set or `on_save_error` is `stop`.
        """
        if wait:
            with self.speed_meter.paused(self._device):
                self._log_save(self.writer.wait_for_save(), must_succeed=True)
        else:
            self._log_save(self.writer.poll_save())

    def stop(self, request: StopRequested, state: TrainingState) -> Preempted:
        """Saves what was reached before a request to stop; returns the error that ends the run."""
        if not state.step:
            return preempted(
                request,
                "stopped before step 1; nothing was trained, so nothing is saved; run the same "
                "command again",
            )
        self._save_reached(state)
        repeated = ""
        if state.evaluation_owed:
            repeated = "its evaluation was stopped and will be repeated; "
        return preempted(
            request,
            f"stopped after step {state.step:,}, saved in {self.checkpoint_path(state.step)}; "
            f"{repeated}continue with the same command and --resume",
        )

    def save_after_error(self, state: TrainingState, report: Report) -> None:
        """Saves what was reached before an error, which is raised again; says what is saved."""
        error = report.error
        if isinstance(error, Diverged):  # says so itself; what was reached is not worth saving
            self.writer.wait_for_save()
            return
        problem = None
        open_files.release_reserve()  # none may be left to save with
        try:
            if not report.is_shared:
                problem = f"step {state.step:,} is not saved, since that takes all processes"
            elif self.guard.last_judged > state.step:
                problem = (
                    f"step {state.step + 1:,} is not saved, since its update may be incomplete"
                )
                self.writer.wait_for_save()  # it is of an earlier step
            elif state.step:
                self._save_reached(state)
        except Exception as failure:
            if str(failure) != str(error):
                problem = (
                    f"step {state.step:,} could not be saved: {out_of_memory(failure) or failure}"
                )
        saved = what_is_saved(self._run_directory.path)
        message = f"{problem}; {saved}" if problem else saved
        if isinstance(error, RewarmError):
            error.args = (f"{error}; {message}",)
        else:
            self._progress_line.print(
                f"{type(error).__name__} after step {state.step:,}: {message}"
            )

    def _save_reached(self, state: TrainingState) -> None:
        """Saves a state, unless it is saved, and waits until that is complete.

        Raises:
            CheckpointError: it cannot be saved.
        """
        self._log_save(self.writer.wait_for_save())
        if state.step not in self._saved_steps:
            self.save(state, even_if_unhealthy=True)
            self.finish_save(wait=True)

    def _log_save(self, save: SaveResult | None, *, must_succeed: bool = False) -> None:
        if save is None:
            return
        self.speed_meter.add_stall(save.stall)
        error = save.error and str(save.error)
        self._run_directory.log_event("save", **save._asdict() | {"error": error})
        if not save.error:
            self._saved_steps.add(save.step)
        if save.error and (must_succeed or self._recipe.on_save_error == "stop"):
            raise save.error
        if save.set_aside:
            self._progress_line.print(
                f"warning: something was in the place of the checkpoint of step {save.step:,}; it "
                f"is kept as {save.set_aside}"
            )
        if save.error:
            self._progress_line.print(
                f"warning: {error}; training continues (on_save_error: continue)"
            )

    def _log_guard_events(self) -> None:
        """Logs what the guard found since it was last read.

        Raises:
            Diverged: the guard found a reason to stop.
        """
        events, stop = self.guard.read(self._recipe.batch.tokens)
        for event in events:
            self._run_directory.log_metrics(event.kind, step=event.step, **event.values)
            self._progress_line.print(event.message())
        if stop:
            self.writer.wait_for_save()
            run = self._run_directory.path
            raise Diverged(divergence_message(run, self._run.loader, stop))
