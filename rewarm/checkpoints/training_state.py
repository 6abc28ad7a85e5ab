"""Training state: how far a run has come. It is stored in a checkpoint as progress.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rewarm.data.batch_loader import DataPosition
from rewarm.errors import CheckpointError, printable
from rewarm.quantities import format_count
from rewarm.safe_loading import read_json_as

_NonNegative = Annotated[int, Field(strict=True, ge=0, le=2**53)]


class Ancestor(BaseModel):
    """A model that a run started from, directly or indirectly; unknown values are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name that the recipe of its descendant gave it."""
    directory: str
    """Its folder at that time."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, as the recipe named it."""
    commit: str | None = None
    """The commit that the revision resolved to."""
    sha256: str | None = None
    """Digest of its weights."""
    recipe: str | None = None
    """sha256 of the recipe that it was trained with."""
    step: _NonNegative | None = None
    tokens: _NonNegative | None = None
    """Target tokens of its own run, without those of its ancestors."""
    lrs: tuple[float, float, float] | None = None
    """The first, the highest and the last rate of its own run."""
    schedule: dict[str, str] = {}
    """Name, distribution and version of the schedule plug-in."""
    losses: dict[str, float] = {}
    """Its validation losses when they were last measured, in nats."""

    def one_line(self) -> str:
        """Returns name, step, tokens, rates, schedule and losses as one line of text."""
        parts = [self.name + (f" at {self.revision}" if self.revision else "")]
        if self.step is not None:
            parts.append(f"step {self.step:,}")
        if self.tokens is not None:
            parts.append(f"{format_count(self.tokens)} tokens")
        if self.lrs:
            parts.append("lr " + " → ".join(f"{lr:.3g}" for lr in self.lrs))
        if self.schedule:
            parts.append(" ".join(self.schedule.get(key, "?") for key in ("name", "version")))
        parts += [f"{name} {loss:.4f}" for name, loss in self.losses.items()]
        return printable("  ".join(parts))  # the names come from an untrusted file


class TrainingState(BaseModel):
    """How far a run has come: everything but tensors that is needed to resume it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: _NonNegative
    """Optimizer updates done."""
    tokens: _NonNegative
    """Target tokens trained on."""
    lrs: tuple[float, float, float] | None
    """The first, the highest and the last rate so far; None before the first update."""
    blocks: dict[str, _NonNegative]
    """Blocks trained on so far, per corpus."""
    carried: dict[str, _NonNegative]
    """Blocks of each corpus that the base had trained on, where this run continues (data.carry)."""
    stream: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Chained digest of every token so far."""
    corpora: dict[str, str]
    """Digest of each training corpus, so that a run cannot be resumed with other data unnoticed."""
    baseline: dict[str, float]
    """Loss of every validation set before the first update; forgetting is measured against it."""
    losses: dict[str, float]
    """Loss of every validation set when it was last measured, in nats."""
    guard: dict[str, Any]
    """State of the divergence guard."""
    schedule: dict[str, str]
    """Name, distribution and version of the schedule plug-in."""
    curve: list[float] = []
    """The rate at every hundredth of the run, so that a plug-in cannot change it unnoticed."""
    lineage: list[Ancestor]
    """The models that this run descends from, the oldest first."""
    rewarm: str
    """The version of rewarm that wrote this."""

    def after_step(
        self, step: int, tokens: int, lr: float, position: DataPosition
    ) -> TrainingState:
        """Returns the state after one more step.

        Args:
            step: its number.
            tokens: target tokens in its batch.
            lr: the rate of its update.
            position: the data position after its batch.
        """
        first, highest, _ = self.lrs or (lr, lr, lr)
        return self.model_copy(
            update={
                "step": step,
                "tokens": self.tokens + tokens,
                "lrs": (first, max(highest, lr), lr),
                "blocks": position.blocks_read,
                "stream": position.digest,
            }
        )

    @property
    def lr(self) -> float | None:
        """The rate of the last update."""
        return self.lrs[-1] if self.lrs else None

    @property
    def position(self) -> DataPosition:
        """The data position after the last step."""
        return DataPosition(self.blocks, self.stream)


def read_training_state(directory: Path) -> TrainingState:
    """Returns the training state that is stored in a checkpoint.

    Raises:
        CheckpointError: progress.json is missing or damaged.
    """
    path = directory / "progress.json"
    try:
        return read_json_as(TrainingState, path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None
