"""What a run will do, as arithmetic that can be followed: what `rewarm check` prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewarm import schedules
from rewarm.checkpoints.retention import most_checkpoints_at_once
from rewarm.checkpoints.training_state import WeightChange
from rewarm.estimates.gpu_plan import GpuPlan, gpu_lines, plan_gpus
from rewarm.estimates.memory import MemoryEstimate, estimate_recipe_memory
from rewarm.model.architecture import Architecture
from rewarm.quantities import format_bytes, format_count
from rewarm.recipe.batch_split import microbatch_on_cpu
from rewarm.recipe.gpu_sharing import split_on
from rewarm.recipe.recipe import Recipe
from rewarm.runs.corpus_mixture import corpus_mixture
from rewarm.runs.held_out import held_out_warnings
from rewarm.runs.resolve_run import ResolvedRun
from rewarm.runs.start_record import StartRecord


class ModelSize(BaseModel):
    """The model's size."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    activation: str = "gelu"
    flops_per_token: int


class RateAtStep(BaseModel):
    """The learning rate of one step."""

    step: int
    what: str
    """Why this step: `first`, `last`, or a mark of the schedule."""
    lr: float


class DatasetPlan(BaseModel):
    """What a run reads of a corpus or a validation set, and what that has."""

    model_config = ConfigDict(populate_by_name=True)

    needed: int
    """Tokens that the run reads."""
    available: int | None = Field(None, alias="there")
    """Tokens in its shards; None where they cannot be read."""
    epochs: float | None = None
    share: float | None = None
    """Of the run's tokens."""
    weights: dict[int, float] = {}
    """The recipe's weight from each step on."""
    read_before: int | None = None
    """Tokens read before these weights began to hold; None if they hold from step 1 on."""
    role: str | None = None
    """Of a validation set, and how it is known."""
    text: str | None = None
    """The text that is sharded before training, with its size; its tokens are not known before."""


class RunPlan(BaseModel):
    """Everything that `rewarm check` prints; `--json` prints it as it is."""

    model_config = ConfigDict(populate_by_name=True)

    run: str
    start: StartRecord | None = Field(alias="begins")
    model: ModelSize | None
    budget: int
    steps: int
    tokens: int
    """Tokens of the whole steps in the budget."""
    microbatch: int | None
    """None where it is `auto` on a GPU: found when training starts."""
    microbatch_is_auto: bool
    context: int
    accumulation: int | None
    """Microbatches of a step on each GPU."""
    gpus: GpuPlan | None = None
    """How several GPUs share the run; None on one."""
    batch_tokens: int
    schedule: str
    rates: list[RateAtStep]
    train: dict[str, DatasetPlan]
    validation: dict[str, DatasetPlan]
    evaluations: int
    checkpoints: int
    checkpoints_at_once: int
    """The most that are on disk at a time (keep)."""
    checkpoint_bytes: int | None
    device: Literal["CPU", "GPU"]
    """What the memory is estimated for: this machine's, unless GPUs were asked for."""
    device_note: str | None
    """That this machine has no GPU, and what that means for the precision."""
    memory: MemoryEstimate | None
    """At the peak of a step; with one sequence at once, where the microbatch is `auto`."""
    memory_elsewhere: int | None
    """Bytes at the peak on a GPU for a CPU, and the other way round; None if they are equal."""
    memory_otherwise: dict[str, int]
    """Bytes at the peak with another setting of `memory`."""
    warnings: list[str] = []
    """What makes the measured losses doubtful."""
    problems: list[str]
    """What prevents training now, on this machine."""


