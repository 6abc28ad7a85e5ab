"""What a recipe will do, as arithmetic a person can follow; no torch, no weights, no GPU."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from rewarm import schedules
from rewarm.checkpoints.find_checkpoint import Base, find_local_model, locate_base
from rewarm.checkpoints.lineage import ancestry
from rewarm.checkpoints.retention import most_checkpoints_at_once
from rewarm.data.corpus import check_epochs
from rewarm.data.mixture import Mixture
from rewarm.data.shard_source import ShardSource
from rewarm.errors import RewarmError
from rewarm.estimates import memory
from rewarm.model.architecture import Architecture
from rewarm.model.published_checkpoints import published_architecture
from rewarm.quantities import format_bytes, format_count
from rewarm.recipe.recipe import Recipe
from rewarm.runs.start_record import StartRecord, describe_start


class ModelSize(BaseModel):
    """The model's size."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    flops_per_token: int


class RateAtStep(BaseModel):
    """The learning rate of one step."""

    step: int
    what: str
    lr: float


class CorpusPlan(BaseModel):
    """What a corpus is asked for, and what it has."""

    needed: int
    there: int | None = None
    epochs: float | None = None
    share: float | None = None
    carried: int = 0
    """Tokens that the base had taken before (data.carry)."""
    weights: dict[int, float] = {}
    """The recipe's weight from each step on."""


class RunPlan(BaseModel):
    """Everything `rewarm check` says; `--json` prints it as it is."""

    run: str
    begins: StartRecord | None
    model: ModelSize | None
    budget: int
    steps: int
    tokens: int
    """Tokens that the whole steps take."""
    gpus: int
    microbatch: int | None
    """None where it is `auto`: found when training begins."""
    context: int
    accumulation: int | None
    batch_tokens: int
    schedule: str
    rates: list[RateAtStep]
    train: dict[str, CorpusPlan]
    validation: dict[str, CorpusPlan]
    evaluations: int
    checkpoints: int
    checkpoints_at_once: int
    """The most that are there at a time (keep)."""
    checkpoint_bytes: int | None
    memory: memory.MemoryEstimate | None
    """At the peak of a step; with one sequence at once, where the microbatch is `auto`."""
    memory_otherwise: dict[str, int]
    """Bytes at the peak with another setting of `memory`."""
    problems: list[str]
    """What stands in the way of training now, on this machine."""


def plan_run(recipe: Recipe, *, on_gpu: bool | None = None) -> tuple[RunPlan, RewarmError | None]:
    """Returns what a recipe will do, and the first thing that stands in its way, if any.

    `on_gpu`: whether it will run on one; where that is not said, as this machine has one or not.
    """
    problems: list[RewarmError] = []
    base, shape = find_model(recipe, problems)
    if shape:
        try:
            recipe.insist_on_widths(shape)
        except RewarmError as error:
            problems.append(error)
    trained = recipe.steps * recipe.batch.tokens
    needed = Mixture(recipe.weights).exact(recipe.steps * recipe.sequences)
    size = shape.parameters if shape else None
    plugin = schedules.origin(recipe.schedule.name)
    triton = _triton(recipe, on_gpu)
    found = RunPlan(
        run=recipe.run,
        begins=_beginning(recipe, base, problems),
        model=shape
        and ModelSize(
            parameters=shape.parameters,
            layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            vocabulary=shape.vocabulary,
            flops_per_token=shape.flops_per_token(recipe.data.context),
        ),
        budget=recipe.tokens,
        steps=recipe.steps,
        tokens=trained,
        gpus=1,
        microbatch=recipe.batch.microbatch,
        context=recipe.data.context,
        accumulation=recipe.batch.microbatch and recipe.accumulation,
        batch_tokens=recipe.batch.tokens,
        schedule=f"{plugin.name} ({plugin.distribution} {plugin.version})",
        rates=rates_at_marks(recipe),
        train={
            name: _train_set(recipe, name, float(blocks), problems)
            for name, blocks in needed.items()
        },
        validation={
            name: _validation_set(one.shards, one.tokens, problems)
            for name, one in recipe.data.validation.items()
        },
        evaluations=2 + _times(recipe, recipe.every.evaluate) if recipe.data.validation else 0,
        checkpoints=len(recipe.saves),
        checkpoints_at_once=most_checkpoints_at_once(recipe),
        checkpoint_bytes=size and 12 * size,
        memory=shape and memory.estimate_recipe_memory(recipe, shape, triton=triton),
        memory_otherwise=_otherwise(recipe, shape, triton) if shape else {},
        problems=[str(problem) for problem in problems],
    )
    return found, (problems[0] if problems else None)


def _otherwise(recipe: Recipe, shape: Architecture, triton: bool) -> dict[str, int]:
    other = "fast" if recipe.memory == "lean" else "lean"
    said = memory.estimate_recipe_memory(recipe, shape, triton=triton, lean=other == "lean")
    return {other: said.peak}


def _triton(recipe: Recipe, on_gpu: bool | None) -> bool:
    """Returns whether the Triton kernels will be used, as far as it shows without torch."""
    if on_gpu is None:
        on_gpu = Path("/dev/nvidiactl").exists()
    return recipe.kernels == "auto" and on_gpu


