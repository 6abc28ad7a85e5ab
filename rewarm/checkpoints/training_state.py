"""How far a run has come: the part of a checkpoint that is not tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rewarm.data.batch_loader import DataPosition
from rewarm.errors import CheckpointError, printable
from rewarm.quantities import format_count
from rewarm.safe_loading import read_json_as

Whole = Annotated[int, Field(strict=True, ge=0, le=2**53)]


class Ancestor(BaseModel):
    """A model that a run started from; what is not known about it is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As the recipe of its child called it."""
    directory: str
    """Where it was found then."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, as the recipe called it."""
    commit: str | None = None
    """The commit that this was."""
    sha256: str | None = None
    """Digest of its weights."""
    recipe: str | None = None
    """sha256 of the recipe that made it."""
    step: Whole | None = None
    tokens: Whole | None = None
    """Target tokens of its own run, without those of its ancestors."""
    lrs: tuple[float, float, float] | None = None
    """The first, the highest and the last rate of its own run."""
    schedule: dict[str, str] = {}
    """Name, distribution and version of the plug-in that gave its rates."""
    losses: dict[str, float] = {}
    """Its validation losses when they were last measured, in nats."""

    def in_words(self) -> str:
        """Returns a line for a person."""
        said = [self.name + (f" at {self.revision}" if self.revision else "")]
        if self.step is not None:
            said.append(f"step {self.step:,}")
        if self.tokens is not None:
            said.append(f"{format_count(self.tokens)} tokens")
        if self.lrs:
            said.append("lr " + " → ".join(f"{lr:.3g}" for lr in self.lrs))
        if self.schedule:
            said.append(" ".join(self.schedule.get(key, "?") for key in ("name", "version")))
        said += [f"{name} {loss:.4f}" for name, loss in self.losses.items()]
        return printable("  ".join(said))  # a stranger's checkpoint may have said it


class TrainingState(BaseModel):
    """How far a run has come, and everything beside tensors that it needs to go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Whole
    """Optimiser updates done."""
    tokens: Whole
    """Target tokens trained on."""
    lrs: tuple[float, float, float] | None
    """The first, the highest and the last rate so far; None before the first update."""
    blocks: dict[str, Whole]
    """Blocks taken so far, per corpus."""
    carried: dict[str, Whole]
    """Blocks that the base had taken of each corpus before, where this run goes on (data.carry)."""
    stream: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Chained digest of every token so far."""
    corpora: dict[str, str]
    """Digest of each training corpus, so that a run cannot go on with other data unnoticed."""
    baseline: dict[str, float]
    """Loss of every validation set before the first update; forgetting is measured against it."""
    losses: dict[str, float]
    """Loss of every validation set when it was last measured, in nats."""
    guard: dict[str, Any]
    """What the guard remembers of the last steps."""
    schedule: dict[str, str]
    """Name, distribution and version of the plug-in that gave the rates."""
    curve: list[float] = []
    """The rate at every hundredth of the run, so that a plug-in cannot change it unnoticed."""
    lineage: list[Ancestor]
    """The models that this run descends from, the oldest first."""
    rewarm: str
    """The version that wrote this."""

    def after(self, step: int, tokens: int, lr: float, position: DataPosition) -> TrainingState:
        """Returns the progress behind one more step."""
        first, highest, _ = self.lrs or (lr, lr, lr)
        return self.model_copy(
            update={
                "step": step,
                "tokens": self.tokens + tokens,
                "lrs": (first, max(highest, lr), lr),
                "blocks": position.blocks,
                "stream": position.digest,
            }
        )

    @property
    def lr(self) -> float | None:
        """The rate of the last update."""
        return self.lrs[-1] if self.lrs else None

    @property
    def position(self) -> DataPosition:
        """Where the stream stands."""
        return DataPosition(self.blocks, self.stream)


def read_training_state(directory: Path) -> TrainingState:
    """Returns how far the run of a checkpoint had come.

    Raises:
        CheckpointError: progress.json is missing or damaged.
    """
    path = directory / "progress.json"
    try:
        return read_json_as(TrainingState, path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None
