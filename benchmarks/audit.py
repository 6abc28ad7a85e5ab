"""Computes again, by other code, what a study publishes: rates, updates, figures and verdicts.

    python benchmarks/audit.py                    # trains a small study; about two minutes
    python benchmarks/audit.py --study runs/x     # figures and verdicts of a finished study

Nothing of rewarm is imported: rates are formulas of arXiv:2308.04014, gradients those of
transformers in double precision, updates AdamW written out, figures come from metrics.jsonl, and
the verdicts from Student's t of scipy. Prints in how many digits both agree.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats
from transformers import GPTNeoXForCausalLM

PERIOD = 32
PEAK, FLOOR = 3e-4, 3e-5
ARCHITECTURE = "{layers: 2, hidden: 32, heads: 2, vocabulary: 512, positions: 64}"
CURVES: dict[str, Callable[[float, float], float]] = {
    # n updates and W of warm-up, both as shares of the run
    "clipped-cosine": lambda x, w: max(PEAK / 2 * (1 + math.cos(math.pi * (x - w))), FLOOR),
    "cosine": lambda x, w: FLOOR + (PEAK - FLOOR) / 2 * (1 + math.cos(math.pi * (x - w) / (1 - w))),
    "linear": lambda x, w: PEAK - (PEAK - FLOOR) * (x - w) / (1 - w),
    "1-sqrt": lambda x, w: PEAK - (PEAK - FLOOR) * math.sqrt((x - w) / (1 - w)),
    "inverse-sqrt": lambda x, w: max(PEAK * math.sqrt(w / x), FLOOR),
}


def digits(pairs: Iterable[tuple[float, float]]) -> str:
    """Returns the number of pairs, and in how many digits those of the worst one agree."""
    errors = [abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in pairs]
    worst = max(errors, default=0.0)
    exact = f"{-math.log10(worst):.1f} digits" if worst else "every bit"
    return f"{len(errors):,} compared, worst {worst:.1e}: {exact}"


def rewarm(*arguments: object) -> str:
    """Runs a command of rewarm and returns its output."""
    command = [sys.executable, "-m", "rewarm", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {ended.returncode}\n{ended.stderr}")
    return ended.stdout


def audit_schedules(steps: int = 131_296, warmup: float = 0.01) -> Iterable[str]:
    """Yields the agreement of each decay at 2,000 steps of the paper's run."""
    chosen = sorted({1, steps, *np.linspace(1, steps, 2000, dtype=int).tolist()})
    for name, decay in CURVES.items():
        settings = {"peak_lr": PEAK, "min_lr": FLOOR, "warmup": warmup, "decay": name}
        arguments = [f"--set=schedule.{key}={value}" for key, value in settings.items()]
        table = rewarm(
            "plot-schedule", "--schedule", "rewarm", "--tokens", steps * 2_097_152, *arguments,
            "--at", ",".join(map(str, chosen)), "--format", "csv",
        )  # fmt: skip
        rates = {int(row["step"]): float(row["lr"]) for row in csv.DictReader(table.splitlines())}
        expected = {
            n: PEAK * n / steps / warmup if n / steps < warmup else decay(n / steps, warmup)
            for n in rates
        }
        yield f"schedule {name}: {digits((rates[n], expected[n]) for n in rates)}"


def write_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer of bytes and one more token, of 257 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def recipe(run: Path, model: str, corpus: str, steps: int, **more: str) -> str:
    """Returns a recipe of steps of 4 sequences, two at once; `more` replaces its lines."""
    lines = {
        "run": str(run),
        "seed": "3",
        "tokens": str(steps * 4 * PERIOD),
        "model": model,
        "data": f"{{context: {PERIOD}, lanes: 1, max_epochs: null, train: {{{corpus}}}}}",
        "batch": f"{{tokens: {4 * PERIOD}, microbatch: 2}}",
        "schedule": "{name: rewarm, start_lr: 0, peak_lr: 3e-3, min_lr: 3e-4, warmup: 20%}",
        "precision": "fp32",
        "every": "{log: 1, evaluate: null, save: null}",
    }
    return "".join(f"{name}: {value}\n" for name, value in {**lines, **more}.items())


