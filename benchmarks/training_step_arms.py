"""The arms of step.py: a model and its step, rewarm's own and each peer's, in a process of its own.

```
 standard input ── turn 20 ──> Worker ── its steps ──> seconds, losses, peak ──> standard output
```
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ARMS = {
    "rewarm": "rewarm",
    "litgpt": "litgpt",
    "transformers compiled": "transformers",
    "transformers": "transformers",
}
"""Each arm, and the module it needs."""
SMALL = ("tiny", "quickstart")
LR = 1e-4

FAMILIES = {
    "attention": r"flash|fmha|sdpa|scaled_dot_product|attention",
    "rounding to fp8": r"^_round$|rewarm::round8|amax|_clamp_",
    "matrix products": r"gemm|nvjet|cutlass|cublas|splitk|\bmm\b|addmm|bmm|matmul|"
    r"aten::_scaled_mm|linear|convol",
    "cross-entropy": r"softmax|nll|cross_entropy|cross-entropy",
    "GELU": r"gelu",
    "norms": r"layer_?norm|native_norm|norms_|_norms|GammaBeta",
    "optimiser": r"adam|optimizer|multi_tensor|foreach|lpnorm|linalg_vector_norm|clip|clamp",
    "rotary": r"rotary|rope|(?:^|_)cat(?:_|$)|CatArray|aten::(?:cat|neg)$|NegBackward|CatBackward",
}
"""What the names of kernels and operators are searched for, in this order."""


class Said(NamedTuple):
    """What every arm is told."""

    model: str
    microbatch: int
    context: int
    precision: str
    selection: str
    memory: str
    deterministic: bool


def architecture(name: str) -> Any:
    """Returns a preset's shape, or that of a model for CPUs."""
    from rewarm.model.architecture import PRESETS, Architecture

    small = {
        "tiny": Architecture(layers=2, hidden=64, heads=4, vocabulary=512, positions=256),
        "quickstart": Architecture(layers=4, hidden=96, heads=4, vocabulary=4096, positions=128),
    }
    return (PRESETS | small)[name]


# What an arm is: a model, and a function that takes one step on a batch.


class Arm(NamedTuple):
    """A model to be trained, and its step."""

    step: Callable[[Any], Any]
    """Takes tokens of shape (microbatch, context + 1), and returns the loss, on the device."""
    note: str = ""


def rewarm(said: Said, weights: Path, device: Any) -> Arm:
    """Returns rewarm's arm."""
    import torch

    from rewarm.checkpoints.load_weights import load_model
    from rewarm.data.batch_loader import DataPosition
    from rewarm.recipe.fields import GuardSettings, LossScaleSettings, OptimizerSettings
    from rewarm.training import loop
    from rewarm.training.device_setup import autocast, set_up_device
    from rewarm.training.divergence_guard import DivergenceGuard
    from rewarm.training.optimizer import build_adamw

    loop._keep_freed_memory()  # as its training does
    set_up_device(device, tf32=False, deterministic=said.deterministic)
    model, _ = load_model(architecture(said.model), weights)
    model.to(device)
    note = ""
    if importlib.util.find_spec("rewarm.model.kernels.selection"):
        from rewarm.model.kernels import selection

        chosen, note = selection.choose_kernels(said.kernels, device)
        model.configure(chosen, memory=said.memory, precision=said.precision)

    settings = OptimizerSettings()
    optimizer = build_adamw(model, settings)
    if device.type == "cuda":
        model.compile_layers()
    cast = autocast(said.precision, device)
    fp16 = said.precision == "fp16"
    scaled: dict[str, Any] = {"loss_scale": LossScaleSettings()} if fp16 else {}
    guard = DivergenceGuard(GuardSettings(), device, {}, None, **scaled)
    taken = 0

    def step(tokens: Any) -> Any:
        nonlocal taken
        taken += 1
        guard.begin(taken, LR, DataPosition({}))
        return loop.take_step(
            model,
            optimizer,
            tokens,
            microbatch=said.microbatch,
            lr=LR,
            clip=settings.clip,
            cast=cast,
            judge=guard.judge,
            **({"scale": guard.scale} if fp16 else {}),
        ).loss

    torch.manual_seed(0)
    return Arm(step, note.removeprefix(", "))


