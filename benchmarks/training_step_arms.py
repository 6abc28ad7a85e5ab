"""The arms of training_step.py: rewarm's model and step, or a peer's, in a separate process.

```
 standard input ── turn 20 ──> Worker ── its steps ──> seconds, losses, peak ──> standard output
```
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PEERS = {
    "litgpt": "litgpt",
    "transformers compiled": "transformers",
    "transformers": "transformers",
}
"""Each peer, and the module it needs."""
ATTENTION_BACKENDS = ("cuDNN", "flash", "efficient", "math")
ARMS = {
    "rewarm": "rewarm",
    **PEERS,
    **dict.fromkeys((f"rewarm {backend}" for backend in ATTENTION_BACKENDS), "rewarm"),
}
"""Each arm, and the module it needs."""
SMALL = ("tiny", "quickstart")
LR = 1e-4

FAMILIES = {
    "attention": r"flash|fmha|sdpa|scaled_dot_product|attention",
    "rounding to fp8": r"^_round$|rewarm::round8|amax|_clamp_",
    "matmuls": r"gemm|nvjet|cutlass|cublas|splitk|\bmm\b|addmm|bmm|matmul|"
    r"aten::_scaled_mm|linear|convol",
    "cross-entropy": r"softmax|nll|cross_entropy|cross-entropy",
    "GELU": r"gelu",
    "norms": r"layer_?norm|native_norm|norms_|_norms|GammaBeta",
    "optimizer": r"adam|optimizer|multi_tensor|foreach|lpnorm|linalg_vector_norm|clip|clamp",
    "rotary": r"rotary|rope|(?:^|_)cat(?:_|$)|CatArray|aten::(?:cat|neg)$|NegBackward|CatBackward",
}
"""Patterns in the names of kernels and operators, tried in this order."""


class StepSettings(NamedTuple):
    """The settings of every arm."""

    model: str
    microbatch: int
    context: int
    precision: str
    kernels: str
    memory: str
    deterministic: bool


def architecture(name: str) -> Any:
    """Returns the architecture of a preset, or of a small model for CPUs."""
    from rewarm.model.architecture import PRESETS, Architecture

    small = {
        "tiny": Architecture(layers=2, hidden=64, heads=4, vocabulary=512, positions=256),
        "quickstart": Architecture(layers=4, hidden=96, heads=4, vocabulary=4096, positions=128),
    }
    return (PRESETS | small)[name]


# An arm: a model, and a function that takes one step on a batch.


class Arm(NamedTuple):
    """A training step and a note about it."""

    step: Callable[[Any], Any]
    """Takes tokens of shape (microbatch, context + 1), and returns the loss, on the device."""
    note: str = ""


def rewarm(
    settings: StepSettings, weights: Path, device: Any, *, attention: str | None = None
) -> Arm:
    """Returns rewarm's arm; `attention` is the backend to try first in place of its own choice."""
    import torch

    from rewarm.checkpoints.load_weights import load_model
    from rewarm.data.batch_loader import DataPosition
    from rewarm.model.attention_backend import set_first_backend
    from rewarm.model.kernels.selection import choose_kernels
    from rewarm.recipe.batch_split import split_batch
    from rewarm.recipe.training_settings import GuardSettings, LossScaleSettings, OptimizerSettings
    from rewarm.training.device_setup import autocast, keep_freed_memory, set_up_device
    from rewarm.training.divergence_guard import DivergenceGuard
    from rewarm.training.loop import take_step
    from rewarm.training.optimizer import build_adamw

    keep_freed_memory()  # as `rewarm train` does
    set_up_device(device, tf32=False, deterministic=settings.deterministic)
    if attention:
        set_first_backend(attention)
    model, _ = load_model(architecture(settings.model), weights)
    model.to(device)
    chosen, note = choose_kernels(settings.kernels, device)
    model.configure(chosen, memory=settings.memory, precision=settings.precision)
    adamw = OptimizerSettings()
    optimizer = build_adamw(model, adamw)
    if device.type == "cuda":
        model.compile_layers()
    cast = autocast(settings.precision, device)
    fp16 = settings.precision == "fp16"
    loss_scale: dict[str, Any] = {"loss_scale": LossScaleSettings()} if fp16 else {}
    guard = DivergenceGuard(GuardSettings(), device, {}, None, **loss_scale)
    count = 0

    def step(tokens: Any) -> Any:
        nonlocal count
        count += 1
        guard.start_step(count, LR, DataPosition({}))
        return take_step(
            model,
            optimizer,
            tokens,
            split=split_batch(len(tokens), 1, settings.microbatch),
            lr=LR,
            max_grad_norm=adamw.clip,
            autocast_context=cast,
            should_skip=guard.should_skip,
            loss_scale=guard.scale,
        ).loss

    torch.manual_seed(0)
    return Arm(step, note.removeprefix(", "))


