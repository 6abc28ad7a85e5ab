"""The processes of a run, one per GPU: the only module that knows of ranks.

```
 torchrun, srun, `rewarm train --gpus`  ── RANK, WORLD_SIZE, ... ──> join_processes
   devices   NCCL, or gloo on CPUs: gathers weights, reduces gradients, losses and norms
   hosts     gloo: `agree` before anything that all ranks do together
```
A rank that fails or is asked to stop does not leave alone. It joins the next agreement with its
error, and there every rank raises it: all have taken the same steps, and save them together. Where
a rank is killed or hangs, the others name it, and the last checkpoint counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from typing_extensions import override

from rewarm import exit_codes
from rewarm.errors import CheckpointError, LostPeerError, PeerError, RewarmError, out_of_memory
from rewarm.model.neox import NeoX
from rewarm.safe_loading import parse_json
from rewarm.training.preemption import StopRequested

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


class Report(NamedTuple):
    """How the other ranks took an error."""

    error: BaseException
    """What to raise: the error, or the one that it follows from."""
    is_shared: bool
    """Whether all ranks handle it now, after the same step."""


class Processes:
    """The processes of a run: here the only one; `join_processes` returns several."""

    rank = 0
    size = 1
    restarts = 0
    """How many times a launcher has started all of them again."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and the terminal."""
        return self.rank == 0

    def divide(self, model: NeoX, shard_size: int) -> None:
        """Divides the weights of a model without values among groups of `shard_size` ranks."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks, on the device; in place."""
        return tensor

    def sum_of_parts(self, tensor: Tensor) -> Tensor:
        """Returns the sum over the parts of a divided model, of which each copy counts once."""
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """Returns the element-wise maximum of a tensor over all ranks, on the device; in place."""
        return tensor

    def set_last_microbatch(self, model: NeoX, is_last: bool) -> None:
        """Has the next backward pass reduce gradients as far as the last of a step needs it."""

    def agree(
        self, at: str, error: BaseException | None = None, *, digest: int = 0, grace: float = 0.0
    ) -> int:
        """Waits for all ranks; raises on each of them the error that any of them has.

        Args:
            at: where in the run this is, for the message about a rank that does not come.
            error: that this rank has; it must not be one that was agreed on.
            digest: a number below 2**128.
            grace: seconds to wait; 0 for `parallel.timeout_minutes`.

        Returns the sum of `digest` over all ranks, modulo 2**128.
        """
        if error:
            raise error
        return digest

    def report(self, error: BaseException) -> Report:
        """Tells the other ranks of an error."""
        return Report(error, is_shared=True)

    @contextlib.contextmanager
    def agreement(self, at: str) -> Iterator[None]:
        """Has an error of any rank inside raised on every rank, at its end."""
        yield

    def share(self, value: Any) -> Any:
        """Returns rank 0's value, which JSON can hold."""
        return value

    def minimum(self, number: int) -> int:
        """Returns the smallest of the numbers that the ranks have."""
        return number

    def check_same(self, values: dict[str, str | None]) -> None:
        """Makes sure that all ranks have the same values, by what they are.

        Raises:
            CheckpointError: they differ; the message names the first that does.
        """

    @contextlib.contextmanager
    def first_of_node(self, at: str) -> Iterator[bool]:
        """Lets one process of each machine go first; yields whether this is one."""
        yield True

    def post(self, key: str, value: Any) -> None:
        """Publishes a value under a key that is used once, for `await_post`."""

    def await_post(self, key: str) -> Any:
        """Returns the value that a rank publishes under a key; waits for it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None
    ) -> None:
        pass


ALONE = Processes()


class ProcessGroup(Processes):
    """Several processes; a context manager that ends with an agreement."""

    def __init__(self, timeout: float) -> None:
        """Joins the processes that the environment variables of torchrun describe.

        Args:
            timeout: seconds to wait for a rank that does not answer.

        Raises:
            RewarmError: they do not find each other in that time.
        """
        self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._timeout = timeout
        self._local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._device_type = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device_type == "cuda":
            torch.cuda.set_device(self._local_rank)
        _record_collectives()
        wait = timedelta(seconds=timeout)
        try:
            store, self.rank, self.size = next(iter(rendezvous("env://", timeout=wait)))
            # The launcher keeps the store: what earlier processes have published must not be found.
            self._store = PrefixStore(f"attempt/{self.restarts}", store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self._device_type == "cuda" else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                # With NCCL the hosts notice first, and can say which rank it is.
                timeout=wait + timedelta(minutes=self._device_type == "cuda"),
            )
            self._hosts = dist.new_group(backend="gloo", timeout=wait)
        except (RuntimeError, ValueError) as error:
            raise RewarmError(
                f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} did not find the "
                f"others in {timeout:g} s: {_first_line(error)}; see that MASTER_ADDR, "
                "MASTER_PORT, RANK and WORLD_SIZE are those of one run, and that the port is open"
            ) from None
        self._agreements = self._shared = 0
        self._agreed_on: BaseException | None = None
        self._report: Report | None = None

    @override
    def divide(self, model: NeoX, shard_size: int) -> None:
        """Wraps each layer, and what is outside of the layers, in a group of its own (FSDP2)."""
        mesh = init_device_mesh(
            self._device_type,
            (self.size // shard_size, shard_size),
            mesh_dim_names=("copies", "shards"),
        )
        for layer in model.gpt_neox.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")
        self._copies = self.size // shard_size

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    @override
    def sum_of_parts(self, tensor: Tensor) -> Tensor:
        return self.sum(tensor) / self._copies

    @override
    def maximum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    @override
    def set_last_microbatch(self, model: NeoX, is_last: bool) -> None:
        # Whole gradients are summed up locally: they are in memory anyway. Divided ones are reduced
        # after every microbatch, in groups; between groups once.
        assert isinstance(model, FSDPModule)
        if self._copies == self.size:
            model.set_requires_gradient_sync(is_last)
        else:
            model.set_requires_all_reduce(is_last)

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
        try:
            self.agree(
                f"its own {type(error).__name__}", error, grace=min(_LONGEST_GRACE, self._timeout)
            )
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
    def minimum(self, number: int) -> int:
        self._shared += 1
        self.post(f"shared/{self._shared}/{self.rank}", number)
        return min(
            int(self.await_post(f"shared/{self._shared}/{rank}")) for rank in range(self.size)
        )

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
            return f"the connection to the launcher is lost: {_first_line(error)}"
        late = [rank for rank, (count, _) in seen.items() if count < self._agreements] or others
        last = "; ".join(f"rank {rank} was last seen at {seen[rank][1]}" for rank in late)
        return f"{last}: it was killed, or hangs: {_first_line(error)}"

    @override
    def __exit__(
        self, _k: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None
    ) -> None:
        """Ends together with the other ranks; raises the error of another one.

        The process group stays open where they did not end together: `has_ended_alone`.
        """
        report = None
        if error is None:
            self.agree("the end of the run")
        else:
            report = self.report(error)
        if report is None or report.is_shared:
            dist.destroy_process_group()
        if report and report.error is not error:
            raise report.error from None


def join_processes(timeout_minutes: float) -> Processes:
    """Returns the processes of this run, as a launcher has described them in the environment.

    Raises:
        RewarmError: they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    return ProcessGroup(60 * timeout_minutes)


def has_ended_alone() -> bool:
    """Returns whether this process left a run without an agreement with the other ranks."""
    return dist.is_available() and dist.is_initialized()


def reshard(model: NeoX) -> None:
    """Frees the whole weights that an evaluation, which has no backward pass, has left behind."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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


def _first_line(error: BaseException) -> str:
    """Returns the first sentence of an error, without the place in the source of gloo."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[\S+\] ", "", line).partition(". ")[0]


def _record_collectives() -> None:
    """Has NCCL's flight recorder write what each rank was doing when a collective times out."""
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", "2000"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        os.environ.setdefault(name, value)