def litgpt(said: Said, weights: Path, device: Any) -> Arm:
    """Returns litgpt's arm."""
    from litgpt.model import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_gpt_neox
    from safetensors.torch import load_file

    shape = architecture(said.model)
    config = Config(
        name=said.model,
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
    return Arm(_peer_step(model, model, said, device, compiled=device.type == "cuda"))


def transformers(said: Said, weights: Path, device: Any, *, compiled: bool = False) -> Arm:
    """Returns transformers' arm."""
    import torch
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(
        weights, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.to(device).train()
    model.config.use_cache = False
    return Arm(
        _peer_step(model, lambda tokens: model(tokens).logits, said, device, compiled=compiled)
    )


def _peer_step(
    model: Any, logits_of: Callable[[Any], Any], said: Said, device: Any, *, compiled: bool
) -> Callable[[Any], Any]:
    """Returns a step that is rewarm's in every respect but the model and the guard."""
    import torch
    from torch.nn import functional

    from rewarm.recipe.fields import OptimizerSettings
    from rewarm.training.device_setup import autocast
    from rewarm.training.optimizer import build_adamw, set_lr

    settings = OptimizerSettings()
    optimizer = build_adamw(model, settings)
    set_lr(optimizer, LR)
    scaler = torch.amp.GradScaler(device.type, enabled=said.precision == "fp16")
    if compiled:
        logits_of = torch.compile(logits_of)

    def step(tokens: Any) -> Any:
        block = tokens.to(device, non_blocking=True)
        with autocast(said.precision, device):
            logits = logits_of(block[:, :-1]).float()
            targets = block[:, 1:].flatten()
            loss = functional.cross_entropy(logits.flatten(0, 1), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step


BUILD: dict[str, Callable[[Said, Path, Any], Arm]] = {
    "rewarm": rewarm,
    "litgpt": litgpt,
    "transformers": transformers,
    "transformers compiled": lambda *told: transformers(*told, compiled=told[2].type == "cuda"),
}


# The process of one arm: it answers a line of standard input with a line of JSON.


class Worker:
    """An arm that has been built, and what can be asked of it."""

    def __init__(self, name: str, said: Said, work: Path) -> None:
        """Builds the arm and takes the first step."""
        import torch

        self.said, self.work = said, work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batches = torch.load(work / "tokens.pt")
        if self.device.type == "cuda":
            self._batches = self._batches.pin_memory()
        self._taken = 0
        self._arm = BUILD[name](said, work / "weights", self.device)
        began = time.perf_counter()
        self.losses = self._steps(1)
        self.first_step = time.perf_counter() - began

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def give_back(self) -> None:
        """Gives the GPU back what no tensor is in: the others' turns need the room."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _steps(self, count: int) -> list[float]:
        """Takes steps, waits for the device once, and returns the losses."""
        losses = []
        for _ in range(count):
            losses.append(self._arm.step(self._batches[self._taken % len(self._batches)]))
            self._taken += 1
        self._wait()
        return [float(loss) for loss in losses]

    def hello(self) -> dict[str, Any]:
        """Returns how the first step went."""
        return {"first_step_s": self.first_step, "loss": self.losses, "note": self._arm.note}

    def turn(self, steps: int) -> dict[str, Any]:
        """Returns the seconds of a step, over so many, and the losses of them."""
        import torch

        self._steps(2)  # a turn begins with what the others left in the caches
        began = time.perf_counter()
        losses = self._steps(steps)
        seconds = (time.perf_counter() - began) / steps
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return {"step_s": seconds, "peak_bytes": peak, "loss": losses}

    def profile(self, steps: int) -> dict[str, float]:
        """Returns milliseconds of a step by kernel family; they add up to the step."""
        from torch.profiler import ProfilerActivity, profile

        self._steps(2)
        kinds = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        with profile(activities=kinds) as profiler:
            began = time.perf_counter()
            self._steps(steps)
            seconds = time.perf_counter() - began
        spent = by_family(profiler.events(), on_gpu=self.device.type == "cuda")
        spent["idle"] = max(0.0, seconds * 1e6 - sum(spent.values()))
        return {
            family: spent.get(family, 0.0) / 1e3 / steps for family in [*FAMILIES, "other", "idle"]
        }

    def synchronisations(self, steps: int) -> dict[str, Any]:
        """Returns the complaint if a step makes the host wait for the GPU."""
        import torch

        if self.device.type != "cuda":
            return {"complaint": None, "checked": False}
        self._steps(2)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in self._batches[:steps]:
                self._arm.step(batch)
            complaint = None
        except RuntimeError as error:
            complaint = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        self._wait()
        return {"complaint": complaint, "checked": True}


def by_family(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Returns microseconds by kernel family, from a profiler's events.

    A kernel belongs to the family of its own name, else of the operator that launched it, else of
    the one around that: a fused kernel counts for the first family that its name tells of.
    """
    spent: dict[str, float] = {}

    def add(names: Iterable[str], microseconds: float) -> None:
        family = next((found for name in names if (found := family_of(name))), "other")
        spent[family] = spent.get(family, 0.0) + microseconds

    alone: dict[str, float] = {}
    for event in events:
        if on_gpu and getattr(event, "is_user_annotation", False):
            continue  # a span of kernels, not one
        if on_gpu and "CPU" not in str(event.device_type):
            alone[event.name] = alone.get(event.name, 0.0) + event.time_range.elapsed_us()
        elif on_gpu:
            for kernel in event.kernels:
                add([kernel.name, *_around(event)], kernel.duration)
                alone[kernel.name] = alone.get(kernel.name, 0.0) - kernel.duration
        else:
            add(_around(event), event.self_cpu_time_total)
    for name, microseconds in alone.items():  # those that no operator is known to have launched
        if microseconds > 0 and not name.startswith("Memcpy HtoD"):  # beside the kernels
            add([name], microseconds)
    return spent


def _around(event: Any) -> Iterable[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def family_of(name: str) -> str | None:
    """Returns the family that a kernel's or an operator's name tells of."""
    return next(
        (one for one, words in FAMILIES.items() if re.search(words, name, re.IGNORECASE)), None
    )


def serve(name: str, said: Said, work: Path) -> None:
    """Builds an arm, and answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(what: dict[str, Any]) -> None:
        worker.give_back()
        print(json.dumps(what), file=answers, flush=True)

    worker = Worker(name, said, work)
    answer(worker.hello())
    for line in sys.stdin:
        ask, steps = line.split()
        answer(getattr(worker, ask)(int(steps)))