def audit_updates(folder: Path, steps: int = 5) -> Iterable[str]:
    """Yields the agreement of losses, gradient norms and weights over some updates.

    The corpus repeats the same tokens with the period of a sequence, so that all sequences of all
    batches are the same, whatever their order.
    """
    period = np.random.default_rng(7).integers(0, 256, PERIOD)
    np.save(folder / "tokens.npy", np.tile(period, 400)[: 399 * PERIOD + 1].astype(np.uint16))
    tokenizer = write_tokenizer(folder)
    rewarm("shard", folder / "tokens.npy", "--out", folder / "periodic", "--tokenizer", tokenizer)
    corpus = f"old: {{shards: {folder}/periodic}}"
    for name, model, count in (
        ("start", f"{{architecture: {ARCHITECTURE}}}", 1),
        ("continued", f"{{base: {folder}/start}}", steps),
    ):
        (folder / f"{name}.yaml").write_text(recipe(folder / name, model, corpus, count))
        rewarm("train", folder / f"{name}.yaml")
    (start,) = (folder / "start" / "checkpoints").iterdir()
    (end,) = (folder / "continued" / "checkpoints").iterdir()
    lines = map(json.loads, (folder / "continued" / "metrics.jsonl").read_text().splitlines())
    measured = [line for line in lines if line["kind"] == "train"]

    model = GPTNeoXForCausalLM.from_pretrained(start, dtype=torch.float64)
    tokens = torch.from_numpy(np.tile(period, 2)[: PERIOD + 1].astype(np.int64))[None]
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in named(model)}
    expected = []
    for step in range(1, steps + 1):
        model.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        squares = [p.grad.square().sum() for _, p in named(model)]
        norm = torch.stack(squares).sum().sqrt().item()
        expected.append((loss.item(), norm))
        with torch.no_grad():
            for name, parameter in named(model):
                adamw(parameter, *moments[name], step, measured[step - 1]["lr"], min(1, 1 / norm))
    pairs = [(line["loss"], loss) for line, (loss, _) in zip(measured, expected, strict=True)]
    yield f"losses of {steps} updates: {digits(pairs)}"
    pairs = [(line["grad_norm"], norm) for line, (_, norm) in zip(measured, expected, strict=True)]
    yield f"gradient norms: {digits(pairs)}"
    weights, before = load_file(end / "model.safetensors"), load_file(start / "model.safetensors")
    ours, reference, start_of = (
        torch.cat([tensors[name].detach().double().flatten() for name in weights])
        for tensors in (weights, on_disk(model), before)
    )
    error = (ours - reference).norm()
    yield f"weights: {digits([(float(reference.norm()), float(reference.norm() + error))])}"
    relative = float(error / (reference - start_of).norm())
    yield f"change of all weights: error {relative:.1e}: {-math.log10(relative):.1f} digits"


def on_disk(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters by their names on disk."""
    return {name.replace("lm_head.", "embed_out."): p for name, p in named(model)}


def named(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Returns the parameters by name."""
    return list(model.named_parameters())


def adamw(
    p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, step: int, lr: float, clip: float
) -> None:
    """One update of AdamW (arXiv:1711.05101): β = (0.9, 0.95), ε = 1e-8, decay 0.1 of matrices."""
    assert p.grad is not None
    g = p.grad * clip
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.95).add_(0.05 * g * g)
    if p.ndim > 1:
        p.mul_(1 - lr * 0.1)
    p.sub_(lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8))


