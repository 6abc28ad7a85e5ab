"""Run directories whose losses follow the law of `rewarm.predict` exactly."""

import json
from pathlib import Path

import numpy as np
import yaml
from synthetic_probes import LAW, LOGARITHMS, Arm

from rewarm.predict.law import rate_curve
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

BATCH = 2048
PEAK = 2e-3
STARTS = {"upstream": 3.5, "downstream": 5.9}
ARMS = {"peak": Arm(), "half": Arm(0.5), "quarter": Arm(0.25), "replay": Arm(replay=0.05)}


def recipe_document(arm: Arm, run: Path | str = "run", base: Path | str = "/models/base") -> dict:
    """The recipe of an arm: re-warming to a share of the base's peak, with replay."""
    corpora = {
        "downstream": {"shards": "/data/new/train", "weight": 1 - arm.replay},
        "upstream": {"shards": "/data/old/train", "weight": arm.replay},
    }
    validation = {name: {"shards": f"/data/{name}/val", "tokens": "24k"} for name in STARTS}
    return {
        "run": str(run),
        "tokens": arm.steps * BATCH,
        "model": {"base": str(base), "base_lr": PEAK / 10},
        "data": {
            "context": 128,
            "train": {name: corpus for name, corpus in corpora.items() if corpus["weight"]},
            "validation": validation,
        },
        "batch": {"tokens": BATCH, "microbatch": 16},
        "schedule": {
            "name": "rewarm",
            "peak_lr": PEAK * arm.peak,
            "min_lr": PEAK * arm.peak / 10,
            "warmup": 0.05,
        },
        "precision": "fp32",
    }


def true_changes(arm: Arm, steps: list[int]) -> dict[str, np.ndarray]:
    """The changes of both losses by the law, at some steps."""
    recipe = validate_recipe(YamlDocument(yaml.safe_dump(recipe_document(arm)), "arm"))
    rates = [recipe.lr(step) / PEAK for step in range(1, recipe.steps + 1)]
    curve = rate_curve(np.array(rates), steps)
    return {
        name: LAW.change(LOGARITHMS, of_law, curve, arm.replay)
        for name, of_law in zip(STARTS, LAW.sets, strict=True)
    }


def write_arm(folder: Path, arm: Arm, *, seed: int = 1, **settings) -> Path:
    """Writes a finished run of an arm, evaluated at regular steps; returns its directory."""
    run = folder / str(seed)
    run.mkdir(parents=True)
    document = recipe_document(arm, run) | {"seed": seed} | settings
    (run / "recipe.yaml").write_text(yaml.safe_dump(document))
    steps = list(range(0, arm.steps + 1, arm.steps // 10))
    changes = true_changes(arm, steps)
    lines = [
        {"kind": "evaluate", "step": step, "tokens": step * BATCH}
        | {f"{name}/loss": start + float(changes[name][i]) for name, start in STARTS.items()}
        for i, step in enumerate(steps)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = {"kind": "start", "time": "2026-01-01T00:00:00+00:00", "step": 0}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    return run


def write_recipe(folder: Path, arm: Arm, *, name: str = "next.yaml", **settings) -> Path:
    """Writes the recipe of an arm that was never run; returns its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(recipe_document(arm, folder / "next") | settings))
    return path


def refused(command, *words) -> tuple[int, str]:
    """The exit code and the one error of `rewarm predict`, which prints nothing else."""
    code, out, err = command("predict", *words)
    assert out == ""
    assert err.count("error:") <= 1
    return code, " ".join(err.split())
