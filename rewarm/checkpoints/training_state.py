"""Training state: the progress of a run, which is stored in a checkpoint as progress.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import BaseModel, ConfigDict, Field, Strict

from rewarm.checkpoints.manifest import MANIFEST, verify_checkpoint
from rewarm.data.batch_loader import DataPosition
from rewarm.errors import CheckpointError, printable
from rewarm.quantities import format_count, format_rates
from rewarm.safe_loading import read_json_as

_NonNegative = Annotated[int, Strict(), Interval(ge=0, le=2**53)]


class WeightedCheckpoint(BaseModel):
    """A checkpoint that was merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: str
    """Its directory at that time."""
    step: _NonNegative
    sha256: str
    """sha256 of its weights."""
    weight: Annotated[float, Field(ge=0, le=1)]


class Averaging(BaseModel):
    """How averaged weights were made of those of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["mean", "ema", "1-sqrt"]
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `ema`: the share that an older average keeps."""
    checkpoints: list[WeightedCheckpoint] = []
    """The checkpoints that were merged, the oldest first; none if all steps were averaged."""

    def one_line(self) -> str:
        """Returns the way of averaging, and what was averaged, as text."""
        decay = "" if self.decay is None else f" with decay {self.decay:g}"
        if not self.checkpoints:
            return f"{self.method}{decay} of the weights of all steps"
        first, last = self.checkpoints[0].step, self.checkpoints[-1].step
        count = len(self.checkpoints)
        return f"{self.method}{decay} of {count} checkpoints, steps {first:,} to {last:,}"


class Ancestor(BaseModel):
    """One model in a lineage: an ancestor of a run; unknown values are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name in the recipe of the run that started from it."""
    directory: str
    """Its directory at that time."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, as given in that recipe."""
    commit: str | None = None
    """The commit that the revision resolved to."""
    sha256: str | None = None
    """sha256 of its weights."""
    recipe: str | None = None
    """sha256 of the recipe that it was trained with."""
    step: _NonNegative | None = None
    """Optimizer updates of its run."""
    tokens: _NonNegative | None = None
    """Target tokens of its run, without those of its ancestors."""
    lrs: tuple[float, float, float] | None = None
    """The first, the highest and the last learning rate of its run."""
    schedule: dict[str, str] = {}
    """Name, distribution and version of the schedule plug-in."""
    losses: dict[str, float] = {}
    """Its last measured loss on each validation set, in nats."""
    corpora: dict[str, str] = {}
    """What its run trained on: the shards of each corpus, by name; empty if not known."""
    averaging: Averaging | None = None
    """How its weights were made of those of its run; None for the weights of the step."""

    def one_line(self) -> str:
        """Returns `facts` as one line of text."""
        return "  ".join(self.facts())

    def facts(self) -> list[str]:
        """Returns name, step, tokens, learning rates, schedule and losses, a text for each."""
        parts = [self.name + (f" at {self.revision}" if self.revision else "")]
        if self.step is not None:
            parts.append(f"step {self.step:,}")
        if self.averaging:
            parts.append(self.averaging.one_line())
        if self.tokens is not None:
            parts.append(f"{format_count(self.tokens)} tokens")
        if self.lrs:
            parts.append(f"lr {format_rates(*self.lrs)}")
        if self.schedule:
            name, version = (self.schedule.get(key, "?") for key in ("name", "version"))
            parts.append(f"schedule {name} {version}")
        parts += [f"{name} {loss:.4f}" for name, loss in self.losses.items()]
        return [printable(part) for part in parts]  # the names come from an untrusted file


