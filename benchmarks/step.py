"""Training steps side by side: one GPU, the same weights, the same tokens, the same optimiser.

    python benchmarks/step.py --model pythia-410m --microbatch 16 --profile \\
        --json step.json --markdown step.md
    python benchmarks/step.py --model tiny --microbatch 4 --context 64 --steps 2   # on a CPU

Each arm lives in a process of its own, which holds its model between its turns; the turns are
interleaved. Figures are medians over the turns, with the spread. Peers that cannot be imported are
left out and named; on a CPU nothing is compiled.

- rewarm: its own `take_step`, guard included, layers compiled as `rewarm train` does.
- litgpt: its GPT, compiled whole.
- transformers, transformers compiled: GPTNeoXForCausalLM, as it is and compiled whole.

All take AdamW, fused, weight decay on matrices; clip 1.0; autocast at `--precision`, peers at bf16
where that is fp8; the mean cross-entropy of fp32 logits. MFU counts 6 FLOPs per parameter in a
product and 12 · layers · hidden · context for attention (PaLM, arXiv:2204.02311, appendix B), over
the bf16 peak, for all alike. `first step` is of a process with an empty compile cache, and of a
second one with the cache that the first left behind; `from start` counts from that process's
beginning: imports, weights, compiling. Memory is what the arm's tensors took at once; on a CPU,
what its process did.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, get_args

ARMS = {
    "rewarm": "rewarm",
    "litgpt": "litgpt",
    "transformers": "transformers",
    "transformers compiled": "transformers",
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
    kernels: str
    memory: str


def architecture(name: str) -> Any:
    """Returns a preset's shape, or that of a model for CPUs."""
    from rewarm.architecture import PRESETS, Architecture

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

    from rewarm import optim, sections, train
    from rewarm import weights as model_files
    from rewarm.device import autocast
    from rewarm.guard import Guard
    from rewarm.stream import Position

    train._keep_freed_memory()  # as its training does
    model, _ = model_files.load(architecture(said.model), weights)
    model.to(device)
    note = ""
    if importlib.util.find_spec("rewarm.kernels"):
        from rewarm import kernels

        chosen, note = kernels.choose(said.kernels, device)
        model.use(chosen, memory=said.memory, precision=said.precision)

    settings = sections.Optimizer()
    optimizer = optim.adamw(model, settings)
    if device.type == "cuda":
        model.compile_layers()
    cast = autocast(said.precision, device)
    fp16 = said.precision == "fp16"
    scaled: dict[str, Any] = {"loss_scale": sections.LossScale()} if fp16 else {}
    guard = Guard(sections.Guard(), device, {}, None, **scaled)
    taken = 0

    def step(tokens: Any) -> Any:
        nonlocal taken
        taken += 1
        guard.begin(taken, LR, Position({}))
        return train.take_step(
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

    from rewarm import optim, sections
    from rewarm.device import autocast

    settings = sections.Optimizer()
    optimizer = optim.adamw(model, settings)
    optim.set_lr(optimizer, LR)
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
            torch.cuda.empty_cache()  # the others' turns need the room
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
        print(json.dumps(what), file=answers, flush=True)

    worker = Worker(name, said, work)
    answer(worker.hello())
    for line in sys.stdin:
        ask, steps = line.split()
        answer(getattr(worker, ask)(int(steps)))


# What the data, the log and the evaluations add to the steps: `rewarm train` itself.

RECIPE = """\
run: {work}/run
seed: 1
tokens: {tokens}
model: {{base: {work}/weights}}
data:
  context: {context}
  max_epochs: 1_000_000
  train:
    text: {{shards: {work}/shards/train}}
  validation:
    text: {{shards: {work}/shards/val, tokens: {held_out}}}
batch: {{tokens: {batch}, microbatch: {microbatch}}}
schedule: {{name: constant, lr: 1e-4}}
precision: {precision}
every: {{log: 10, evaluate: {steps}}}
"""


def overheads(said: Said, work: Path, steps: int) -> dict[str, float]:
    """Returns what `rewarm train` says of itself: speed, share of waiting, seconds to evaluate."""
    from rewarm import recipe, train
    from rewarm.run import read_metrics

    _shard(work)
    batch = said.microbatch * said.context
    path = work / "recipe.yaml"
    path.write_text(
        f"kernels: {said.kernels}\nmemory: {said.memory}\n"
        + RECIPE.format(
            work=work,
            tokens=batch * steps,
            batch=batch,
            held_out=4 * batch,
            steps=steps,
            context=said.context,
            microbatch=said.microbatch,
            precision=said.precision,
        )
    )
    told = recipe.load(path)
    spent: list[tuple[float, int]] = []
    measure_all = train.measure_all

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        measured = measure_all(*given)
        spent.append((time.perf_counter() - began, sum(one.tokens for one in measured.values())))
        return measured

    train.measure_all = timed
    train.train(told)
    lines = read_metrics(Path(told.run) / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"][1:]  # the first one compiled
    seconds, tokens = spent[-1]
    return {
        "tokens_per_s": statistics.median(line["tokens_per_second"] for line in trained),
        "data_wait": statistics.median(line["data_wait"] for line in trained),
        "evaluation_s": seconds,
        "evaluation_tokens": tokens,
    }


def _shard(work: Path) -> None:
    """Writes shards of this repository's own text, with a tokenizer made of it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from rewarm import sharding, tokenizer

    root = Path(__file__).parents[1]
    texts = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("rewarm/*.py")]
    with (work / "text.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted(texts):
            file.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate([*letters, "<|endoftext|>"])}
    encoder = Tokenizer(models.BPE(vocabulary, []))
    encoder.add_special_tokens(["<|endoftext|>"])
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.save(str(work / "tokenizer.json"))
    said = tokenizer.load(str(work / "tokenizer.json"))
    sharding.shard([work / "text.jsonl"], work / "shards", said, validation=0.1)


# The parent: it starts the arms, gives them their turns, and prints what they answer.


class Process:
    """An arm in a process of its own."""

    def __init__(self, name: str, work: Path, caches: Path) -> None:
        """Starts it; its compile caches are these."""
        self.name = name
        cached = {
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
        }
        self._said = (work / f"{caches.name}.err").open("w+")
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--only", name, "--work", str(work)],
            env=os.environ | cached,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def hello(self) -> dict[str, Any]:
        """Returns how the first step went, once it is taken."""
        return self._answer() | {"from_start_s": time.perf_counter() - self._began}

    def ask(self, what: str, steps: int) -> dict[str, Any]:
        """Returns the arm's answer.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdin
        with suppress(BrokenPipeError):  # what it said last is the better message
            print(what, steps, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"{self.name} ended: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Ends it."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()


class Stopped(Exception):
    """Someone wants an end: what was found so far is printed."""


def _stop(*_: Any) -> None:
    raise Stopped


class Found(NamedTuple):
    """What was measured of one arm."""

    cold: dict[str, Any]
    warm: dict[str, Any] | None
    turns: list[dict[str, Any]]
    profile: dict[str, float] | None


class Comparison:
    """The arms of one comparison, and what was found of them."""

    def __init__(self, said: argparse.Namespace, work: Path) -> None:
        self._said, self._work = said, work
        self._arms: dict[str, Process] = {}
        self._found: dict[str, Found] = {}
        self.missing = [a for a in wanted(said) if importlib.util.find_spec(ARMS[a]) is None]
        self.failed: dict[str, str] = {}
        self.checks: dict[str, Any] = {}

    @property
    def measured(self) -> dict[str, Found]:
        """Those that did all that was asked of them, at least one turn."""
        return {n: one for n, one in self._found.items() if n not in self.failed and one.turns}

    def run(self) -> None:
        """Does everything that was asked for, as far as it gets."""
        said = self._said
        try:
            for name in [one for one in wanted(said) if one not in self.missing]:
                self._try(name, self._start)
            for _ in range(said.repeats):
                self._all(self._turn)
            if said.profile:
                self._all(self._profile)
            if "rewarm" in self.measured:
                self._try("rewarm", self._synchronisations)
            self._end()
            if said.overheads and "rewarm" in self.measured:
                self.checks["overheads"] = _overheads(self._work)
        except Stopped:
            self.checks["stopped"] = True
        finally:
            self._end()

    def _all(self, what: Callable[[str], None]) -> None:
        for name in [one for one in self._found if one not in self.failed]:
            self._try(name, what)

    def _try(self, name: str, what: Callable[[str], None]) -> None:
        try:
            what(name)
        except RuntimeError as error:
            self.failed[name] = str(error)

    def _start(self, name: str) -> None:
        caches = self._work / f"caches of {name}"
        self._arms[name] = process = Process(name, self._work, caches)
        cold, warm = process.hello(), None
        if self._said.first_step:
            again = Process(name, self._work, caches)
            warm = again.hello()
            again.end()
        self._found[name] = Found(cold, warm, [], None)
        _tell(f"{name}: first step after {cold['from_start_s']:.1f} s")

    def _turn(self, name: str) -> None:
        turn = self._arms[name].ask("turn", self._said.steps)
        self._found[name].turns.append(turn)
        _tell(f"{name}: {1e3 * turn['step_s']:.1f} ms a step")

    def _profile(self, name: str) -> None:
        profile = self._arms[name].ask("profile", 3)
        self._found[name] = self._found[name]._replace(profile=profile)

    def _synchronisations(self, name: str) -> None:
        self.checks["synchronisations"] = self._arms[name].ask("synchronisations", 3)

    def _end(self) -> None:
        for process in self._arms.values():
            process.end()


def compare(said: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs the arms, and returns everything that was found."""
    prepare(said, work)
    comparison = Comparison(said, work)
    comparison.run()
    return {
        "settings": {k: v for k, v in vars(said).items() if isinstance(v, int | str | bool)},
        "machine": machine(),
        "arms": {name: one._asdict() for name, one in comparison.measured.items()},
        "missing": comparison.missing,
        "failed": comparison.failed,
        **comparison.checks,
    }


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _overheads(work: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", "overheads", "--work", str(work)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"failed": (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def wanted(said: argparse.Namespace) -> list[str]:
    """Returns the arms that were asked for, in order."""
    import torch

    asked = [one.strip() for one in said.peers.split(",") if one.strip()]
    if unknown := set(asked) - set(ARMS):
        sys.exit(f"--peers: no arm named {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    on_gpu = torch.cuda.is_available()
    peers = [one for one in asked if one != "rewarm" and (on_gpu or "compiled" not in one)]
    return ["rewarm", *peers]


def prepare(said: argparse.Namespace, work: Path) -> None:
    """Writes the weights and the tokens that all arms are given."""
    import torch
    from safetensors.torch import save_file

    from rewarm import neox
    from rewarm.neox import NeoX

    shape = architecture(said.model)
    model = NeoX(shape)
    neox.initialise(model, 1)
    (work / "weights").mkdir()
    save_file(model.state_dict(), work / "weights" / "model.safetensors")
    (work / "weights" / "config.json").write_text(json.dumps(shape.to_hugging_face()))
    generator = torch.Generator().manual_seed(1)
    size = (8, said.microbatch, said.context + 1)
    torch.save(torch.randint(shape.vocabulary, size, generator=generator), work / "tokens.pt")


def machine() -> dict[str, str]:
    """Returns the device, its driver and the versions that matter."""
    import torch

    on = {"device": platform.processor() or platform.machine(), "driver": "none"}
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            ended = subprocess.run(query, capture_output=True, text=True, check=False)
            driver = (ended.stdout.splitlines() or ["unknown"])[0]
        except OSError:
            driver = "unknown"
        on = {"device": torch.cuda.get_device_name(), "driver": driver}
    named = ["rewarm", "torch", "triton", "transformers", "litgpt"]
    return {
        **on,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        **{name: found for name in named if (found := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


# What is printed.


def in_markdown(all_found: dict[str, Any]) -> str:
    """Returns the tables."""
    told, arms = all_found["settings"], all_found["arms"]
    peers = " (peers in bf16)" if told["precision"] == "fp8" else ""
    lines = [
        f"{told['model']}, {told['microbatch']} × {told['context']:,} tokens a step, "
        f"{told['precision']}{peers}, kernels: {told['kernels']}, memory: {told['memory']}; "
        f"{told['steps']} steps a turn, {told['repeats']} interleaved turns: median (lowest to "
        "highest)",
        ", ".join(f"{name} {what}" for name, what in all_found["machine"].items()),
        "",
    ]
    table = [
        _row(told, all_found["machine"]["device"], name, one, arms) for name, one in arms.items()
    ]
    lines += _table(
        ["arm", "tokens/s", "× it is rewarm", "step, ms", "MFU", "peak, GB",
         "first step, cold / warm, s", "from start, cold / warm, s", "loss, first and last"],
        table,
    )  # fmt: skip
    lines += [f"{name}: {one['cold']['note']}" for name, one in arms.items() if one["cold"]["note"]]
    if all_found["missing"]:
        lines += ["", f"Not importable here: {', '.join(all_found['missing'])}."]
    lines += [f"{name} failed: {why}" for name, why in all_found["failed"].items()]
    profiled = {name: one["profile"] for name, one in arms.items() if one["profile"]}
    if profiled:
        families = [*FAMILIES, "other", "idle"]
        rows = [[f, *(f"{one[f]:.2f}" for one in profiled.values())] for f in families]
        rows.append(["sum", *(f"{sum(one.values()):.2f}" for one in profiled.values())])
        lines += ["", "Milliseconds of a step under the profiler, by kernel family:", ""]
        lines += _table(["", *profiled], rows)
    lines += _checks(all_found)
    return "\n".join(lines) + "\n"


def _row(
    told: dict[str, Any], device: str, name: str, one: dict[str, Any], arms: dict[str, Any]
) -> list[str]:
    from rewarm.speeds import peak_flops

    tokens, flops = told["microbatch"] * told["context"], peak_flops(device)
    speeds = [tokens / turn["step_s"] for turn in one["turns"]]
    per_token = architecture(told["model"]).flops_per_token(told["context"])
    ours = [tokens / turn["step_s"] for turn in arms["rewarm"]["turns"]] if "rewarm" in arms else []
    ratios = [a / b for a, b in zip(ours, speeds, strict=False)]
    losses = [*one["cold"]["loss"], *(loss for turn in one["turns"] for loss in turn["loss"])]
    both = [one["cold"], one["warm"]] if one["warm"] else [one["cold"]]
    return [
        name,
        spread(speeds, 0),
        spread(ratios, 2) if ratios and name != "rewarm" else "",
        spread([1e3 * turn["step_s"] for turn in one["turns"]], 1),
        spread([100 * speed * per_token / flops for speed in speeds], 1) + " %" if flops else "",
        f"{max(turn['peak_bytes'] for turn in one['turns']) / 1e9:.2f}",
        " / ".join(f"{run['first_step_s']:.1f}" for run in both),
        " / ".join(f"{run['from_start_s']:.1f}" for run in both),
        f"{losses[0]:.4f} → {losses[-1]:.4f}",
    ]


def _checks(all_found: dict[str, Any]) -> list[str]:
    """Returns what is said of synchronisations and of what is done beside the steps."""
    lines = []
    if all_found.get("stopped"):
        lines.append("Stopped: what is not here did not get its turn.")
    if check := all_found.get("synchronisations"):
        said = check["complaint"] or "none in take_step" if check["checked"] else "not on a CPU"
        lines.append(f"Host synchronisations outside log steps: {said}.")
    if beside := all_found.get("overheads"):
        if "failed" in beside:
            lines.append(f"`rewarm train` failed: {beside['failed']}")
        else:
            told = all_found["settings"]
            tokens = told["microbatch"] * told["context"]
            bare = tokens / statistics.median(
                turn["step_s"] for turn in all_found["arms"]["rewarm"]["turns"]
            )
            share = beside["evaluation_s"] / (500 * tokens / bare)
            lines += [
                f"`rewarm train`, a log line every 10 steps: {beside['tokens_per_s']:,.0f} "
                f"tokens/s, {1 - beside['tokens_per_s'] / bare:+.2%} of the step's time for data "
                f"and logging together; {beside['data_wait']:.2%} waiting for data.",
                f"An evaluation of {beside['evaluation_tokens']:,} tokens took "
                f"{beside['evaluation_s']:.2f} s: {share:.2%} of the time at one in 500 steps.",
            ]
    return ["", *lines] if lines else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def spread(values: list[float], digits: int) -> str:
    """Returns `median (lowest to highest)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def arguments() -> argparse.ArgumentParser:
    """Returns what the command takes."""
    from rewarm.architecture import PRESETS
    from rewarm.recipe import Recipe

    precisions = get_args(Recipe.model_fields["precision"].annotation)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pythia-410m", choices=[*SMALL, *PRESETS])
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--precision", default="bf16", choices=precisions)
    parser.add_argument("--kernels", default="auto", choices=["auto", "plain"])
    parser.add_argument("--memory", default="fast", choices=["fast", "lean"])
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each arm")
    peers = ",".join(arm for arm in ARMS if arm != "rewarm")
    parser.add_argument("--peers", default=peers, help=f"of {peers}; '' for none")
    parser.add_argument("--profile", action="store_true", help="time by kernel family")
    parser.add_argument("--no-first-step", dest="first_step", action="store_false",
                        help="leave out the first step with a warm cache")  # fmt: skip
    parser.add_argument("--no-overheads", dest="overheads", action="store_false",
                        help="leave out `rewarm train` with data, log and evaluation")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write everything found")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Runs the arms and prints the tables."""
    said = arguments().parse_args()
    told = Said(*(getattr(said, name) for name in Said._fields))
    if said.only == "overheads":
        print(json.dumps(overheads(told, said.work, max(40, said.steps))))
        return
    if said.only:
        serve(said.only, told, said.work)
        return
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory() as work:
        all_found = compare(said, Path(work))
    text = in_markdown(all_found)
    print(text, end="")
    if said.json:
        said.json.write_text(json.dumps(all_found, indent=1) + "\n", encoding="utf-8")
    if said.markdown:
        said.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
