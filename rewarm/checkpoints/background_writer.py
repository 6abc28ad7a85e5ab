"""Saves checkpoints while training continues.

Training waits only while the tensors are copied to host memory; a thread writes the copy to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from typing_extensions import override

from rewarm.checkpoints.manifest import FileEntries, MetricsRecord
from rewarm.checkpoints.model_files import TokenizerSource
from rewarm.checkpoints.training_state import TrainingState
from rewarm.checkpoints.write_checkpoint import (
    AverageSource,
    OtherParts,
    Part,
    TensorSnapshot,
    write_checkpoint,
    write_tensors,
)
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX


class SaveResult(NamedTuple):
    """The outcome of one save."""

    step: int
    seconds: float
    """Duration of the save, from the start of the copy to the complete directory."""
    stall: float
    """Seconds that training waited."""
    error: CheckpointError | None
    """None if the checkpoint was written."""
    removed: list[str]
    """Names of older checkpoints that were deleted (`keep`)."""
    set_aside: str | None = None
    """New name of a folder that something else had left in the checkpoint's place."""


class SavingProcesses(Protocol):
    """The processes that write a checkpoint together."""

    rank: int
    size: int

    def post(self, key: str, value: Any) -> None:
        """Publishes a value, of which JSON can hold it, under a key that is used once."""

    def await_post(self, key: str) -> Any:
        """Returns the value that a process publishes under a key; waits for it."""


class _PostedParts(OtherParts):
    """The parts of a checkpoint that other processes write: rank 0 tells them where."""

    def __init__(self, processes: SavingProcesses, key: str) -> None:
        self._processes, self._key = processes, key

    @override
    def start(self, folder: Path) -> None:
        self._processes.post(f"{self._key}/folder", str(folder))

    @override
    def wait(self) -> FileEntries:
        entries: FileEntries = {}
        for rank in range(1, self._processes.size):
            part = self._processes.await_post(f"{self._key}/part/{rank}")
            if "error" in part:
                raise OSError(f"rank {rank}: {part['error']}")
            entries |= part["entries"]
        return entries

    @override
    def cancel(self) -> None:
        self._processes.post(f"{self._key}/folder", None)


class BackgroundWriter:
    """Writes the checkpoints of a run, one at a time, each in a new thread.

    Of several processes, each writes a part; all of them report the same outcome.
    """

    def __init__(
        self,
        checkpoint_path: Callable[[int], Path],
        model: NeoX,
        optimizer: torch.optim.Optimizer,
        recipe_yaml: str,
        tokenizer: TokenizerSource,
        sync_metrics: Callable[[], None],
        prune: Callable[[], list[str]],
        processes: SavingProcesses,
        average: AverageSource | None = None,
    ) -> None:
        """Stores the arguments; nothing is saved yet.

        Args:
            checkpoint_path: function that returns the directory of the checkpoint at a step.
            model: model whose weights are saved.
            optimizer: optimizer whose state is saved.
            recipe_yaml: the recipe as YAML, which is written into each checkpoint.
            tokenizer: tokenizer whose files are copied into each checkpoint.
            sync_metrics: function that waits until all metrics are on the disk, and raises
                CheckpointError if they cannot be written; called before a checkpoint is complete.
            prune: function that deletes older checkpoints and returns their names; called after
                each save.
            processes: the processes of the run; rank 0 writes what is not a tensor.
            average: the average of the weights, which is saved too; None if there is none.
        """
        self._checkpoint_path = checkpoint_path
        self._model = model
        self._optimizer = optimizer
        self._recipe_yaml = recipe_yaml
        self._tokenizer = tokenizer
        self._sync_metrics = sync_metrics
        self._prune = prune
        self._processes = processes
        self._snapshot = TensorSnapshot(Part(processes.rank, processes.size), average)
        self._saves = 0
        self._pending: Future[SaveResult] | None = None
        self._slowest_seconds = 0.0

    @property
    def seconds_to_finish(self) -> float:
        """Estimated seconds to finish the pending save and one more, from the slowest save so far.

        A run with a time limit stops this many seconds before the limit.
        """
        return 1.5 * self._slowest_seconds * (2 if self._pending else 1)

    def start_save(self, state: TrainingState, metrics: MetricsRecord | None) -> SaveResult | None:
        """Copies the tensors and starts to write them; returns the result of the previous save.

        `metrics` states which lines of metrics.jsonl belong to the checkpoint; only rank 0 has
        them. Waits for the previous save first, since there is memory for only one copy. Returns
        None if there was none, or its result has already been returned.
        """
        started = time.perf_counter()
        previous = self.wait_for_save()
        self._snapshot.copy_from(self._model, self._optimizer)
        stall = time.perf_counter() - started
        pending = self._pending = Future[SaveResult]()
        self._saves += 1
        # A daemon thread, since Python would wait at exit for the thread of an executor.
        arguments = (pending, started, stall, state, metrics)
        Thread(target=self._write, args=arguments, daemon=True).start()
        return previous

    def poll_save(self) -> SaveResult | None:
        """Returns the result of the pending save if it has finished, else None; does not wait."""
        return self.wait_for_save() if self._pending and self._pending.done() else None

    def wait_for_save(self) -> SaveResult | None:
        """Waits for the pending save and returns its result, or None if no save is pending."""
        if self._pending is None:
            return None
        result = self._pending.result()
        self._pending = None
        self._slowest_seconds = max(self._slowest_seconds, result.seconds)
        return result

    def _write(
        self,
        pending: Future[SaveResult],
        started: float,
        stall: float,
        state: TrainingState,
        metrics: MetricsRecord | None,
    ) -> None:
        key = f"save/{self._saves}"
        try:
            if metrics is None:
                outcome = self._write_part(key)
            else:
                outcome = self._write_checkpoint(key, state, metrics)
        except BaseException as caught:  # raised again in `wait_for_save`
            pending.set_exception(caught)
            return
        seconds = time.perf_counter() - started
        pending.set_result(SaveResult(state.step, seconds, stall, *outcome))

    def _write_checkpoint(self, key: str, state: TrainingState, metrics: MetricsRecord) -> _Outcome:
        outcome = _Outcome(CheckpointError("another process failed"), [], None)
        try:
            # After a power loss, a checkpoint must not be ahead of its metrics.
            self._sync_metrics()
            moved = write_checkpoint(
                self._checkpoint_path(state.step),
                self._model.architecture,
                self._snapshot,
                state,
                self._recipe_yaml,
                self._tokenizer,
                metrics,
                _PostedParts(self._processes, key),
            )
            outcome = _Outcome(None, self._prune(), moved)
        except CheckpointError as caught:
            outcome = _Outcome(caught, [], None)
        finally:
            message = outcome.error and str(outcome.error)
            self._processes.post(f"{key}/outcome", [message, *outcome[1:]])
        return outcome

    def _write_part(self, key: str) -> _Outcome:
        """Writes the tensors of another rank than 0; returns the outcome of the whole save."""
        if folder := self._processes.await_post(f"{key}/folder"):
            try:
                part: dict[str, Any] = {"entries": write_tensors(Path(folder), self._snapshot)}
            except (OSError, SafetensorError) as error:
                part = {"error": str(error)}
            self._processes.post(f"{key}/part/{self._processes.rank}", part)
        message, removed, moved = self._processes.await_post(f"{key}/outcome")
        return _Outcome(message and CheckpointError(message), removed, moved)


class _Outcome(NamedTuple):
    """What a save has done, or why it failed."""

    error: CheckpointError | None
    removed: list[str]
    set_aside: str | None
