"""The start of a run, on record: weights, optimizer state, data position and rates.

`rewarm check` prints it, `rewarm train` prints it again and writes it to events.jsonl, and training
measures on the weights themselves that the promised rates are the ones applied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from rewarm import schedules
from rewarm.checkpoints.find_checkpoint import BaseCheckpoint, ignored_settings
from rewarm.checkpoints.manifest import sha256_in_manifest
from rewarm.checkpoints.part_files import has_optimizer_state
from rewarm.checkpoints.training_state import Ancestor, TrainingState
from rewarm.errors import CheckpointError
from rewarm.paths import short_path
from rewarm.quantities import format_count
from rewarm.recipe.recipe import Recipe

_HIGH_RATE = 0.1
"""Learning rates of this size and above are mistakes, such as 30 for 3e-4."""


class StartRecord(BaseModel):
    """What a run starts from and with. Rates are absolute, tokens are target tokens."""

    weights: str
    """Where the weights come from."""
    sha256: str | None
    """Digest of the weights, if it is known."""
    tensors: str | None = None
    """How many of the model's tensors were in the weights, once they are loaded."""
    vocabulary: str | None = None
    """The new tokens of a base (model.tokenizer); None if it keeps its tokenizer."""
    optimizer: str
    """Whether the optimizer state is fresh or carried over."""
    data: str
    """The data position that the run starts at."""
    base_lr: float | None
    """The rate of the base's last update (on --resume: of this run's last one)."""
    first_lr: float
    """The rate of this run's next update."""
    tokens_before: int | None
    """Tokens that the model was trained on before this run; None if that is not known."""
    tokens_after: int | None
    """Tokens that it will have been trained on at the end of this run."""
    of_base: list[str] = []
    """The arithmetic of each rate that was written as a multiple of the base's last one."""
    ignored: list[str] = []
    """What the base's config.json asks for that rewarm leaves out."""
    rates: dict[int, float]
    """Steps at which the rate is measured on the weights, and what the schedule says there."""

    def lines(self) -> list[tuple[str, str]]:
        """Returns the record for people, as (heading, text)."""
        digest = f" (sha256 {self.sha256[:12]})" if self.sha256 else ""
        lines = [("start", self.weights + digest)]
        if self.tensors:
            lines.append(("", self.tensors))
        if self.vocabulary:
            lines.append(("", f"new tokens: {self.vocabulary}"))
        lines.append(("", f"{self.optimizer}; {self.data}"))
        if self.base_lr is not None:
            lines.append(("", f"lr {self.base_lr:.4g} at the last step → {self.first_lr:.4g} next"))
        lines += [("", arithmetic) for arithmetic in self.of_base]
        if self.tokens_before is not None and self.tokens_after is not None:
            before, after = format_count(self.tokens_before), format_count(self.tokens_after)
            lines.append(("", f"trained on {before} tokens → {after} at the end of this run"))
        warnings = [*self.ignored, *high_rate_warning(self.rates)]
        lines += [("", f"warning: {sentence}") for sentence in warnings]
        return lines


def high_rate_warning(rates: Mapping[int, float]) -> list[str]:
    """Returns a sentence if the learning rate, by step, is one that no model survives."""
    step = max(rates, key=rates.__getitem__)
    if rates[step] < _HIGH_RATE:
        return []
    return [
        f"the learning rate is {rates[step]:g} at step {step:,}; AdamW changes each weight by "
        "about that much in a step, and new weights are about 0.02: usual peaks are 1e-5 to 1e-2"
    ]


class Starting(BaseModel):
    """The part of the record that differs between the three ways to start."""

    weights: str
    sha256: str | None = None
    optimizer: str = "fresh optimizer state"
    data: str = "data from the beginning"
    step: int = 1
    """The first step to be taken."""
    last_lr: float | None = None


def _not_downloaded(base: BaseCheckpoint) -> str:
    if base.kind != "hub model" or base.directory.is_dir():
        return ""
    return ", not downloaded yet: whether its tokenizer is that of the shards is checked then"


