"""Training steps side by side: one GPU, the same weights, the same tokens, the same optimiser.

    python benchmarks/training_step.py --model pythia-410m --microbatch 16 --profile \\
        --json step.json --markdown step.md
    python benchmarks/training_step.py --model tiny --microbatch 4 --context 64 --steps 2   # on a CPU

Each arm lives in a process of its own, which holds its model between its turns; the turns are
interleaved. Figures are medians over the turns, with the spread. Peers that cannot be imported are
left out and named; on a CPU nothing is compiled.

- rewarm: its own `take_step`, guard included, layers compiled as `rewarm train` does; the residual
  stream is in half precision, that of the peers in fp32, as autocast leaves it.
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

from training_step_arms import ARMS, FAMILIES, SMALL, Said, architecture, serve

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
    from rewarm.recipe.recipe import load_recipe
    from rewarm.runs.metrics_file import read_metrics
    from rewarm.training import loop

    _shard(work)
    batch = said.microbatch * said.context
    path = work / "recipe.yaml"
    path.write_text(
        f"kernels: {said.kernels}\nmemory: {said.memory}\n"
        f"deterministic: {str(said.deterministic).lower()}\n"
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
    told = load_recipe(path)
    spent: list[tuple[float, int]] = []
    measure_all = loop.measure_all

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        measured = measure_all(*given)
        spent.append((time.perf_counter() - began, sum(one.tokens for one in measured.values())))
        return measured

    loop.measure_all = timed
    loop.train(told)
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

    from rewarm.data.shard_writer import write_shards
    from rewarm.data.tokenizer import load_tokenizer

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
    said = load_tokenizer(str(work / "tokenizer.json"))
    write_shards([work / "text.jsonl"], work / "shards", said, validation=0.1)


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
        try:
            cold, warm = process.hello(), None
            if self._said.first_step:
                again = Process(name, self._work, caches)
                try:
                    warm = again.hello()
                finally:
                    again.end()
        except RuntimeError:
            process.end()  # the others need its memory
            raise
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

    from rewarm.model.neox import NeoX, initialize_weights

    shape = architecture(said.model)
    model = NeoX(shape)
    initialize_weights(model, 1)
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
        f"{told['precision']}{peers}, kernels: {told['kernels']}, memory: {told['memory']}"
        f"{', deterministic' if told['deterministic'] else ''}; "
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
    from rewarm.estimates.throughput import peak_flops

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
                        help="rewarm alone takes what gives the same bits each time")  # fmt: skip
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
