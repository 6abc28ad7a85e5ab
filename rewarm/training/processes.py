"""What a run asks of its processes, one per GPU; here for a run that has only one.

`host_agreement.py` has how several agree on the host, `distributed.py` what they do on the devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

from torch import Tensor

from rewarm.model.neox import NeoX


class Report(NamedTuple):
    """How the other ranks took an error."""

    error: BaseException
    """What to raise: the error, or the one that it follows from."""
    is_shared: bool
    """Whether all ranks handle it now, after the same step."""


class Processes:
    """The processes of a run: here the only one; `distributed.py` has several."""

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

    def free_whole_weights(self, model: NeoX) -> None:
        """Frees the whole weights that a forward pass without a backward pass leaves behind."""

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

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, which JSON can hold, in their order."""
        return [value]

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