def plan_run(resolved: ResolvedRun, *, on_gpu: bool | None = None, gpus: int = 1) -> RunPlan:
    """Returns what a run will do.

    Args:
        resolved: the run.
        on_gpu: whether it will run on a GPU; None for as this machine has one or not.
        gpus: that share it.

    Raises:
        RecipeError: so many GPUs cannot share it.
    """
    recipe, architecture = resolved.recipe, resolved.architecture
    plugin = schedules.origin(recipe.schedule.name)
    note = cpu_note(recipe.precision) if on_gpu is None and not _has_gpu() else None
    on_gpu = note is None if on_gpu is None else on_gpu
    automatic = recipe.batch.microbatch is None
    if automatic and not on_gpu:
        recorded = resolved.resume_state and resolved.resume_state.microbatch
        sequences, context = recipe.sequences_per_step, recipe.data.context
        recipe = recipe.with_microbatch(recorded or microbatch_on_cpu(sequences, context))
    triton = on_gpu and recipe.kernels == "auto"
    shared = plan_gpus(recipe, architecture, gpus=gpus, triton=triton) if gpus > 1 else None
    memory_of = partial(estimate_recipe_memory, recipe, triton=triton, gpus=gpus)
    elsewhere = architecture and estimate_recipe_memory(
        recipe, architecture, triton=not on_gpu and recipe.kernels == "auto", gpus=gpus
    )
    other_memory = "fast" if recipe.memory == "lean" else "lean"
    state = resolved.resume_state and resolved.resume_state.state
    change = state.weight_change if state else None
    needed = corpus_mixture(recipe, change).blocks_needed()
    total = sum(needed.values())
    datasets = {
        name: _corpus(resolved, name, float(blocks), float(blocks / total), change)
        for name, blocks in needed.items()
    }
    return RunPlan(
        run=str(recipe.run_directory),
        start=resolved.start,
        model=architecture and _model_size(architecture, recipe.data.context),
        budget=recipe.tokens,
        steps=recipe.steps,
        tokens=recipe.steps * recipe.batch.tokens,
        microbatch=recipe.batch.microbatch,
        microbatch_is_auto=automatic,
        context=recipe.data.context,
        accumulation=recipe.batch.microbatch and split_on(recipe, gpus).parts,
        gpus=shared,
        batch_tokens=recipe.batch.tokens,
        schedule=f"{plugin.name} ({plugin.distribution} {plugin.version})",
        rates=rates_at_marks(recipe),
        train=datasets,
        validation={name: _validation_set(resolved, name) for name in recipe.data.validation},
        evaluations=_evaluations(recipe),
        checkpoints=recipe.checkpoint_count,
        checkpoints_at_once=most_checkpoints_at_once(recipe),
        checkpoint_bytes=architecture
        and (16 if recipe.optimizer.ema else 12) * architecture.parameters,
        device="GPU" if on_gpu else "CPU",
        device_note=note,
        memory=(memory := architecture and memory_of(architecture)),
        memory_elsewhere=elsewhere.peak
        if memory and elsewhere and elsewhere.peak != memory.peak
        else None,
        memory_otherwise={other_memory: memory_of(architecture, lean=other_memory == "lean").peak}
        if architecture
        else {},
        warnings=_held_out_warnings(resolved),
        problems=list(dict.fromkeys(map(str, resolved.problems))),
    )


def _held_out_warnings(resolved: ResolvedRun) -> list[str]:
    lineage = (
        [ancestor.corpora for ancestor in resolved.origin.ancestors] if resolved.origin else []
    )
    return held_out_warnings(resolved.recipe, lineage)


def cpu_note(precision: str) -> str:
    """Returns that a run is on a CPU for want of a GPU, and what that means for its precision."""
    slower = {
        "bf16": "; bf16 is slower than fp32 on most of them",
        "fp16": "; fp16 is slower than fp32 on most of them",
        "fp8": "; fp8 rounds as on a GPU there, and is slower than bf16 and fp32",
    }
    return f"no GPU was found, so the run is on the CPU{slower.get(precision, '')}"


def elsewhere_text(device: str, peak: int) -> str:
    """Returns the bytes at the peak on what `device` is not, CPU or GPU, with the reason."""
    if device == "CPU":
        return f"{format_bytes(peak)} on a GPU, whose Triton kernels store less"
    return f"{format_bytes(peak)} on a CPU, without the Triton kernels"


