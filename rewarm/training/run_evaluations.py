"""The evaluations of a run: losses of its validation sets, tasks and samples; logged and shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rewarm.checkpoints.training_state import TrainingState
from rewarm.runs.run_directory import RunDirectory
from rewarm.training.progress_line import ProgressLine
from rewarm.training.side_measurements import SideMeasurements
from rewarm.training.speed_meter import SpeedMeter
from rewarm.training.start_or_resume import StartedRun
from rewarm.training.validation_loss import SetLoss, measure_losses


class RunEvaluations:
    """Measures, logs and shows what is due after a step; its time is not part of the speed."""

    def __init__(
        self,
        run: StartedRun,
        run_directory: RunDirectory,
        progress_line: ProgressLine,
        speed_meter: SpeedMeter,
        wait: Callable[[Future[Any]], Any],
    ) -> None:
        """Prepares the tasks and the prompts of a run.

        Args:
            run: the run.
            run_directory: where results are logged.
            progress_line: where they are shown.
            speed_meter: is paused meanwhile.
            wait: returns the result of a read, or raises StopRequested.

        Raises:
            RewarmError: see `SideMeasurements`.
        """
        self._run, self._run_directory = run, run_directory
        self._progress_line, self._speed_meter = progress_line, speed_meter
        self._wait = wait
        self._device = next(run.model.parameters()).device
        self._side = SideMeasurements(run, wait)
        self._seconds = 0.0

    def is_due(self, step: int) -> bool:
        """Returns whether the losses are measured after a step."""
        steps = self._run.recipe.steps
        return step == steps or any(
            step in due for due in self._run.recipe.every.evaluations(steps)
        )

    def seconds_of(self, step: int) -> float:
        """Returns about how long the evaluation after a step will take; 0 if none is due."""
        return self._seconds + self._side.seconds_of(step) if self.is_due(step) else 0.0

    def measure_baseline(self, state: TrainingState) -> TrainingState:
        """Logs the loss on every validation set without a baseline, and returns the state with it.

        Before the first step these are all sets; on a resume, those that were added or changed.

        Raises:
            StopRequested: the run has to stop; nothing is logged, and a resume measures again.
        """
        digests = {name: blocks.digest() for name, blocks in self._run.validation.items()}
        new_sets = [name for name in digests if digests[name] != state.validation.get(name)]
        state = state.model_copy(update={"validation": {**state.validation, **digests}})
        if not state.step:
            return self._measure_all(state, new_sets, is_baseline=True)
        return self._measure_sets(state, new_sets, is_baseline=True) if new_sets else state

    def measure(self, state: TrainingState) -> TrainingState:
        """Logs all that is due after a step, and returns the state with the losses.

        Raises:
            StopRequested: the run has to stop; nothing is logged, and a resume evaluates again.
        """
        return self._measure_all(state, list(self._run.validation), is_baseline=False)

    def _measure_all(
        self, state: TrainingState, names: list[str], *, is_baseline: bool
    ) -> TrainingState:
        """Logs losses, tasks and samples; a stop comes before any of them is logged."""
        with self._speed_meter.paused(self._device):
            measurement = self._side.measure(state.step)
        if names:
            state = self._measure_sets(state, names, is_baseline=is_baseline)
        for kind, values in measurement.metric_lines().items():
            self._run_directory.log_metrics(kind, step=state.step, tokens=state.tokens, **values)
        for message in measurement.messages:
            self._progress_line.print(f"step {state.step:,}  {message}")
        return state.model_copy(update={"evaluation_owed": False})

    def _measure_sets(
        self, state: TrainingState, names: list[str], *, is_baseline: bool
    ) -> TrainingState:
        """Logs the loss on validation sets, and returns the state with these losses."""
        with self._speed_meter.paused(self._device):
            started = time.perf_counter()
            measured = self._measure_losses(names)
            of_average: dict[str, SetLoss] = {}
            if self._run.average and state.step:  # before step 1 it is the weights
                with self._run.average.in_model():
                    of_average = self._measure_losses(names)
            seconds = self._seconds = time.perf_counter() - started
        losses = {name: result.loss for name, result in measured.items()}
        baseline, steps = state.baseline, state.baseline_steps
        if is_baseline:
            baseline = {**baseline, **losses}
            steps = {**steps, **(dict.fromkeys(names, state.step) if state.step else {})}
        metrics: dict[str, float] = {}
        for name, result in measured.items():
            metrics |= {f"{name}/loss": result.loss, f"{name}/perplexity": result.perplexity}
            if (bits_per_byte := result.bits_per_byte) is not None:
                metrics[f"{name}/bits_per_byte"] = bits_per_byte
            if name in baseline:  # a baseline that was not finite is none
                metrics[f"{name}/forgetting"] = result.loss - baseline[name]
        average_losses = {name: result.loss for name, result in of_average.items()}
        metrics |= {f"{name}/ema_loss": loss for name, loss in average_losses.items()}
        kind = "baseline" if is_baseline and state.step else "evaluate"
        self._run_directory.log_metrics(kind, step=state.step, tokens=state.tokens, **metrics)
        self._run_directory.log_event("evaluate", step=state.step, seconds=seconds)
        self._progress_line.show_evaluation(state.step, losses, baseline, average_losses)
        # JSON has no NaN: a checkpoint that held one could not be read again.
        return state.model_copy(
            update={
                "losses": _finite({**state.losses, **losses} if is_baseline else losses),
                "baseline": _finite(baseline),
                "baseline_steps": steps,
                **({} if is_baseline and state.step else {"losses_step": state.step}),
            }
        )

    def _measure_losses(self, names: list[str]) -> dict[str, SetLoss]:
        return measure_losses(
            self._run.model,
            {name: self._run.validation[name] for name in names},
            microbatch=self._run.split.microbatch,
            precision=self._run.recipe.precision,
            separator_id=self._run.separator_id,
            wait=self._wait,
            processes=self._run.processes,
        )


def _finite(losses: dict[str, float]) -> dict[str, float]:
    return {name: loss for name, loss in losses.items() if math.isfinite(loss)}
