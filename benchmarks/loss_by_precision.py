"""The loss of the same model, weights and tokens in each precision, compared with fp32.

    python benchmarks/loss_by_precision.py OUT [--steps 1000] [--model 'preset: pythia-70m'] ...

Trains on the quickstart's text, Python's standard library (nothing is downloaded),
and writes OUT/precision.md, .json and .png. The figures are the validation loss at the end, the
mean training loss of the last fifty steps, and their differences to the first arm's. `--arm
lean=precision=bf16,memory=lean` adds an arm with any settings. Complete runs in OUT are not trained
again. On a CPU, TF32 is the same as fp32 and all kernels are plain, so those arms are skipped. With
TRITON_INTERPRET=1 a CPU also runs the Triton kernels, in bf16 and fp8, so slowly that it takes a
tiny model and few steps (`--evaluated` is the number of tokens of each set to evaluate on).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from quickstart_shards import write_quickstart_shards

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.model.kernels.selection import triton_kernels
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.training.loop import train

RECIPE = """\
run: runs/{name}
seed: 7
tokens: {tokens}
model: {{{model}}}
data:
  context: {context}
  max_epochs: null
  train:
    english: {{shards: shards/upstream/train, weight: 50%}}
    code: {{shards: shards/downstream/train, weight: 50%}}
  validation:
    english: {{shards: shards/upstream/val, tokens: {evaluated}}}
    code: {{shards: shards/downstream/val, tokens: {evaluated}}}
