"""A run of rewarm in several processes on gloo, with faults in one of them."""

import contextlib
import os
import signal
import socket
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rewarm_process import RewarmProcess

Ended = namedtuple("Ended", "codes output errors")
"""Exit codes by rank, and what rank 0 has printed."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def started_processes(
    folder: Path,
    size: int,
    *words: object,
    fault: Callable[[], None] | None = None,
    rank_of_fault: int = 1,
    restarts: int = 0,
) -> Iterator[list[RewarmProcess]]:
    """Starts `rewarm WORDS` as the processes of one run, as torchrun does; kills what is left.

    `fault` is called in one of them before it begins. With `restarts` they are as started again.
    """
    port, processes = free_port(), []
    try:
        for rank in range(size):
            own = folder / f"rank-{rank}"
            own.mkdir(exist_ok=True, parents=True)
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
            }
            before = fault if rank == rank_of_fault else None
            processes.append(RewarmProcess(own, *words, environment=environment, before=before))
        yield processes
    finally:
        for process in processes:
            process.signal(signal.SIGKILL)


def run_processes(folder: Path, size: int, *words: object, **faults: object) -> Ended:
    """Runs `rewarm WORDS` in several processes to its end."""
    with started_processes(folder, size, *words, **faults) as processes:
        codes = [process.wait(120) for process in processes]
        return Ended(codes, processes[0].output, processes[0].errors)


def _in_step(step: int, action: Callable[[], None]) -> None:
    """Has `action` called in the middle of a step of this process, counted from its start.

    The checkpoints before it are complete by then: this process waits for each.
    """
    from rewarm.checkpoints.background_writer import BackgroundWriter
    from rewarm.training import loop

    start_save = BackgroundWriter.start_save

    def save(writer, *arguments):
        previous = start_save(writer, *arguments)
        writer._pending.result()
        return previous

    BackgroundWriter.start_save = save
    take_step, count = loop.take_step, 0

    def take_and_act(*arguments, **keywords):
        nonlocal count
        count += 1
        if count == step:
            action()
        return take_step(*arguments, **keywords)

    loop.take_step = take_and_act


def terminate_in_step_7() -> None:
    _in_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))


def interrupt_in_step_7() -> None:
    _in_step(7, lambda: os.kill(os.getpid(), signal.SIGINT))


def kill_in_step_12() -> None:
    _in_step(12, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang_in_step_12() -> None:
    _in_step(12, lambda: time.sleep(1000))


def out_of_memory_in_step_12() -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("2 GiB")

    _in_step(12, fail)


def loss_is_nan_from_step_12() -> None:
    from rewarm.training import loop

    take_step, count = loop.take_step, 0

    def take_and_spoil(model, optimizer, tokens, **keywords):
        nonlocal count
        count += 1
        if count >= 12:
            loss = model.loss
            model.loss = lambda *arguments, **settings: loss(*arguments, **settings) * float("nan")
        return take_step(model, optimizer, tokens, **keywords)

    loop.take_step = take_and_spoil


def full_disk() -> None:
    """Lets this process write no tensors."""
    from rewarm.checkpoints import write_checkpoint

    def fail(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    write_checkpoint.save_file = fail


def missing_shard() -> None:
    """Has this process find no block after the first 100 of each corpus."""
    from rewarm.data import corpus
    from rewarm.errors import DataError

    read = corpus.Corpus.block

    def read_or_fail(source, index):
        if index >= 100:
            raise DataError("shard-00007.tar is missing")
        return read(source, index)

    corpus.Corpus.block = read_or_fail


def missing_validation_shard() -> None:
    """Has this process find no validation data after the baseline."""
    from rewarm.data import stored_blocks
    from rewarm.errors import DataError

    read, calls = stored_blocks.StoredBlocks.__iter__, []

    def read_or_fail(blocks):
        calls.append(blocks)
        if len(calls) > 2:
            raise DataError("shard-00003.tar is missing")
        return read(blocks)

    stored_blocks.StoredBlocks.__iter__ = read_or_fail


def cannot_write_metrics() -> None:
    """Lets this process write no more metrics after step 6."""
    from rewarm.errors import CheckpointError
    from rewarm.runs.run_directory import RunDirectory

    log = RunDirectory.log_metrics

    def log_or_fail(directory, kind, **values):
        if values["step"] > 6:
            raise CheckpointError("metrics.jsonl cannot be written")
        log(directory, kind, **values)

    RunDirectory.log_metrics = log_or_fail


def terminate_in_evaluation_3() -> None:
    """Sends SIGTERM when the third validation set is measured: the first one after step 5."""
    from rewarm.data import stored_blocks

    read, calls = stored_blocks.StoredBlocks.__iter__, []

    def read_or_terminate(blocks):
        calls.append(blocks)
        for block in read(blocks):
            yield block
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    stored_blocks.StoredBlocks.__iter__ = read_or_terminate


def cannot_flush_metrics_at_the_end() -> None:
    """Has this process find at the very end that its last metrics are not written."""
    from rewarm.training.run_recorder import RunRecorder

    RunRecorder.flush_metrics = lambda _recorder: "metrics.jsonl cannot be written"
