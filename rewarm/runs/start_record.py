"""The contract of a start: what a run begins with, said before it begins and held to afterwards.

`rewarm check` prints it, `rewarm train` prints it again, writes it to the run directory, and
measures on the weights themselves that the promised rates are the ones applied.
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel

from rewarm import schedules
from rewarm.checkpoints.find_checkpoint import Base
from rewarm.checkpoints.lineage import recipe_of_checkpoint, recorded_digest
from rewarm.checkpoints.manifest import OPTIMIZER_FILE
from rewarm.checkpoints.training_state import Ancestor, read_training_state
from rewarm.errors import CheckpointError
from rewarm.quantities import format_count
from rewarm.recipe.recipe import Recipe


class StartRecord(BaseModel):
    """What a run starts from and with. Rates are absolute, tokens are target tokens."""

    weights: str
    """Where the weights come from."""
    sha256: str | None
    """Digest of the weights, where they are at hand."""
    tensors: str | None = None
    """How many tensors of the model were found in the weights, once they are loaded."""
    optimizer: str
    """Whether Adam's moments are fresh or carried."""
    data: str
    """Where in the data the run begins."""
    base_lr: float | None
    """The rate of the base's last update (on --resume: of this run's last one)."""
    first_lr: float
    """The rate of this run's next update."""
    tokens_before: int | None
    """What the model was trained on before this run; None where that is not known."""
    tokens_after: int | None
    """What it will have been trained on at the end of this run."""
    of_base: list[str] = []
    """How each rate came about that was written as one of the base's."""
    rates: dict[int, float]
    """Steps at which the rate is measured on the weights, and what the schedule says there."""

    def lines(self) -> list[tuple[str, str]]:
        """Returns what a person should know, as (heading, text)."""
        digest = f" (sha256 {self.sha256[:12]})" if self.sha256 else ""
        said = [
            ("begins", self.weights + digest),
            ("", f"{self.optimizer}; {self.data}"),
        ]
        if self.tensors:
            said.insert(1, ("", self.tensors))
        if self.base_lr is not None:
            said.append(("", f"lr {self.base_lr:.4g} at the last step → {self.first_lr:.4g} next"))
        said += [("", one) for one in self.of_base]
        if self.tokens_before is not None and self.tokens_after is not None:
            before, after = format_count(self.tokens_before), format_count(self.tokens_after)
            said.append(("", f"trained on {before} tokens → {after} at the end of this run"))
        return said


def describe_start(
    recipe: Recipe, base: Base | None, ancestors: list[Ancestor], resumed: Path | None = None
) -> StartRecord:
    """Returns the contract of a start.

    Args:
        recipe: what is to be done.
        base: where the weights come from, if from anywhere.
        ancestors: the models that the base descends from, itself the last.
        resumed: the checkpoint of this run that is gone on from, instead.

    Raises:
        CheckpointError: what is to be carried is not there, or is of something else.
    """
    model = recipe.model
    done = read_training_state(resumed) if resumed else None
    parent = ancestors[-1] if ancestors else None
    if resumed and done:
        weights = f"{resumed}: everything goes on behind step {done.step:,}"
        optimizer = "Adam's moments of that step"
        data = f"block {sum(done.blocks.values()):,} of the data"
    elif base and not model.fresh:
        at = f" at {base.revision}" if base.revision else ""
        weights = f"the weights of {base.name}{at} ({base.kind}" + (
            f", step {parent.step:,})" if parent and parent.step is not None else ")"
        )
        optimizer = (
            "Adam's moments are the base's (optimizer.carry)"
            if recipe.optimizer.carry
            else "fresh Adam moments"
        )
        if not (base.directory / OPTIMIZER_FILE).is_file():
            if recipe.optimizer.carry:
                raise CheckpointError(
                    f"{base.name}: has no Adam moments to carry (no {OPTIMIZER_FILE}: published "
                    "models come without, and GPT-NeoX pickles its own in files that rewarm never "
                    "opens); set optimizer.carry: false"
                )
            optimizer += " (the base has none to carry)"
        data = "the data from its beginning"
        if recipe.data.carry:
            blocks = carried_blocks(recipe, base)
            data = "the data behind " + ", ".join(
                f"block {count:,} of {name}" for name, count in blocks.items() if count
            )
    else:
        shape = model.preset or model.base or "the architecture in the recipe"
        weights = f"new weights (seed {recipe.seed}) in the shape of {shape}"
        optimizer, data = "fresh Adam moments", "the data from its beginning"
    step = min((done.step if done else 0) + 1, recipe.steps)
    last_lr = done.lr if done else parent.lrs[-1] if parent and parent.lrs else None
    given = model.base_lr
    if given is not None and parent and parent.lrs and not math.isclose(given, parent.lrs[-1]):
        raise CheckpointError(
            f"model.base_lr is {given:g}, and the last rate of {parent.name} was "
            f"{parent.lrs[-1]:g}; take base_lr away"
        )
    known = [one.tokens for one in ancestors]
    before = None if None in known else sum(one for one in known if one is not None)
    return StartRecord(
        weights=weights,
        sha256=recorded_digest(resumed) if resumed else parent.sha256 if parent else None,
        optimizer=optimizer,
        data=data,
        base_lr=last_lr,
        first_lr=recipe.lr(step),
        tokens_before=before,
        tokens_after=None if before is None else before + recipe.steps * recipe.batch.tokens,
        of_base=list(schedules.of_base(recipe.schedule)),
        rates=_promised(recipe, step),
    )


def carried_blocks(recipe: Recipe, base: Base) -> dict[str, int]:
    """Returns the blocks that the base has taken of each corpus, for a run that goes on there.

    Raises:
        CheckpointError: the base has no place in this data.
    """
    said = f"{base.name}: data.carry goes on in the base's data, and"
    if base.kind != "rewarm checkpoint":
        raise CheckpointError(
            f"{said} this is a {base.kind}, which says nothing of its data; take data.carry away, "
            "or name a rewarm checkpoint"
        )
    then = recipe_of_checkpoint(base.directory)
    settings: dict[str, tuple[object, object]] = {
        "seed": (then.seed, recipe.seed),
        "data.context": (then.data.context, recipe.data.context),
        "data.lanes": (then.data.lanes, recipe.data.lanes),
    }
    common = [name for name in recipe.data.train if name in then.data.train]
    for name in common:
        orders = (then.data.train[name].order, recipe.data.train[name].order)
        settings[f"data.train.{name}.order"] = orders
    differ = [f"{path} was {a} and is {b}" for path, (a, b) in settings.items() if a != b]
    if not common:
        mine, its = ", ".join(recipe.data.train), ", ".join(then.data.train)
        differ = [f"no corpus of that name: it has {its}, the recipe {mine}"]
    if differ:
        raise CheckpointError(
            f"{said} that order of blocks is another here: {'; '.join(differ)}; make them the "
            "same, or take data.carry away"
        )
    done = read_training_state(base.directory)
    return {
        name: done.carried.get(name, 0) + done.blocks.get(name, 0) for name in recipe.data.train
    }


def _promised(recipe: Recipe, step: int) -> dict[int, float]:
    """Returns two steps from `step` on and around each mark of the schedule, and the last step."""
    steps = {step, step + 1, recipe.steps}
    for place in schedules.marks(recipe.schedule).values():
        steps |= {round(place * recipe.steps), round(place * recipe.steps) + 1}
    return {one: recipe.lr(one) for one in sorted(steps) if step <= one <= recipe.steps}