batch: {{tokens: {batch}, microbatch: {microbatch}}}
schedule: {{name: rewarm, peak_lr: {lr}, min_lr: {floor}, warmup: 5%}}
every: {{log: 1, evaluate: {evaluate_every}, save: null}}
"""
ARMS = {
    "fp32": "precision=fp32",
    "tf32": "precision=fp32,tf32=true",
    "bf16": "precision=bf16",
    "fp16": "precision=fp16",
    "fp8": "precision=fp8",
    "bf16, plain kernels": "precision=bf16,kernels=plain",
    "fp8, plain kernels": "precision=fp8,kernels=plain",
}
ON_A_GPU = ("tf32", "bf16, plain kernels", "fp8, plain kernels")
SMALL = "architecture: {layers: 4, hidden: 96, heads: 4, vocabulary: 4096, positions: 128}"
LAST = 50


def arm(document: Path, settings: str) -> dict[str, object]:
    """Trains a run unless it is complete, and returns its figures."""
    recipe = load_recipe(document, settings.split(","))
    last = last_checkpoint(recipe.run_directory)
    if last is None or last.name != f"step-{recipe.steps:08d}":
        train(recipe, resume=True)
    lines = read_metrics(Path(recipe.run) / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    end = [line for line in lines if line["kind"] == "evaluate"][-1]
    tail = [line["loss"] for line in trained[-LAST:]]
    return {
        **{key: value for key, value in end.items() if key.endswith("/loss")},
        "train/loss": sum(tail) / len(tail),
        "skipped": trained[-1]["skipped"],
        "loss_scale": trained[-1].get("loss_scale"),
        "stream": trained[-1]["stream"],
    }


def table(results: dict[str, dict[str, object]]) -> str:
    """Returns the figures as Markdown, with differences from the first arm."""
    losses = [key for key in next(iter(results.values())) if key.endswith("/loss")]
    rows = [["precision", *losses, "steps not applied", "loss scale"]]
    first = next(iter(results.values()))
    for name, figures in results.items():
        row = [name]
        for key in losses:
            loss, reference = float(str(figures[key])), float(str(first[key]))
            difference = loss - reference
            row.append(f"{loss:.4f} ({difference:+.4f}, {difference / reference:+.3%})")
        rows.append([*row, str(figures["skipped"]), f"{figures['loss_scale'] or '—'}"])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def picture(runs: dict[str, Path], out: Path) -> None:
    """Draws the training losses and their differences from the first arm's on the same batches."""
    from matplotlib.figure import Figure

    losses = {
        name: np.array(
            [
                line["loss"]
                for line in read_metrics(run / "metrics.jsonl")
                if line["kind"] == "train"
            ]
        )
        for name, run in runs.items()
    }
    figure = Figure(figsize=(10.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    first, *others = losses
    window = np.ones(LAST) / LAST
    for number, (name, values) in enumerate(losses.items()):
        style = {"color": f"C{number}", "ls": ("-", "--", ":", "-.")[number % 4]}
        steps = np.arange(LAST, len(values) + 1)
        left.plot(steps, np.convolve(values, window, "valid"), label=name, **style)
        if name in others:
            percent = 100 * (values - losses[first]) / losses[first]
            right.plot(steps, np.convolve(percent, window, "valid"), label=name, **style)
    left.set_title(f"training loss, nats (mean of {LAST} steps)", loc="left", fontsize=10)
    right.set_title(f"per cent above {first}'s, on the same batches", loc="left", fontsize=10)
    right.axhline(0, color="0.6", lw=0.8, zorder=0)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=130)


def interpret() -> None:
    """Makes `kernels: auto` choose Triton on a CPU."""
    from interpreter_rounding import rounding
    from triton.runtime import interpreter

    interpreter._convert_float = rounding()
    from rewarm.model.kernels.selection import choose_kernels
    from rewarm.training import start_or_resume

    choose = choose_kernels
    start_or_resume.choose_kernels = lambda setting, device: (
        (triton_kernels(), ", with Triton kernels, interpreted")
        if setting == "auto"
        else choose(setting, device)
    )


def arguments(*, on_gpu: bool) -> argparse.ArgumentParser:
    """Returns the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--model", default="preset: pythia-70m" if on_gpu else SMALL)
    parser.add_argument("--context", type=int, default=512 if on_gpu else 128)
    parser.add_argument("--batch", type=int, default=32_768 if on_gpu else 2048)
    parser.add_argument("--microbatch", default="auto")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--evaluated", type=int, default=2_000_000 if on_gpu else 20_000)
    parser.add_argument("--arm", action="append", default=[])
    return parser


def write_recipe(name: str, options: argparse.Namespace, *, evaluations: int) -> Path:
    """Writes the recipe of an arm without its own settings."""
    path: Path = options.out / f"{name}.yaml"
    text = RECIPE.format(
        name=name,
        tokens=options.steps * options.batch,
        model=options.model,
        context=options.context,
        batch=options.batch,
        microbatch=options.microbatch,
        lr=options.lr,
        floor=options.lr / 10,
        evaluated=options.evaluated,
        evaluate_every=max(1, options.steps // evaluations),
    )
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    """Trains the arms, and writes the figures and the picture."""
    on_gpu = torch.cuda.is_available()
    interpreted = not on_gpu and os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted:
        interpret()
    options = arguments(on_gpu=on_gpu).parse_args()
    skipped = () if on_gpu else ("fp32", "tf32", "fp16") if interpreted else ON_A_GPU
    arms = {name: settings for name, settings in ARMS.items() if name not in skipped}
    arms |= dict(addition.split("=", 1) for addition in options.arm)
    write_quickstart_shards(options.out)
    results, runs = {}, {}
    for name, settings in arms.items():
        recipe = write_recipe(name, options, evaluations=4 if interpreted else 20)
        results[name] = arm(recipe, settings)
        runs[name] = options.out / "runs" / name
        assert len({figures["stream"] for figures in results.values()}) == 1, "not the same tokens"
        report(options, results, runs, on_gpu=on_gpu, interpreted=interpreted)
    print((options.out / "precision.md").read_text(encoding="utf-8"))


def report(
    options: argparse.Namespace,
    results: dict[str, dict[str, object]],
    runs: dict[str, Path],
    *,
    on_gpu: bool,
    interpreted: bool,
) -> None:
    """Writes the results so far, so that none is lost if the time runs out."""
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu"
    header = (
        f"{device}, torch {torch.__version__}, rewarm {version('rewarm')}; {options.model}; "
        f"{options.steps:,} steps of {options.batch:,} tokens, context {options.context}; one seed"
        f"{'; kernels interpreted' if interpreted else ''}"
    )
    text = f"{header}\n\n{table(results)}\n"
    (options.out / "precision.md").write_text(text, encoding="utf-8")
    about = {"about": header, "arms": results}
    (options.out / "precision.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    picture(runs, options.out / "precision.png")


if __name__ == "__main__":
    main()
