"""How the processes of a run agree on the host, before anything that all of them do together.

A rank that fails or is asked to stop does not leave alone. It joins the next agreement with its
error, and there every rank raises it: all have taken the same steps, and save them together. Where
a rank is killed or hangs, the others name it, and the last checkpoint counts.

All collectives of the hosts are agreements of one shape, so that a rank with an error meets the
others in whichever comes next.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from typing_extensions import override

from rewarm import exit_codes
from rewarm.errors import CheckpointError, LostPeerError, PeerError, RewarmError, out_of_memory
from rewarm.safe_loading import parse_json
from rewarm.training.preemption import StopRequested
from rewarm.training.processes import Processes, Report

_DIGITS, _DIGIT_BITS = 8, 16
"""A digest of 128 bits is added up in digits, whose sums over all ranks fit into 64 bits."""
_LONGEST_GRACE = 60.0
"""Seconds that a rank with an error waits for the others to save together."""
_POLL_SECONDS = 0.02


class _Outcome(NamedTuple):
    """What a rank brings to an agreement in which some rank has an error."""

    is_stop: bool
    """Whether it is a request to stop, rather than an error."""
    message: str
    exit_code: int


class AgreeingProcesses(Processes):
    """Several processes that agree; a context manager that ends with an agreement."""

    have_ended_together = False
    """Whether the processes of this one's run have ended with an agreement."""

    def __init__(
        self, store: PrefixStore, rank: int, size: int, local_rank: int, timeout: float
    ) -> None:
        """Takes an open process group.

        Args:
            store: that all ranks share.
            rank: of this process.
            size: how many processes there are.
            local_rank: of this process among those of its machine.
            timeout: seconds to wait for a rank that does not answer.
        """
        self.rank, self.size = rank, size
        self._store, self._local_rank, self._timeout = store, local_rank, timeout
        self._hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._agreements = self._shared = 0
        self._agreed_on: BaseException | None = None
        self._report: Report | None = None

    @override
    def agree(
        self, at: str, error: BaseException | None = None, *, digest: int = 0, grace: float = 0.0
    ) -> int:
        self._agreements += 1
        self._store.set(f"seen/{self.rank}", json.dumps([self._agreements, at]))
        digits = [digest >> _DIGIT_BITS * i & 2**_DIGIT_BITS - 1 for i in range(_DIGITS)]
        total = torch.tensor([error is not None, *digits], dtype=torch.int64)
        try:
            work = dist.all_reduce(total, group=self._hosts, async_op=True)
            work.wait(timedelta(seconds=grace or self._timeout))
            failures, *sums = total.tolist()
            if failures:
                self._raise_agreed(error)
        except RuntimeError as lost:
            if lost is error:
                raise
            raise self._describe_lost(at, lost) from None
        summed = sum(int(number) << _DIGIT_BITS * i for i, number in enumerate(sums))
        return summed % 2**128

    def _raise_agreed(self, error: BaseException | None) -> None:
        """Raises on every rank the error of the lowest rank that has one; errors before stops."""
        own = None if error is None else _outcome(error)
        outcomes: list[_Outcome | None] = [None] * self.size
        dist.all_gather_object(outcomes, own, group=self._hosts)
        rank, outcome = min(
            ((rank, outcome) for rank, outcome in enumerate(outcomes) if outcome),
            key=lambda pair: (pair[1].is_stop, pair[0]),
        )
        if error is not None and own == outcome:  # all of them may have the same
            self._agreed_on = error
        elif outcome.is_stop:
            self._agreed_on = StopRequested(outcome.message, outcome.exit_code)
        else:
            self._agreed_on = PeerError(f"rank {rank}: {outcome.message}")
            self._agreed_on.exit_code = outcome.exit_code
        raise self._agreed_on

    @override
    def report(self, error: BaseException) -> Report:
        if self._report is None or error is not self._report.error:
            self._report = self._report_once(error)
        return self._report

    def _report_once(self, error: BaseException) -> Report:
        if error is self._agreed_on or isinstance(error, LostPeerError):
            return Report(error, is_shared=error is self._agreed_on)
        is_consequence = _is_of_collective(error)
        if not is_consequence:
            self.post(f"failed/{self.rank}", _outcome(error))
        at = "an exchange of tensors" if is_consequence else f"its own {type(error).__name__}"
        try:
            self.agree(at, error, grace=min(_LONGEST_GRACE, self._timeout))
        except LostPeerError as lost:
            return Report(lost if is_consequence else error, is_shared=False)
        except BaseException as agreed:
            return Report(agreed, is_shared=True)
        raise AssertionError("an agreement with an error raises it")

    @override
    @contextlib.contextmanager
    def agreement(self, at: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if error is not self._agreed_on and not isinstance(error, LostPeerError):
                self.agree(at, error)
            raise
        self.agree(at)

    @override
    def share(self, value: Any) -> Any:
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.is_main:
            self.post(key, value)
            return value
        return self.await_post(key)

    @override
    def gather(self, value: Any) -> list[Any]:
        self._shared += 1
        self.post(f"shared/{self._shared}/{self.rank}", value)
        return [self.await_post(f"shared/{self._shared}/{rank}") for rank in range(self.size)]

    @override
    def check_same(self, values: dict[str, str | None]) -> None:
        with self.agreement("the comparison of what the processes have read"):
            first = self.share(values)
            for name, value in values.items():
                if value != first.get(name):
                    raise CheckpointError(
                        f"rank {self.rank} and rank 0 differ in {name}; all processes have to see "
                        "the same files: use a file system that all machines share"
                    )

    @override
    @contextlib.contextmanager
    def first_of_node(self, at: str) -> Iterator[bool]:
        is_first = self._local_rank == 0
        if not is_first:
            self.agree(at)
        with self.agreement(at):
            yield is_first
        if is_first:
            self.agree(at)

    @override
    def post(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(value))

    @override
    def await_post(self, key: str) -> Any:
        deadline = time.monotonic() + self._timeout
        # Not `wait`, which would keep other threads from the store.
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise self._describe_lost(key, TimeoutError(f"{self._timeout:g} s have passed"))
            time.sleep(_POLL_SECONDS)
        return parse_json(self._store.get(key))

    def _describe_lost(self, at: str, error: BaseException) -> LostPeerError:
        """Returns the error that names the ranks that did not come, and why if they have said so.

        `at` is where this rank waited for them.
        """
        return LostPeerError(f"{self._missing_ranks(error)} (rank {self.rank} waited at {at})")

    def _missing_ranks(self, error: BaseException) -> str:
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            for rank in others:
                if self._store.check([f"failed/{rank}"]):
                    _, message, _ = parse_json(self._store.get(f"failed/{rank}"))
                    return f"rank {rank} failed: {message}"
            seen = dict.fromkeys(others, (0, "the start"))
            for rank in others:
                if self._store.check([f"seen/{rank}"]):
                    seen[rank] = tuple(parse_json(self._store.get(f"seen/{rank}")))
        except RuntimeError:
            return f"the connection to the launcher is lost: {first_sentence(error)}"
        late = [rank for rank, (count, _) in seen.items() if count < self._agreements] or others
        last = "; ".join(f"rank {rank} was last seen at {seen[rank][1]}" for rank in late)
        return f"{last}: it was killed, or hangs: {first_sentence(error)}"

    @override
    def __exit__(
        self, _k: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None
    ) -> None:
        """Ends together with the other ranks; raises the error of another one.

        The process group stays open where they did not end together: `has_ended_alone`.
        """
        report = self.report(error) if error else None
        if error is None:
            try:
                self.agree("the end of the run")
            except BaseException as agreed:
                report = self.report(agreed)
        if report is None or report.is_shared:
            dist.destroy_process_group()
            AgreeingProcesses.have_ended_together = True
        if report and report.error is not error:
            raise report.error from None


def _outcome(error: BaseException) -> _Outcome:
    if isinstance(error, StopRequested):
        return _Outcome(True, str(error), error.exit_code)
    code = getattr(error, "exit_code", exit_codes.UNEXPECTED)
    name = "" if isinstance(error, RewarmError) else f"{type(error).__name__}: "
    return _Outcome(False, out_of_memory(error) or f"{name}{error}", code)


def _is_of_collective(error: BaseException) -> bool:
    """Returns whether an error only says that another rank is gone."""
    texts = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def first_sentence(error: BaseException) -> str:
    """Returns the first sentence of an error, without the place in the source of gloo."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[\S+\] ", "", line).partition(". ")[0]