class WeightChange(BaseModel):
    """Where a resume changed the weights of the corpora."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: _NonNegative
    """Optimizer updates done before it."""
    blocks: dict[str, _NonNegative]
    """Blocks trained on before it, per corpus."""


class TrainingState(BaseModel):
    """The progress of a run: all that is needed to resume it, except tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: _NonNegative
    """Optimizer updates done."""
    tokens: _NonNegative
    """Target tokens trained on."""
    lrs: tuple[float, float, float] | None
    """The first, the highest and the last learning rate so far; None before the first update."""
    blocks: dict[str, _NonNegative]
    """Blocks trained on so far, per corpus."""
    carried: dict[str, _NonNegative]
    """Blocks per corpus that the base model had trained on, which this run skips (data.carry)."""
    weight_change: WeightChange | None = None
    """The last resume with other corpus weights; None if they have held from the first step on."""
    stream: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Digest of every token so far."""
    corpora: dict[str, str]
    """Digest of each training corpus, to detect a resume with different data."""
    validation: dict[str, str] = {}
    """Digest of the data of each validation set, to detect that its baseline is of other data."""
    baseline: dict[str, float]
    """Loss on each validation set before the first update, to compute forgetting from."""
    baseline_steps: dict[str, _NonNegative] = {}
    """The step of a baseline that was measured later: the validation set was added or changed."""
    losses: dict[str, float]
    """Last measured loss on each validation set, in nats."""
    losses_step: _NonNegative | None = None
    """The step after which they were measured; None in states of earlier versions."""
    evaluation_owed: bool = False
    """Whether the evaluation of this step is due and was stopped: a resume repeats it."""
    guard: dict[str, Any]
    """State of the divergence guard."""
    schedule: dict[str, str]
    """Name, distribution and version of the schedule plug-in."""
    curve: list[float] = []
    """Learning rate at each hundredth of the run, to detect that a plug-in has changed."""
    lineage: list[Ancestor]
    """The ancestors of this run, the oldest first."""
    averaging: Averaging | None = None
    """How the weights beside this state were made of those of the run; None for those of the
    step."""
    processes: Annotated[int, Strict(), Interval(ge=1, le=2**24)] = 1
    """Processes that trained the last step, on which the last bits depend too."""
    cpu_threads: _NonNegative | None = None
    """Threads that computed, on which the last bits depend; None on a GPU, or where not known."""
    rewarm: str
    """Version of rewarm that wrote this state."""

    def of_average(self, averaging: Averaging) -> TrainingState:
        """Returns the state beside averaged weights, of which no losses are known."""
        update = {"averaging": averaging, "losses": {}, "losses_step": None, "guard": {}}
        return self.model_copy(update={**update, "evaluation_owed": False})

    def after_step(
        self, step: int, tokens: int, lr: float, position: DataPosition, *, evaluation_owed: bool
    ) -> TrainingState:
        """Returns the state after one more step.

        Args:
            step: number of the step.
            tokens: target tokens in the batch of the step.
            lr: learning rate of the update.
            position: data position after the batch.
            evaluation_owed: whether an evaluation is due after the step.
        """
        first, highest, _ = self.lrs or (lr, lr, lr)
        return self.model_copy(
            update={
                "step": step,
                "tokens": self.tokens + tokens,
                "lrs": (first, max(highest, lr), lr),
                "blocks": position.blocks_read,
                "stream": position.digest,
                "evaluation_owed": evaluation_owed,
            }
        )

    def is_complete(self, steps: int) -> bool:
        """Returns whether a run of so many steps has nothing left to train or to evaluate."""
        return self.step >= steps and not self.evaluation_owed

    @property
    def lr(self) -> float | None:
        """Learning rate of the last update; None before the first update."""
        return self.lrs[-1] if self.lrs else None

    @property
    def position(self) -> DataPosition:
        """The data position after the last step."""
        return DataPosition(self.blocks, self.stream)


def read_training_state(directory: Path) -> TrainingState:
    """Returns the training state stored in a checkpoint.

    Raises:
        CheckpointError: progress.json is missing, damaged, or not that of this checkpoint.
    """
    path = directory / "progress.json"
    if (directory / MANIFEST).is_file():
        verify_checkpoint(directory, only="progress.json")
    try:
        state = read_json_as(TrainingState, path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint") from None
    name = re.fullmatch(r"step-(\d{8,})", directory.name)
    if name and int(name[1]) != state.step:
        raise CheckpointError(
            f"{directory}: its progress.json is of step {state.step:,}; use another checkpoint, or "
            "rename the folder"
        )
    return state
