"""How far a run has come: the part of a checkpoint that is not tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rewarm.errors import CheckpointError
from rewarm.stream import Position
from rewarm.untrusted import read_as

Whole = Annotated[int, Field(strict=True, ge=0, le=2**53)]


class Progress(BaseModel):
    """How far a run has come, and everything beside tensors that it needs to go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Whole
    """Optimiser updates done."""
    tokens: Whole
    """Target tokens trained on."""
    lr: float
    """The rate of the last update."""
    blocks: dict[str, Whole]
    """Blocks taken so far, per corpus."""
    stream: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Chained digest of every token so far."""
    corpora: dict[str, str]
    """Digest of each training corpus, so that a run cannot go on with other data unnoticed."""
    baseline: dict[str, float]
    """Loss of every validation set before the first update; forgetting is measured against it."""
    schedule: dict[str, str]
    """Name, distribution and version of the plug-in that gave the rates."""
    rewarm: str
    """The version that wrote this."""

    def after(self, step: int, tokens: int, lr: float, position: Position) -> Progress:
        """Returns the progress behind one more step."""
        return self.model_copy(
            update={
                "step": step,
                "tokens": self.tokens + tokens,
                "lr": lr,
                "blocks": position.blocks,
                "stream": position.digest,
            }
        )

    @property
    def position(self) -> Position:
        """Where the stream stands."""
        return Position(self.blocks, self.stream)


def read_progress(directory: Path) -> Progress:
    """Returns how far the run of a checkpoint had come.

    Raises:
        CheckpointError: progress.json is missing or damaged.
    """
    path = directory / "progress.json"
    try:
        return read_as(Progress, path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None
