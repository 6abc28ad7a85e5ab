"""Saves checkpoints while training continues.

A step waits only for the copy of the tensors to host memory; a thread writes them to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch

from rewarm.checkpoints.training_state import TrainingState
from rewarm.checkpoints.write_checkpoint import TensorSnapshot, TokenizerSource, write_checkpoint
from rewarm.errors import CheckpointError
from rewarm.model.neox import NeoX


class SaveResult(NamedTuple):
    """The outcome of one save."""

    step: int
    seconds: float
    """From the copy to the renamed directory."""
    stall: float
    """Seconds that training stood still."""
    error: CheckpointError | None
    removed: list[str]
    """Names of older checkpoints that were deleted (`keep`)."""


class BackgroundWriter:
    """Writes the checkpoints of a run, one at a time, each in a thread of its own."""

    def __init__(
        self,
        checkpoint_path: Callable[[int], Path],
        model: NeoX,
        optimizer: torch.optim.Optimizer,
        recipe: str,
        tokenizer: TokenizerSource,
        prune: Callable[[], list[str]],
    ) -> None:
        """Stores what to save.

        Args:
            checkpoint_path: returns the folder of the checkpoint of a step.
            model: its weights are saved.
            optimizer: its state is saved.
            recipe: YAML, copied into every checkpoint.
            tokenizer: its files are copied into every checkpoint.
            prune: deletes older checkpoints and returns their names; called after each save.
        """
        self._checkpoint_path = checkpoint_path
        self._model = model
        self._optimizer = optimizer
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._prune = prune
        self._snapshot = TensorSnapshot()
        self._pending: Future[SaveResult] | None = None
        self._slowest_seconds = 0.0

    @property
    def seconds_to_finish(self) -> float:
        """Seconds to allow for the pending save and one more, from the slowest save so far.

        A run with a time limit stops this long before it.
        """
        return 1.5 * self._slowest_seconds * (2 if self._pending else 1)

    def start_save(self, state: TrainingState) -> SaveResult | None:
        """Copies the tensors and starts to write them; returns the previous save's result, if any.

        Waits for the previous save first: there is memory for one copy only.
        """
        started = time.perf_counter()
        previous = self.wait_for_save()
        self._snapshot.copy_from(self._model, self._optimizer)
        stall = time.perf_counter() - started
        pending = self._pending = Future[SaveResult]()
        # A daemon thread, not an executor's, which Python would wait for at exit.
        Thread(target=self._write, args=(pending, state, stall), daemon=True).start()
        return previous

    def poll_save(self) -> SaveResult | None:
        """Returns the result of a save that has finished, once; else None. Does not wait."""
        return self.wait_for_save() if self._pending and self._pending.done() else None

    def wait_for_save(self) -> SaveResult | None:
        """Waits for the pending save and returns its result; None if there is none."""
        if self._pending is None:
            return None
        result = self._pending.result()
        self._pending = None
        self._slowest_seconds = max(self._slowest_seconds, result.seconds)
        return result

    def _write(self, pending: Future[SaveResult], state: TrainingState, stall: float) -> None:
        started = time.perf_counter() - stall
        error, removed = None, []
        try:
            write_checkpoint(
                self._checkpoint_path(state.step),
                self._model.architecture,
                self._snapshot,
                state,
                self._recipe,
                self._tokenizer,
            )
            removed = self._prune()
        except CheckpointError as caught:
            error = caught
        except BaseException as caught:  # raised again by whoever waits for this save
            pending.set_exception(caught)
            return
        seconds = time.perf_counter() - started
        pending.set_result(SaveResult(state.step, seconds, stall, error, removed))
