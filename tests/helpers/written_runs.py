"""Run directories that look as if training had written them."""

import json
import math
import random
from pathlib import Path

import yaml

HOSTILE = "</script><img src=x onerror=alert(1)>"


def write_run(run: Path, points=30, *, seed=17, batch=2048, peak=3e-4, settings=None, every=10):
    """Writes a recipe and metrics: a noisy, falling training loss, and smooth validation losses."""
    rng = random.Random(str(run))
    run.mkdir(parents=True)
    recipe = {
        "run": str(run),
        "seed": seed,
        "tokens": points * batch,
        "model": {"preset": "pythia-14m"},
        "data": {"context": 128, "train": {"downstream": {"shards": "data/new"}}},
        "batch": {"tokens": batch, "microbatch": 1},
        "schedule": {"name": "rewarm", "peak_lr": peak, "min_lr": peak / 10, "warmup": 0.1},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | (settings or {}), sort_keys=False))
    lines = []
    for step in range(points + 1):
        x = step / points
        if step:
            lr = peak * min(1, x / 0.1) * (0.55 + 0.45 * math.cos(math.pi * x))
            loss = 2 + 3 * math.exp(-3 * x) + rng.gauss(0, 0.05)
            optimizer = {"lr": lr, "loss": loss, "grad_norm": 0.5, "skipped": 0}
            speed = {"tokens_per_second": 1000.0, "mfu": None, "stream": f"{seed:032d}"}
            line = {"kind": "train", "step": step, "tokens": step * batch}
            lines.append(line | optimizer | speed)
        if step % every == 0 or step == points:
            losses = {"upstream/loss": 3 + 0.5 * x, "downstream/loss": 2.5 + 2 * math.exp(-2 * x)}
            lines.append({"kind": "evaluate", "step": step, "tokens": step * batch} | losses)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = {"kind": "start", "time": "2026-01-01T00:00:00+00:00", "step": 0}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    return run
