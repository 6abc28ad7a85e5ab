"""Training steps of rewarm and its peers: one GPU, same weights, same tokens, same optimizer.

    python benchmarks/training_step.py --model pythia-410m --microbatch 16 --profile \\
        --json step.json --markdown step.md
    python benchmarks/training_step.py --model tiny --microbatch 4 --context 64 --steps 2

Each arm is a separate process, which keeps its model between its turns; the turns are interleaved.
Figures are medians over the turns, with the spread. Peers that cannot be imported are skipped and
named; on a CPU nothing is compiled. The attention that ran is stated for each arm.

- rewarm: its own `take_step`, guard included, layers compiled as by `rewarm train`; the residual
  stream is in half precision, that of the peers in fp32, as autocast leaves it.
- rewarm cuDNN, flash, efficient, math: the same with this attention in place of its own choice, or
  with the next of them where it cannot be used. Only if `--peers` names them.
- litgpt: its GPT, compiled whole.
- transformers, transformers compiled: GPTNeoXForCausalLM, as it is and compiled whole.

All use fused AdamW with weight decay on matrices; clip 1.0; autocast at `--precision`, peers at
bf16 if that is fp8; the mean cross-entropy of fp32 logits. MFU counts 6 FLOPs per parameter in a
matmul and 12 · layers · hidden · context for attention (PaLM, arXiv:2204.02311, appendix B), over
the bf16 peak, for all alike. `first step` is of a process with an empty compile cache, and of a
second one with the cache that the first one filled; `from start` includes imports, weights and
compiling. Memory is the peak of the arm's tensors; on a CPU, of its process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, get_args

from spread import spread
from training_step_arms import ARMS, FAMILIES, PEERS, SMALL, StepSettings, architecture, serve

# The overhead of data, logging and evaluations, measured by `rewarm train` itself.

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


def overheads(settings: StepSettings, work: Path, steps: int) -> dict[str, float]:
    """Returns the speed, the share of waiting and the evaluation time of `rewarm train`."""
    from rewarm.data.shard_format import read_shard_index
    from rewarm.recipe.recipe import load_recipe
    from rewarm.runs.metrics_file import read_metrics
    from rewarm.training.loop import train

    _shard(work)
    batch = settings.microbatch * settings.context
    path = work / "recipe.yaml"
    path.write_text(
        f"kernels: {settings.kernels}\nmemory: {settings.memory}\n"
        f"deterministic: {str(settings.deterministic).lower()}\n"
        + RECIPE.format(
            work=work,
            tokens=batch * steps,
            batch=batch,
            held_out=4 * batch,
            steps=steps,
            context=settings.context,
            microbatch=settings.microbatch,
            precision=settings.precision,
        )
    )
    recipe = load_recipe(path)
    train(recipe)
    lines = read_metrics(Path(recipe.run) / "metrics.jsonl")
    events = (Path(recipe.run) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    evaluations = [event for event in map(json.loads, events) if event["kind"] == "evaluate"]
    available = (read_shard_index(work / "shards" / "val").tokens - 1) // settings.context
    trained = [line for line in lines if line["kind"] == "train"][
        1:
    ]  # the first line includes compiling
    return {
        "tokens_per_s": statistics.median(line["tokens_per_second"] for line in trained),
        "data_wait": statistics.median(line["data_wait"] for line in trained),
        "evaluation_s": evaluations[-1]["seconds"],
        "evaluation_tokens": min(4 * batch, available * settings.context),
    }


def _shard(work: Path) -> None:
    """Writes shards of this repository's own text, with a byte-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from rewarm.data.sharding.shard_writer import write_shards
    from rewarm.data.tokenizer import load_tokenizer

    root = Path(__file__).parents[1]
    texts = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("rewarm/**/*.py")]
    with (work / "text.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted(texts):
            file.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate([*letters, "<|endoftext|>"])}
    encoder = Tokenizer(models.BPE(vocabulary, []))
    encoder.add_special_tokens(["<|endoftext|>"])
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.save(str(work / "tokenizer.json"))
    tokenizer = load_tokenizer(str(work / "tokenizer.json"))
    write_shards([work / "text.jsonl"], work / "shards", tokenizer, validation=0.1)


