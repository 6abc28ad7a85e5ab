"""TensorBoard: event files in the run directory; `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import ClassVar

from typing_extensions import override

from rewarm.trackers.base import Log, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Writes event files to `trackers/tensorboard` in the run directory."""

    contract: ClassVar[int] = 1
    removes_repeated_steps: ClassVar[bool] = True

    @override
    def check(self) -> None:
        import_module("tensorboard.summary.writer.event_file_writer")

    @override
    @contextmanager
    def open(self, run: TrackedRun) -> Iterator[Log]:
        # Without PyTorch's SummaryWriter, this process does not import torch.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(run.folder), flush_secs=10)

        def log(step: int, values: Mapping[str, float]) -> None:
            points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            event = Event(step=step, wall_time=time.time(), summary=Summary(value=points))
            writer.add_event(event)

        # TensorBoard hides what earlier files have from this step on.
        first = 0 if run.resumed_from is None else run.resumed_from + 1
        start = SessionLog(status=SessionLog.START)
        writer.add_event(Event(step=first, wall_time=time.time(), session_log=start))
        try:
            yield log
        finally:
            writer.close()
