"""What a run measures at evaluations besides losses: tasks of the harness, and text samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from typing import Any, NamedTuple

from rewarm.data.prompts import TextSample
from rewarm.errors import RewarmError, out_of_memory, printable
from rewarm.runs.measurement_preconditions import recipe_prompts
from rewarm.runs.task_figures import values_of
from rewarm.training.harness_tasks import Figures, HarnessTasks
from rewarm.training.running_model import as_language_model
from rewarm.training.start_or_resume import StartedRun
from rewarm.training.text_samples import continue_prompts

_BOOTSTRAPS = 100
"""Resamples for standard errors without a formula: the harness's 100,000 can take minutes."""


class SideMeasurement(NamedTuple):
    """The results of one evaluation, not yet written."""

    figures: Figures
    """Of the tasks; empty if they were not measured."""
    samples: list[TextSample]
    messages: list[str]
    """To print."""

    def metric_lines(self) -> dict[str, dict[str, Any]]:
        """Returns the values of the lines of metrics.jsonl, by kind."""
        lines: dict[str, dict[str, Any]] = {}
        if self.figures:
            lines["tasks"] = dict(self.figures)
        if self.samples:
            prompts, texts = zip(*self.samples, strict=True)
            lines["sample"] = {"prompts": list(prompts), "texts": list(texts)}
        return lines


class SideMeasurements:
    """Measures tasks and continues prompts with the model of a run; the training state stays."""

    def __init__(self, run: StartedRun, wait: Callable[[Future[Any]], Any]) -> None:
        """Loads the tasks, and encodes the prompts.

        Args:
            run: the run.
            wait: is called with a finished future before each forward pass, to notice a stop.

        Raises:
            DataError: the harness is not installed, or the data of a task cannot be loaded.
            RecipeError: there is no such task.
            CheckpointError: a prompt is too long.
        """
        self._run, self._wait = run, wait
        self._settings = run.recipe.tasks
        self._tasks: HarnessTasks | None = None
        self._seconds_of_tasks = self._seconds_of_samples = 0.0
        if self._settings.names:
            with run.processes.first_of_node("the tasks"):
                self._tasks = HarnessTasks(self._settings)
        tokenizer = run.tokenizer
        self._prompts = recipe_prompts(run.recipe, tokenizer.directory, tokenizer.eos_token)

    def seconds_of(self, step: int) -> float:
        """Returns about how long the measurements after a step will take."""
        return self._seconds_of_samples + self._has_tasks(step) * self._seconds_of_tasks

    def _has_tasks(self, step: int) -> bool:
        steps = self._run.recipe.steps
        is_due = step in (0, steps) or step in self._run.recipe.every.task_steps(steps)
        return self._tasks is not None and is_due

    def measure(self, step: int) -> SideMeasurement:
        """Returns what is due after a step.

        Raises:
            StopRequested: the run has to stop.
            RewarmError: another process of the run failed.
        """
        run, started = self._run, time.perf_counter()
        figures: Figures = {}
        messages = []
        if self._tasks and self._has_tasks(step):
            try:
                figures = self._tasks.measure(self._language_model, bootstraps=_BOOTSTRAPS)
            except RewarmError:
                raise
            except Exception as error:  # the harness can raise anything
                if run.processes.size > 1:  # the others wait for this one
                    raise
                reason = out_of_memory(error) or f"{type(error).__name__}: {error}"
                messages.append(
                    printable(f"warning: the tasks were not measured: {reason}; training continues")
                )
            finally:
                run.processes.free_whole_weights(run.model)
            numbers = "  ".join(f"{name} {x:.4g}" for name, x in values_of(figures).items())
            if numbers:
                messages.append(f"tasks: {numbers}")
            self._seconds_of_tasks = time.perf_counter() - started
        started = time.perf_counter()
        samples: list[TextSample] = []
        if self._prompts:
            samples = continue_prompts(
                run.model,
                self._prompts,
                precision=run.recipe.precision,
                wait=self._wait,
                processes=run.processes,
            )
        self._seconds_of_samples = time.perf_counter() - started
        return SideMeasurement(figures, samples, messages)

    @cached_property
    def _language_model(self) -> Any:
        run = self._run
        return as_language_model(
            run.model,
            run.tokenizer,
            microbatch=run.split.microbatch,
            precision=run.recipe.precision,
            wait=self._wait,
            processes=run.processes,
        )