# The parent process: it starts the arms, gives them turns, and prints their answers.


class Process:
    """An arm in a separate process."""

    def __init__(self, name: str, work: Path, caches: Path) -> None:
        """Starts the process with these compile caches."""
        self.name = name
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
        }
        self._errors = (work / f"{caches.name}.err").open("w+")
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--only", name, "--work", str(work)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def first_step(self) -> dict[str, Any]:
        """Waits for the first step and returns its results."""
        return self._answer() | {"from_start_s": time.perf_counter() - self._started}

    def ask(self, request: str, steps: int) -> dict[str, Any]:
        """Returns the arm's answer.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdin
        with suppress(BrokenPipeError):  # its last line of output is the better message
            print(request, steps, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"{self.name} ended: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class Stopped(Exception):
    """SIGTERM was received: the results so far are printed."""


def _stop(*_: Any) -> None:
    raise Stopped


class ArmResults(NamedTuple):
    """The measurements of one arm."""

    cold: dict[str, Any]
    warm: dict[str, Any] | None
    turns: list[dict[str, Any]]
    profile: dict[str, float] | None


class Comparison:
    """The arms of one comparison and their results."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options, self._work = options, work
        self._arms: dict[str, Process] = {}
        self._results: dict[str, ArmResults] = {}
        self.missing = [
            arm for arm in requested_arms(options) if importlib.util.find_spec(ARMS[arm]) is None
        ]
        self.failed: dict[str, str] = {}
        self.checks: dict[str, Any] = {}

    @property
    def measured(self) -> dict[str, ArmResults]:
        """The results of the arms that took at least one turn and did not fail."""
        return {
            name: results
            for name, results in self._results.items()
            if name not in self.failed and results.turns
        }

    def run(self) -> None:
        """Makes all measurements, until stopped."""
        options = self._options
        try:
            for name in [arm for arm in requested_arms(options) if arm not in self.missing]:
                self._try(name, self._start)
            for _ in range(options.repeats):
                self._all(self._turn)
            if options.profile:
                self._all(self._profile)
            if "rewarm" in self.measured:
                self._try("rewarm", self._host_synchronizations)
            self._end()
            if options.overheads and "rewarm" in self.measured:
                self.checks["overheads"] = _overheads(self._work)
        except Stopped:
            self.checks["stopped"] = True
        finally:
            self._end()

    def _all(self, measure: Callable[[str], None]) -> None:
        for name in [arm for arm in self._results if arm not in self.failed]:
            self._try(name, measure)

    def _try(self, name: str, measure: Callable[[str], None]) -> None:
        try:
            measure(name)
        except RuntimeError as error:
            self.failed[name] = str(error)

    def _start(self, name: str) -> None:
        caches = self._work / f"caches of {name}"
        self._arms[name] = process = Process(name, self._work, caches)
        try:
            cold, warm = process.first_step(), None
            if self._options.first_step:
                again = Process(name, self._work, caches)
                try:
                    warm = again.first_step()
                finally:
                    again.end()
        except RuntimeError:
            process.end()  # the other arms need its memory
            raise
        self._results[name] = ArmResults(cold, warm, [], None)
        _log(f"{name}: first step after {cold['from_start_s']:.1f} s")

    def _turn(self, name: str) -> None:
        turn = self._arms[name].ask("turn", self._options.steps)
        self._results[name].turns.append(turn)
        _log(f"{name}: {1e3 * turn['step_s']:.1f} ms a step")

    def _profile(self, name: str) -> None:
        profile = self._arms[name].ask("profile", 3)
        self._results[name] = self._results[name]._replace(profile=profile)

    def _host_synchronizations(self, name: str) -> None:
        self.checks["host_synchronizations"] = self._arms[name].ask("host_synchronizations", 3)

    def _end(self) -> None:
        for process in self._arms.values():
            process.end()


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs the arms, and returns all results."""
    prepare(options, work)
    comparison = Comparison(options, work)
    comparison.run()
    return {
        "settings": {k: v for k, v in vars(options).items() if isinstance(v, int | str | bool)},
        "machine": machine(),
        "arms": {name: results._asdict() for name, results in comparison.measured.items()},
        "missing": comparison.missing,
        "failed": comparison.failed,
        **comparison.checks,
    }


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _overheads(work: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", "overheads", "--work", str(work)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        return {"failed": (process.stderr.strip().splitlines() or ["no output"])[-1]}
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def requested_arms(options: argparse.Namespace) -> list[str]:
    """Returns the requested arms, in order."""
    import torch

    names = [name.strip() for name in options.peers.split(",") if name.strip()]
    if unknown := set(names) - set(ARMS):
        sys.exit(f"--peers: no arm named {', '.join(sorted(unknown))}; arms: {', '.join(ARMS)}")
    on_gpu = torch.cuda.is_available()
    peers = [name for name in names if name != "rewarm" and (on_gpu or "compiled" not in name)]
    return ["rewarm", *peers]


def prepare(options: argparse.Namespace, work: Path) -> None:
    """Writes the weights and the tokens of all arms."""
    import torch
    from safetensors.torch import save_file

    from rewarm.model.neox import NeoX, initialize_weights

    shape = architecture(options.model)
    model = NeoX(shape)
    initialize_weights(model, 1)
    (work / "weights").mkdir()
    save_file(model.state_dict(), work / "weights" / "model.safetensors")
    (work / "weights" / "config.json").write_text(json.dumps(shape.to_hugging_face()))
    generator = torch.Generator().manual_seed(1)
    size = (8, options.microbatch, options.context + 1)
    torch.save(torch.randint(shape.vocabulary, size, generator=generator), work / "tokens.pt")


def machine() -> dict[str, str]:
    """Returns the device, its driver and the relevant versions."""
    import torch

    device = {"device": platform.processor() or platform.machine(), "driver": "none"}
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            process = subprocess.run(query, capture_output=True, text=True, check=False)
            driver = (process.stdout.splitlines() or ["unknown"])[0]
        except OSError:
            driver = "unknown"
        device = {"device": torch.cuda.get_device_name(), "driver": driver}
    packages = ["rewarm", "torch", "triton", "transformers", "litgpt"]
    return {
        **device,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        **{name: number for name in packages if (number := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


# Printing.


def format_results(results: dict[str, Any]) -> str:
    """Returns the tables in Markdown."""
    settings, arms = results["settings"], results["arms"]
    peers = " (peers in bf16)" if settings["precision"] == "fp8" else ""
    lines = [
        f"{settings['model']}, {settings['microbatch']} × {settings['context']:,} tokens per step, "
        f"{settings['precision']}{peers}, kernels: {settings['kernels']}, "
        f"memory: {settings['memory']}{', deterministic' if settings['deterministic'] else ''}; "
        f"{settings['steps']} steps per turn, {settings['repeats']} interleaved turns: median "
        "(lowest to highest)",
        ", ".join(f"{name} {value}" for name, value in results["machine"].items()),
        "",
    ]
    table = [
        _row(settings, results["machine"]["device"], name, arm, arms) for name, arm in arms.items()
    ]
    lines += _table(
        ["arm", "tokens/s", "rewarm × it", "step, ms", "MFU", "peak, GB",
         "first step, cold / warm, s", "from start, cold / warm, s", "loss, first and last"],
        table,
    )  # fmt: skip
    lines += [f"{name}: {arm['cold']['note']}" for name, arm in arms.items() if arm["cold"]["note"]]
    if results["missing"]:
        lines += ["", f"Not importable here: {', '.join(results['missing'])}."]
    lines += [f"{name} failed: {reason}" for name, reason in results["failed"].items()]
    profiled = {name: arm["profile"] for name, arm in arms.items() if arm["profile"]}
    if profiled:
        families = [*FAMILIES, "other", "idle"]
        rows = [[f, *(f"{profile[f]:.2f}" for profile in profiled.values())] for f in families]
        rows.append(["sum", *(f"{sum(profile.values()):.2f}" for profile in profiled.values())])
        lines += ["", "Milliseconds per step under the profiler, by kernel family:", ""]
        lines += _table(["", *profiled], rows)
    lines += _checks(results)
    return "\n".join(lines) + "\n"


def _row(
    settings: dict[str, Any], device: str, name: str, arm: dict[str, Any], arms: dict[str, Any]
) -> list[str]:
    from rewarm.estimates.throughput import peak_flops

    tokens, flops = settings["microbatch"] * settings["context"], peak_flops(device)
    speeds = [tokens / turn["step_s"] for turn in arm["turns"]]
    per_token = architecture(settings["model"]).flops_per_token(settings["context"])
    ours = [tokens / turn["step_s"] for turn in arms["rewarm"]["turns"]] if "rewarm" in arms else []
    ratios = [a / b for a, b in zip(ours, speeds, strict=False)]
    losses = [*arm["cold"]["loss"], *(loss for turn in arm["turns"] for loss in turn["loss"])]
    both = [arm["cold"], arm["warm"]] if arm["warm"] else [arm["cold"]]
    return [
        name,
        spread(speeds, 0),
        spread(ratios, 2) if ratios and name != "rewarm" else "",
        spread([1e3 * turn["step_s"] for turn in arm["turns"]], 1),
        spread([100 * speed * per_token / flops for speed in speeds], 1) + " %" if flops else "",
        f"{max(turn['peak_bytes'] for turn in arm['turns']) / 1e9:.2f}",
        " / ".join(f"{run['first_step_s']:.1f}" for run in both),
        " / ".join(f"{run['from_start_s']:.1f}" for run in both),
        f"{losses[0]:.4f} → {losses[-1]:.4f}",
    ]


def _checks(results: dict[str, Any]) -> list[str]:
    """Returns the lines about host synchronizations and overheads."""
    lines = []
    if results.get("stopped"):
        lines.append("Stopped: missing results had no turn yet.")
    if check := results.get("host_synchronizations"):
        verdict = check["error"] or "none in take_step" if check["checked"] else "not on a CPU"
        lines.append(f"Host synchronizations outside log steps: {verdict}.")
    if measured := results.get("overheads"):
        if "failed" in measured:
            lines.append(f"`rewarm train` failed: {measured['failed']}")
        else:
            settings = results["settings"]
            tokens = settings["microbatch"] * settings["context"]
            step_speed = tokens / statistics.median(
                turn["step_s"] for turn in results["arms"]["rewarm"]["turns"]
            )
            share = measured["evaluation_s"] / (500 * tokens / step_speed)
            lines += [
                f"`rewarm train`, a log line every 10 steps: {measured['tokens_per_s']:,.0f} "
                f"tokens/s, {1 - measured['tokens_per_s'] / step_speed:+.2%} of the step's time "
                f"for data and logging together; {measured['data_wait']:.2%} waiting for data.",
                f"An evaluation of {measured['evaluation_tokens']:,} tokens took "
                f"{measured['evaluation_s']:.2f} s: {share:.2%} of the time at one in 500 steps.",
            ]
    return ["", *lines] if lines else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of the command's arguments."""
    from rewarm.model.architecture import PRESETS
    from rewarm.recipe.recipe import Recipe

    precisions = get_args(Recipe.model_fields["precision"].annotation)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pythia-410m", choices=[*SMALL, *PRESETS])
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--precision", default="bf16", choices=precisions)
    parser.add_argument("--kernels", default="auto", choices=["auto", "plain"])
    parser.add_argument("--memory", default="fast", choices=["fast", "lean"])
    parser.add_argument("--deterministic", action="store_true",
                        help="use deterministic operations (rewarm only)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each arm")
    others = ", ".join(arm for arm in ARMS if arm != "rewarm")
    parser.add_argument("--peers", default=",".join(PEERS),
                        help=f"arms to compare with, some of {others}; '' for none")  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="time by kernel family")
    parser.add_argument("--no-first-step", dest="first_step", action="store_false",
                        help="skip the first step with a warm cache")  # fmt: skip
    parser.add_argument("--no-overheads", dest="overheads", action="store_false",
                        help="skip `rewarm train` with data, log and evaluation")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write all results")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Runs the arms and prints the tables."""
    options = arguments().parse_args()
    settings = StepSettings(*(getattr(options, name) for name in StepSettings._fields))
    if options.only == "overheads":
        print(json.dumps(overheads(settings, options.work, max(40, options.steps))))
        return
    if options.only:
        serve(options.only, settings, options.work)
        return
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory() as work:
        results = compare(options, Path(work))
    text = format_results(results)
    print(text, end="")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