def rates_at_marks(recipe: Recipe) -> list[RateAtStep]:
    """Returns the rate at the first step, the schedule's own marks, the middle and the last."""
    places = {1: "first", max(1, recipe.steps // 2): "middle", recipe.steps: "last"}
    for what, progress in schedules.marks(recipe.schedule).items():
        step = round(progress * recipe.steps)
        if 0 < step < recipe.steps:
            places[step] = what
    return [RateAtStep(step=step, what=places[step], lr=recipe.lr(step)) for step in sorted(places)]


def plan_as_text(plan: RunPlan) -> str:
    """Returns the plan as lines to read."""
    lines = [("run", plan.run), *(plan.begins.lines() if plan.begins else [])]
    if shape := plan.model:
        lines.append(
            (
                "model",
                f"{shape.parameters:,} parameters: {shape.layers} layers × {shape.hidden:,} "
                f"wide, {shape.heads} heads, {shape.vocabulary:,} embedding rows",
            )
        )
    lines += [
        (
            "budget",
            f"{plan.budget:,} tokens / {plan.batch_tokens:,} a step = {plan.steps:,} steps"
            + (f" ({plan.tokens:,} tokens)" if plan.tokens != plan.budget else ""),
        ),
        (
            "batch",
            f"{plan.gpus} GPU × {plan.microbatch} sequences × {plan.context:,} tokens × "
            f"{plan.accumulation} accumulated = {plan.batch_tokens:,} tokens"
            if plan.microbatch
            else f"{plan.gpus} GPU × {plan.batch_tokens // plan.context:,} sequences × "
            f"{plan.context:,} tokens = {plan.batch_tokens:,} tokens, as many at once as fit",
        ),
        ("schedule", plan.schedule),
    ]
    lines += [("", f"step {one.step:>9,}  lr {one.lr:.4e}  {one.what}") for one in plan.rates]
    for key, corpora in (("data", plan.train), ("measured", plan.validation)):
        said = _corpora(corpora)
        lines += list(zip([key, *[""] * len(said)], said, strict=False))
    measured = f"{plan.evaluations} evaluations, the first before step 1"
    lines.append(("", measured) if plan.validation else ("measured", "nothing: no validation set"))
    if plan.checkpoint_bytes is not None:
        most = plan.checkpoints_at_once
        at_once = f", at most {most} at once" if most < plan.checkpoints else ""
        lines.append(
            (
                "saved",
                f"{plan.checkpoints} checkpoints{at_once} × "
                f"{format_bytes(plan.checkpoint_bytes)} = "
                f"{format_bytes(most * plan.checkpoint_bytes)}",
            )
        )
    if plan.memory:
        one = "" if plan.microbatch else ", with one sequence at once"
        lines.append(("memory", plan.memory.in_words() + one))
        for setting, peak in plan.memory_otherwise.items():
            lines.append(("", f"{format_bytes(peak)} at the peak with memory: {setting}"))
    return "\n".join(f"{key:<10}{text}" for key, text in lines)


def _corpora(corpora: dict[str, CorpusPlan]) -> list[str]:
    width = max(map(len, corpora), default=0)
    lines = []
    for name, one in corpora.items():
        share = f"{one.share:>6.1%} of the tokens: " if one.share is not None else ""
        there = f"of {format_count(one.there)} there" if one.there else "and no shards here"
        epochs = f" = {one.epochs:.2f} epochs" if one.epochs is not None and one.share else ""
        lines.append(f"{name:<{width}}  {share}{format_count(one.needed)} tokens {there}{epochs}")
        if len(one.weights) > 1:
            said = ", ".join(
                f"{weight:g} from step {step:,}" for step, weight in one.weights.items()
            )
            lines.append(f"{'':<{width}}  weight {said}")
    return lines


def find_model(
    recipe: Recipe, problems: list[RewarmError]
) -> tuple[Base | None, Architecture | None]:
    """Returns a recipe's base and shape; why there is none is added to the problems."""
    if recipe.model.base is None:
        return None, recipe.model.shape
    name, revision = recipe.model.base, recipe.model.revision
    try:
        known = published_architecture(name)
        if known and not find_local_model(name):  # no need to ask the hub
            return Base(name, Path(name), known, "hub model", revision), known
        base = locate_base(name, revision, weights=False)
    except RewarmError as error:
        problems.append(error)
        return None, None
    return base, base.architecture


def _beginning(
    recipe: Recipe, base: Base | None, problems: list[RewarmError]
) -> StartRecord | None:
    if recipe.model.base and not base:
        return None  # the reason is among the problems
    try:
        from_it = base and not recipe.model.fresh
        ancestors = ancestry(base, digest=False) if base and from_it else []
        return describe_start(recipe, base, ancestors)
    except RewarmError as error:
        problems.append(error)
        return None


def _train_set(recipe: Recipe, name: str, blocks: float, problems: list[RewarmError]) -> CorpusPlan:
    data = recipe.data
    found = CorpusPlan(
        needed=round(blocks) * data.context,
        share=blocks / (recipe.steps * recipe.sequences),
        weights={first // recipe.sequences + 1: weight for first, weight in recipe.weights[name]},
    )
    try:
        index = ShardSource(data.train[name].shards).index
        check_epochs(name, index, blocks, context=data.context, most=data.max_epochs)
    except RewarmError as error:
        problems.append(error)
        return found
    return found.model_copy(
        update={"there": index.tokens, "epochs": found.needed / max(1, index.tokens)}
    )


def _validation_set(shards: str, tokens: int | None, problems: list[RewarmError]) -> CorpusPlan:
    try:
        there = ShardSource(shards).index.tokens
    except RewarmError as error:
        problems.append(error)
        return CorpusPlan(needed=tokens or 0)
    return CorpusPlan(needed=min(tokens or there, there), there=there)


def _times(recipe: Recipe, every: int | None) -> int:
    """Returns how often something falls due before the last step."""
    return (recipe.steps - 1) // every if every else 0
