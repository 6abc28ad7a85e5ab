"""The interface of a tracker: settings, and a context manager that logs a run's metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

TRACKER_CONTRACT = 1
"""The version of the contract that subclasses of `Tracker` fulfill; each declares its version."""

Log = Callable[[int, Mapping[str, float]], object]
"""`log(step, values)`: values are finite, with names such as `train/loss`; steps never fall."""


class TrackedRun(NamedTuple):
    """The run that a tracker logs."""

    id: str
    """16 hexadecimal digits, the same each time the run is resumed."""
    name: str
    """The name of the run directory."""
    folder: Path
    """A folder of this tracker inside the run directory; it exists, and its path is absolute."""
    recipe: dict[str, Any]
    """The recipe with all defaults, without the settings of trackers."""
    resumed_from: int | None
    """The step after which a resumed run continues; None if the run starts with step 1."""


class Tracker(BaseModel, ABC):
    """A program that a run sends its metrics to; its fields are the settings in the recipe.

    Subclasses set `contract: ClassVar[int] = 1`, and import the library that they use in `check`
    and `open` only. Both are called in a process of the tracker's own: what they raise, print or
    wait for does not reach the run.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    contract: ClassVar[int]
    removes_repeated_steps: ClassVar[bool] = False
    """Whether `open` removes what was logged after `resumed_from`. If not, lines of a resumed run
    that were logged before the stop are not logged again."""

    def check(self) -> None:
        """Raises an exception if the tracker cannot be used; called before a run starts."""

    @abstractmethod
    def open(self, run: TrackedRun) -> AbstractContextManager[Log]:
        """Starts or continues the tracker's own record of a run; yields the function that logs."""