def litgpt(settings: StepSettings, weights: Path, device: Any) -> Arm:
    """Returns litgpt's arm."""
    from litgpt.model import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_gpt_neox
    from safetensors.torch import load_file

    shape = architecture(settings.model)
    config = Config(
        name=settings.model,
        block_size=shape.positions,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.hidden,
        intermediate_size=shape.inner,
        rotary_percentage=shape.rotary,
        parallel_residual=shape.parallel_residual,
        norm_class_name="LayerNorm",
        norm_eps=shape.layer_norm_eps,
        mlp_class_name="GptNeoxMLP",
        bias=True,
        attn_bias=True,
        lm_head_bias=False,
    )
    model = GPT(config)
    state: dict[str, Any] = {}
    copy_weights_gpt_neox(config, state, load_file(weights / "model.safetensors"))
    model.load_state_dict(state)
    model.to(device)
    return Arm(_peer_step(model, model, settings, device, compiled=device.type == "cuda"))


def transformers(
    settings: StepSettings, weights: Path, device: Any, *, compiled: bool = False
) -> Arm:
    """Returns transformers' arm."""
    import torch
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(
        weights, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.to(device).train()
    model.config.use_cache = False
    return Arm(
        _peer_step(model, lambda tokens: model(tokens).logits, settings, device, compiled=compiled)
    )


def _peer_step(
    model: Any,
    logits_of: Callable[[Any], Any],
    settings: StepSettings,
    device: Any,
    *,
    compiled: bool,
) -> Callable[[Any], Any]:
    """Returns a step that is the same as rewarm's except for the model and the guard."""
    import torch
    from torch.nn import functional

    from rewarm.recipe.training_settings import OptimizerSettings
    from rewarm.training.device_setup import autocast
    from rewarm.training.optimizer import build_adamw, set_lr

    adamw = OptimizerSettings()
    optimizer = build_adamw(model, adamw)
    set_lr(optimizer, LR)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    if compiled:
        logits_of = torch.compile(logits_of)

    def step(tokens: Any) -> Any:
        block = tokens.to(device, non_blocking=True)
        with autocast(settings.precision, device):
            logits = logits_of(block[:, :-1]).float()
            targets = block[:, 1:].flatten()
            loss = functional.cross_entropy(logits.flatten(0, 1), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), adamw.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step


BUILD: dict[str, Callable[[StepSettings, Path, Any], Arm]] = {
    "rewarm": rewarm,
    **{f"rewarm {backend}": partial(rewarm, attention=backend) for backend in ATTENTION_BACKENDS},
    "litgpt": litgpt,
    "transformers": transformers,
    "transformers compiled": lambda *arguments: transformers(
        *arguments, compiled=arguments[2].type == "cuda"
    ),
}


# The process of one arm: it answers each line of standard input with a line of JSON.


class Worker:
    """An arm and the measurements that it can make."""

    def __init__(self, name: str, settings: StepSettings, work: Path) -> None:
        """Builds the arm, takes the first step, and observes the attention of the second."""
        import torch

        from rewarm.model.attention_backend import observed_backend

        self.settings, self.work = settings, work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batches = torch.load(work / "tokens.pt")
        if self.device.type == "cuda":
            self._batches = self._batches.pin_memory()
        self._steps_taken = 0
        self._arm = BUILD[name](settings, work / "weights", self.device)
        started = time.perf_counter()
        self.losses = self._steps(1)
        self.first_step = time.perf_counter() - started
        self._attention = observed_backend(lambda: self._steps(1)) or "math"

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free_cached_memory(self) -> None:
        """Frees cached GPU memory, which the turns of the other arms need."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _steps(self, count: int) -> list[float]:
        """Takes steps, waits for the device once, and returns the losses."""
        losses = []
        for _ in range(count):
            losses.append(self._arm.step(self._batches[self._steps_taken % len(self._batches)]))
            self._steps_taken += 1
        self._wait()
        return [float(loss) for loss in losses]

    def first_step_result(self) -> dict[str, Any]:
        """Returns the time and loss of the first step."""
        attention = f"{self._attention} attention"
        note = f"{attention}, {self._arm.note}" if self._arm.note else attention
        return {"first_step_s": self.first_step, "loss": self.losses, "note": note}

    def turn(self, steps: int) -> dict[str, Any]:
        """Returns the seconds per step over `steps` steps, the peak memory and the losses."""
        import torch

        self._steps(2)  # warms up the caches that the other arms have used
        started = time.perf_counter()
        losses = self._steps(steps)
        seconds = (time.perf_counter() - started) / steps
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return {"step_s": seconds, "peak_bytes": peak, "loss": losses}

    def profile(self, steps: int) -> dict[str, float]:
        """Returns milliseconds per step by kernel family; they add up to the step."""
        from torch.profiler import ProfilerActivity, profile

        self._steps(2)
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            started = time.perf_counter()
            self._steps(steps)
            seconds = time.perf_counter() - started
        spent = by_family(profiler.events(), on_gpu=self.device.type == "cuda")
        spent["idle"] = max(0.0, seconds * 1e6 - sum(spent.values()))
        return {
            family: spent.get(family, 0.0) / 1e3 / steps for family in [*FAMILIES, "other", "idle"]
        }

    def host_synchronizations(self, steps: int) -> dict[str, Any]:
        """Returns PyTorch's error if a step makes the host wait for the GPU."""
        import torch

        if self.device.type != "cuda":
            return {"error": None, "checked": False}
        self._steps(2)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in self._batches[:steps]:
                self._arm.step(batch)
            message = None
        except RuntimeError as error:
            message = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        self._wait()
        return {"error": message, "checked": True}


def by_family(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Returns microseconds by kernel family, from a profiler's events.

    A kernel belongs to the family of its own name, else of the operator that launched it, else of
    the enclosing one. A fused kernel counts for the first family that its name matches.
    """
    spent: dict[str, float] = {}

    def add(names: Iterable[str], microseconds: float) -> None:
        family = next((match for name in names if (match := family_of(name))), "other")
        spent[family] = spent.get(family, 0.0) + microseconds

    unattributed: dict[str, float] = {}
    for event in events:
        if on_gpu and getattr(event, "is_user_annotation", False):
            continue  # a range of kernels, not a kernel
        if on_gpu and "CPU" not in str(event.device_type):
            unattributed[event.name] = (
                unattributed.get(event.name, 0.0) + event.time_range.elapsed_us()
            )
        elif on_gpu:
            for kernel in event.kernels:
                add([kernel.name, *_enclosing(event)], kernel.duration)
                unattributed[kernel.name] = unattributed.get(kernel.name, 0.0) - kernel.duration
        else:
            add(_enclosing(event), event.self_cpu_time_total)
    for name, microseconds in unattributed.items():  # launched by no known operator
        if microseconds > 0 and not name.startswith("Memcpy HtoD"):  # overlaps the kernels
            add([name], microseconds)
    return spent


def _enclosing(event: Any) -> Iterable[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def family_of(name: str) -> str | None:
    """Returns the family that the name of a kernel or an operator matches."""
    matches = (family for family, words in FAMILIES.items() if re.search(words, name, re.I))
    return next(matches, None)


def serve(name: str, settings: StepSettings, work: Path) -> None:
    """Builds an arm, and answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries' output is not an answer

    def answer(result: dict[str, Any]) -> None:
        worker.free_cached_memory()
        print(json.dumps(result), file=answers, flush=True)

    worker = Worker(name, settings, work)
    answer(worker.first_step_result())
    for line in sys.stdin:
        request, steps = line.split()
        answer(getattr(worker, request)(int(steps)))