def write_study(folder: Path) -> Path:
    """Writes and runs a small study, with claims of every kind; returns its folder."""
    draw = np.random.default_rng(1)
    for name, letters in (("old", "abcdefgh "), ("new", "opqrstuv ")):
        texts = ("".join(draw.choice(list(letters), 200)) for _ in range(150))
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
        rewarm("shard", folder / f"{name}.jsonl", "--out", folder / name, "--validation", "20%",
               "--tokenizer", write_tokenizer(folder))  # fmt: skip
    sets = ", ".join(
        f"{role}: {{shards: {folder}/{name}/val, tokens: 1k}}"
        for role, name in (("upstream", "old"), ("downstream", "new"))
    )
    every = {"every": "{log: 10, evaluate: [{until: 10%, every: 1}, {every: 5}], save: null}"}
    for name, corpus in (("old", "upstream"), ("new", "downstream")):
        train = f"{corpus}: {{shards: {folder}/{name}/train}}"
        model = f"{{architecture: {ARCHITECTURE}}}" if name == "old" else (
            f"{{base: {folder}/study/bases/old}}"
        )  # fmt: skip
        data = f"{{context: {PERIOD}, train: {{{train}}}, validation: {{{sets}}}}}"
        (folder / f"{name}.yaml").write_text(
            recipe(folder / name, model, train, 40, data=data, **every)
        )
    study = {
        "study": str(folder / "study"),
        "recipe": "new.yaml",
        "bases": {"old": "old.yaml"},
        "seeds": [1, 2, 3],
        "arms": {
            "rewarm": {},
            "high": {"schedule.peak_lr": 1e-2, "schedule.min_lr": 1e-3},
        },
        "claims": {
            "adapts": "final(downstream, high) < final(downstream, rewarm)",
            "forgets": "forgetting(upstream, high) > 120% * forgetting(upstream, rewarm)",
            "adaptation": "adaptation(downstream, rewarm) - 0.1 > start(upstream, high) / 1000",
            "bump": "bump(upstream, high, first 50%) > bump(upstream, rewarm, first 50%)",
            "area": "area(downstream, high) < area(downstream, rewarm)",
            "slope": "slope(downstream, rewarm, last 50%) < 0",
            "gap": "gap(downstream, rewarm, high, after 2560 tokens) < 0.5",
            "linearity": "linearity(upstream, downstream, rewarm) > 0.9",
            "overtakes": "overtakes(high, rewarm, downstream) before 30%",
            "abs": "abs(final(upstream, high) - final(upstream, rewarm)) < 0.001",
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    rewarm("compare", folder / "study.yaml", "--workers", 2)
    return folder / "study"


class Losses:
    """The losses of a run on a set in a part of it, from metrics.jsonl."""

    def __init__(self, run: Path, name: str, part: str = "") -> None:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        points = {line["tokens"]: line[f"{name}/loss"] for line in lines if f"{name}/loss" in line}
        self.total = max(points)
        self.start = points[min(points)]
        first, last = self._bounds(part)
        self.points = [(t, x) for t, x in sorted(points.items()) if first <= t <= last]
        self.tokens, self.losses = (list(column) for column in zip(*self.points, strict=True))

    def share(self, length: str) -> float:
        """Returns `5%` or `100 tokens` as a share of the run."""
        number = float(re.match(r"[0-9.]+", length)[0])  # type: ignore[index]
        return number / 100 if "%" in length else number / self.total

    def _bounds(self, part: str) -> tuple[float, float]:
        where, _, length = part.partition(" ")
        if not part:
            return 0, self.total
        share = self.share(length)
        first = {"first": 0.0, "after": share, "last": 1 - share}[where] - 1e-9
        last = (share if where == "first" else 1.0) + 1e-9
        return first * self.total, last * self.total

    def figures(self) -> dict[str, float]:
        """Returns all figures of one run and set."""
        area = np.trapezoid(self.losses, self.tokens) / (self.tokens[-1] - self.tokens[0])
        slope = np.polyfit(np.array(self.tokens) / self.total, self.losses, 1)[0]
        return {
            "start": self.start,
            "final": self.losses[-1],
            "forgetting": self.losses[-1] - self.start,
            "adaptation": self.start - self.losses[-1],
            "bump": max(self.losses) - self.start,
            "area": float(area),
            "slope": float(slope) * (self.tokens[-1] - self.tokens[0]) / self.total,
        }


def value_of(study: Path, seed: int, name: str, arguments: list[str]) -> float:
    """Returns a metric of a claim for a seed; NaN if one arm never overtakes the other."""

    def losses(arm: str, validation_set: str, part: str = "") -> Losses:
        return Losses(study / arm / str(seed), validation_set, part)

    if name == "overtakes":
        a, b = (dict(losses(arm, arguments[2]).points) for arm in arguments[:2])
        gaps = [(tokens, a[tokens] - b[tokens]) for tokens in sorted(a.keys() & b.keys())]
        if gaps[-1][1] >= 0:
            return math.nan
        crossings = [
            t0 + (t1 - t0) * g0 / (g0 - g1) for (t0, g0), (t1, g1) in pairwise(gaps) if g0 >= 0 > g1
        ]
        return max(crossings, default=0.0) / gaps[-1][0]
    if name == "gap":
        a, b = (dict(losses(arm, arguments[0], *arguments[3:]).points) for arm in arguments[1:3])
        return max(abs(a[tokens] - b[tokens]) for tokens in a.keys() & b.keys())
    if name == "linearity":
        x, y = (np.exp(losses(arguments[2], s, *arguments[3:]).losses) for s in arguments[:2])
        return float(stats.linregress(x, y).rvalue ** 2)
    return losses(arguments[1], arguments[0], *arguments[2:]).figures()[name]


def verdict_of(study: Path, claim: str, seeds: list[int]) -> tuple[str, float, float, float]:
    """Returns the verdict of a claim, the mean effect, and its 95 % interval."""
    left, sign, right = re.split(r"(<|>|\bafter\b(?![^(]*\))|\bbefore\b)", claim, maxsplit=1)
    if re.search(r"\bafter\b", claim) and sign in "<>":
        left, sign, right = re.split(r"(<|>)", claim, maxsplit=1)

    def side(text: str, seed: int) -> float:
        def number(match: re.Match[str]) -> str:
            arguments = [argument.strip() for argument in match[2].split(",")]
            return repr(value_of(study, seed, match[1], arguments))

        text = re.sub(r"\b(?!abs\b)([a-z]+)\(([^()]*)\)", number, text)
        text = re.sub(r"([0-9.]+)\s*%", r"(\1/100)", text)
        return float(eval(text.strip(), {"__builtins__": {}}, {"abs": abs, "nan": math.nan}))

    effects = [side(left, seed) - side(right, seed) for seed in seeds]
    mean = float(np.mean(effects))
    if math.isnan(mean):
        return ("not held" if all(map(math.isnan, effects)) else "undecided"), mean, mean, mean
    error = stats.sem(effects)
    low, high = mean - error * (t := stats.t.ppf(0.975, len(seeds) - 1)), mean + error * t
    if low <= 0 <= high:
        return "undecided", mean, low, high
    return ("held" if (low > 0) == (sign in (">", "after")) else "not held"), mean, low, high


def audit_study(study: Path) -> Iterable[str]:
    """Yields the agreement of the figures and the verdicts of results.json."""
    results: dict[str, Any] = json.loads((study / "results.json").read_text())
    pairs = [
        (sets[name][figure], expected)
        for arm, of_arm in results["arms"].items()
        for seed, of_seed in of_arm["seeds"].items()
        for sets in [of_seed["sets"]]
        for name in sets
        for figure, expected in Losses(study / arm / seed, name).figures().items()
        if sets[name].get(figure) is not None
    ]
    yield f"figures of {len(results['arms'])} arms: {digits(pairs)}"
    effects, wrong = [], []
    for name, claim in results["claims"].items():
        verdict, *numbers = verdict_of(study, claim["claim"], results["seeds"])
        if verdict != claim["verdict"]:
            wrong.append(f"{name}: {verdict} and not {claim['verdict']}")
        if claim["effect"] and claim["effect"]["interval"]:
            effects += zip([claim["effect"]["mean"], *claim["effect"]["interval"]], numbers,
                           strict=True)  # fmt: skip
    yield f"effects and intervals of the claims: {digits(effects)}"
    yield f"verdicts: {len(results['claims']) - len(wrong)} of {len(results['claims'])} equal"
    yield from wrong


def main() -> None:
    """Prints one line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, help="the folder of a finished study")
    study = parser.parse_args().study
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for line in audit_schedules():
            print(line, flush=True)
        for line in audit_updates(folder):
            print(line, flush=True)
        for line in audit_study(study or write_study(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