def describe_start(
    recipe: Recipe,
    ancestors: list[Ancestor],
    *,
    base: BaseCheckpoint | None = None,
    carried: dict[str, int] | None = None,
    resume_state: tuple[Path, TrainingState] | None = None,
    vocabulary: str | None = None,
) -> StartRecord:
    """Returns the record of a start.

    Args:
        recipe: the recipe to run.
        ancestors: the models that the weights descend from, the direct parent last.
        base: the base model that weights or architecture come from, if any.
        carried: blocks of each corpus that the base has read (data.carry).
        resume_state: the run's own checkpoint and training state, on --resume.
        vocabulary: the new tokens of the base, in words.

    Raises:
        CheckpointError: optimizer state is to be carried and the base has none, or
            `model.base_lr` contradicts the base.
    """
    if resume_state:
        start = _resumed(recipe, *resume_state)
    elif base and not recipe.model.fresh:
        start = _from_base(recipe, base, ancestors[-1] if ancestors else None, carried or {})
    else:
        source = recipe.model.preset or short_path(recipe.model.base or "the recipe")
        start = Starting(weights=f"new weights (seed {recipe.seed}), architecture of {source}")
    counts = [ancestor.tokens for ancestor in ancestors]
    before = None if None in counts else sum(count for count in counts if count is not None)
    return StartRecord(
        weights=start.weights,
        sha256=start.sha256,
        vocabulary=vocabulary,
        optimizer=start.optimizer,
        data=start.data,
        base_lr=start.last_lr,
        first_lr=recipe.lr(start.step),
        tokens_before=before,
        tokens_after=None if before is None else before + recipe.steps * recipe.batch.tokens,
        of_base=list(schedules.of_base(recipe.schedule)),
        ignored=ignored_settings(base.directory) if base else [],
        rates=_measured_rates(recipe, start.step),
    )


def _resumed(recipe: Recipe, checkpoint: Path, state: TrainingState) -> Starting:
    return Starting(
        weights=f"{checkpoint}: resumes after step {state.step:,}",
        sha256=sha256_in_manifest(checkpoint),
        optimizer="optimizer state of that step",
        data=f"data from block {sum(state.blocks.values()):,}",
        step=min(state.step + 1, recipe.steps),
        last_lr=state.lr,
    )


def _from_base(
    recipe: Recipe, base: BaseCheckpoint, parent: Ancestor | None, carried: dict[str, int]
) -> Starting:
    step = f", step {parent.step:,}" if parent and parent.step is not None else ""
    revision = f" at {base.revision}" if base.revision else ""
    optimizer = "fresh optimizer state"
    if recipe.optimizer.carry:
        optimizer = "optimizer state of the base (optimizer.carry)"
    if not has_optimizer_state(base.directory):
        if recipe.optimizer.carry:
            raise CheckpointError(
                f"{base.name}: has no optimizer state to carry (no optimizer.safetensors: "
                "published models come without, and GPT-NeoX pickles its own in files that rewarm "
                "never opens); set optimizer.carry: false"
            )
        optimizer += " (the base has none to carry)"
    data = "data from the beginning"
    if recipe.data.carry:
        blocks = (f"block {count:,} of {name}" for name, count in carried.items() if count)
        data = f"data from {', '.join(blocks)}"
    last_lr = parent.lrs[-1] if parent and parent.lrs else None
    given = recipe.model.base_lr
    if parent and given is not None and last_lr is not None and not math.isclose(given, last_lr):
        raise CheckpointError(
            f"model.base_lr is {given:g}, and the last rate of {parent.name} was {last_lr:g}; "
            "remove model.base_lr"
        )
    return Starting(
        weights=f"weights of {base.name}{revision} ({base.kind}{step}{_not_downloaded(base)})",
        sha256=parent.sha256 if parent else None,
        optimizer=optimizer,
        data=data,
        last_lr=last_lr,
    )


def _measured_rates(recipe: Recipe, step: int) -> dict[int, float]:
    """Returns the rates of two steps from `step` on, of two at each mark, and of the last step."""
    steps = {step, step + 1, recipe.steps}
    for progress in schedules.marks(recipe.schedule).values():
        steps |= {round(progress * recipe.steps), round(progress * recipe.steps) + 1}
    return {
        measured: recipe.lr(measured)
        for measured in sorted(steps)
        if step <= measured <= recipe.steps
    }
