"""Saving while training goes on: a step waits for a copy to host memory, a thread does the rest."""

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
    """How a save went."""

    step: int
    seconds: float
    """From the copy to the renamed directory."""
    stall: float
    """Seconds that training stood still."""
    error: CheckpointError | None
    removed: list[str]
    """Older checkpoints that were not to be kept."""


class BackgroundWriter:
    """Writes the checkpoints of a run, one after the other, each in a thread of its own."""

    def __init__(
        self,
        path_of: Callable[[int], Path],
        model: NeoX,
        optimizer: torch.optim.Optimizer,
        recipe: str,
        tokenizer: TokenizerSource,
        prune: Callable[[], list[str]],
    ) -> None:
        """Writes the checkpoint of a step to `path_of(step)`, and calls `prune` after each."""
        self._path_of = path_of
        self._model = model
        self._optimizer = optimizer
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._prune = prune
        self._tensors = TensorSnapshot()
        self._writing: Future[SaveResult] | None = None
        self._longest = 0.0

    @property
    def to_end(self) -> float:
        """Seconds that one more save takes, and the one under way, by the slowest that has ended.

        A run with a time limit leaves itself as many.
        """
        return 1.5 * self._longest * (2 if self._writing else 1)

    def begin(self, progress: TrainingState) -> SaveResult | None:
        """Copies everything and begins to write it; returns how the save before went, if any.

        Waits for the one before: there is memory for one copy.
        """
        started = time.perf_counter()
        before = self.end()
        self._tensors.take(self._model, self._optimizer)
        stall = time.perf_counter() - started
        writing = self._writing = Future[SaveResult]()
        # Not an executor's thread: who wants to wait for it says so, and Python never does.
        Thread(target=self._write, args=(writing, progress, stall), daemon=True).start()
        return before

    def ready(self) -> SaveResult | None:
        """Returns how the last save went, once; None while it goes on or when there was none."""
        return self.end() if self._writing and self._writing.done() else None

    def end(self) -> SaveResult | None:
        """Waits for the save that is under way, if any, and returns how it went."""
        if self._writing is None:
            return None
        saved = self._writing.result()
        self._writing = None
        self._longest = max(self._longest, saved.seconds)
        return saved

    def _write(self, writing: Future[SaveResult], progress: TrainingState, stall: float) -> None:
        started = time.perf_counter() - stall
        error, removed = None, []
        try:
            write_checkpoint(
                self._path_of(progress.step),
                self._model.architecture,
                self._tensors,
                progress,
                self._recipe,
                self._tokenizer,
            )
            removed = self._prune()
        except CheckpointError as caught:
            error = caught
        except BaseException as caught:  # what nobody expected comes out where it is waited for
            writing.set_exception(caught)
            return
        writing.set_result(
            SaveResult(progress.step, time.perf_counter() - started, stall, error, removed)
        )