def _has_gpu() -> bool:
    """Returns whether this machine has an NVIDIA GPU, as far as that shows without torch."""
    return Path("/dev/nvidiactl").exists()


def _model_size(architecture: Architecture, context: int) -> ModelSize:
    return ModelSize(
        parameters=architecture.parameters,
        layers=architecture.layers,
        hidden=architecture.hidden,
        heads=architecture.heads,
        vocabulary=architecture.vocabulary,
        activation=architecture.activation,
        flops_per_token=architecture.flops_per_token(context),
    )


def rates_at_marks(recipe: Recipe) -> list[RateAtStep]:
    """Returns the rate at the first step, the schedule's own marks, the middle and the last."""
    labels = {1: "first", max(1, recipe.steps // 2): "middle", recipe.steps: "last"}
    for label, step in schedules.marked_steps(recipe.schedule, recipe.steps).items():
        if step < recipe.steps:
            labels[step] = label
    return [RateAtStep(step=step, what=labels[step], lr=recipe.lr(step)) for step in sorted(labels)]


def _corpus(
    resolved: ResolvedRun, name: str, blocks: float, share: float, change: WeightChange | None
) -> DatasetPlan:
    recipe = resolved.recipe
    steps_before = change.step if change else 0
    plan = DatasetPlan(
        needed=round(blocks) * recipe.data.context,
        share=share,
        read_before=change.blocks[name] * recipe.data.context if change else None,
        weights={
            max(first // recipe.sequences_per_step, steps_before) + 1: weight
            for first, weight in recipe.corpus_weights[name]
        },
    )
    if name not in resolved.corpora:
        return plan.model_copy(update={"text": resolved.text_of(f"train.{name}")})
    index = resolved.corpora[name].index
    epochs = blocks / sum(index.shard_blocks(recipe.data.context))  # as `data.max_epochs` counts
    return plan.model_copy(update={"available": index.tokens, "epochs": epochs})


def _validation_set(resolved: ResolvedRun, name: str) -> DatasetPlan:
    tokens, role = resolved.recipe.data.validation[name].tokens, str(resolved.roles[name])
    if name not in resolved.validation:
        text = resolved.text_of(f"validation.{name}")
        return DatasetPlan(needed=tokens or 0, role=role, text=text)
    available = resolved.validation[name].source.index.tokens
    return DatasetPlan(needed=min(tokens or available, available), available=available, role=role)


def _evaluations(recipe: Recipe) -> int:
    """Returns how many evaluations a run makes: before step 1, at its end, and in between."""
    if not recipe.data.validation:
        return 0
    return 2 + len(set[int]().union(*recipe.every.evaluations(recipe.steps)))


def plan_as_text(plan: RunPlan) -> str:
    """Returns the plan as lines to read."""
    lines = [
        ("run", plan.run),
        *(plan.start.lines() if plan.start else []),
        *_model_lines(plan),
        *([("device", plan.device_note)] if plan.device_note else []),
        *_step_lines(plan),
        ("schedule", plan.schedule),
        *(("", f"step {rate.step:>9,}  lr {rate.lr:.4e}  {rate.what}") for rate in plan.rates),
        *_dataset_lines(plan),
        *_checkpoint_lines(plan),
        *_memory_lines(plan),
    ]
    return "\n".join(f"{heading:<12}{text}" for heading, text in lines)


def _model_lines(plan: RunPlan) -> list[tuple[str, str]]:
    if plan.model is None:
        return []
    size = plan.model
    text = (
        f"{size.parameters:,} parameters: {size.layers} layers × {size.hidden:,} wide, "
        f"{size.heads} heads, {size.vocabulary:,} embedding rows"
        + ("" if size.activation == "gelu" else f", {size.activation}")
    )
    return [("model", text)]


def _step_lines(plan: RunPlan) -> list[tuple[str, str]]:
    budget = f"{plan.budget:,} tokens / {plan.batch_tokens:,} a step = {plan.steps:,} steps"
    if plan.tokens != plan.budget:
        budget += f" ({plan.tokens:,} tokens)"
    if plan.gpus:
        batch = (
            f"{plan.batch_tokens // plan.context:,} sequences × {plan.context:,} tokens = "
            f"{plan.batch_tokens:,} tokens"
        )
    elif plan.microbatch:
        batch = (
            f"{plan.microbatch} sequences × {plan.context:,} tokens × {plan.accumulation} "
            f"accumulated = {plan.batch_tokens:,} tokens"
            + (f"; {plan.microbatch} at once is auto on a CPU" if plan.microbatch_is_auto else "")
        )
    else:
        batch = (
            f"{plan.batch_tokens // plan.context:,} sequences × {plan.context:,} tokens = "
            f"{plan.batch_tokens:,} tokens, as many at once as fit"
        )
    lines = [("budget", budget), ("batch", batch)]
    return lines + (gpu_lines(plan.gpus, automatic=not plan.microbatch) if plan.gpus else [])


def _dataset_lines(plan: RunPlan) -> list[tuple[str, str]]:
    lines = _with_heading("data", _datasets(plan.train))
    if not plan.validation:
        return [*lines, ("validation", "none: no loss is measured")]
    evaluations = f"{plan.evaluations} evaluations, the first before step 1"
    lines += _with_heading("validation", _datasets(plan.validation))
    return [*lines, ("", evaluations), *(("", f"warning: {text}") for text in plan.warnings)]


def _with_heading(heading: str, texts: list[str]) -> list[tuple[str, str]]:
    return list(zip([heading, *[""] * len(texts)], texts, strict=False))


def _datasets(datasets: dict[str, DatasetPlan]) -> list[str]:
    width = max(map(len, datasets), default=0)
    lines = []
    for name, plan in datasets.items():
        share = f"{plan.share:>6.1%} of the tokens: " if plan.share is not None else ""
        needed = f"{format_count(plan.needed)} tokens"
        if plan.text:
            needed = needed if plan.needed else "all tokens"
            available = f" of text that is sharded before training: {plan.text}"
        elif plan.available:
            available = f" of {format_count(plan.available)}"
        else:
            available = "; see the error below"
        epochs = f" = {plan.epochs:.2f} epochs" if plan.epochs is not None and plan.share else ""
        role = f", {plan.role}" if plan.role else ""
        lines.append(f"{name:<{width}}  {share}{needed}{available}{epochs}{role}")
        if len(plan.weights) > 1 or plan.read_before is not None:
            weights = ", ".join(f"{w:g} from step {step:,}" for step, w in plan.weights.items())
            before = (
                f"; {format_count(plan.read_before)} tokens read before"
                if plan.read_before is not None
                else ""
            )
            lines.append(f"{'':<{width}}  weight {weights}{before}")
    return lines


def _checkpoint_lines(plan: RunPlan) -> list[tuple[str, str]]:
    if plan.checkpoint_bytes is None:
        return []
    most = plan.checkpoints_at_once
    at_once = f", at most {most} at once" if most < plan.checkpoints else ""
    text = (
        f"{plan.checkpoints} checkpoints{at_once} × {format_bytes(plan.checkpoint_bytes)} = "
        f"{format_bytes(most * plan.checkpoint_bytes)}"
    )
    return [("disk", text)]


def _memory_lines(plan: RunPlan) -> list[tuple[str, str]]:
    if plan.memory is None:
        return []
    microbatch = "" if plan.microbatch else ", with one sequence at once"
    lines = [plan.memory.as_text(f"a {plan.device}") + microbatch]
    lines += [
        f"{format_bytes(peak)} with memory: {setting}"
        for setting, peak in plan.memory_otherwise.items()
    ]
    if plan.memory_elsewhere is not None:
        lines.append(elsewhere_text(plan.device, plan.memory_elsewhere))
    return _with_heading("memory", lines)
