"""Runs for tests: trains a recipe in this process, and reads back what it learned."""

import os
import signal

from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.runs.metrics_file import read_metrics
from rewarm.training import loop

TIMES = ("tokens_per_second", "mfu", "data_wait", "save_stall")


def run(text, directory, *, resume=False, accept_changes=False, **settings):
    document = YamlDocument(text, "recipe.yaml")
    for name, value in {"run": str(directory), **settings}.items():
        document.apply_override(f"{name.replace('__', '.')}={value}")
    return loop.train(validate_recipe(document), resume=resume, accept_changes=accept_changes)


def metrics(directory):
    lines = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def learnt(checkpoint):
    """Everything of a checkpoint that training made, as bytes."""
    names = ("model.safetensors", "optimizer.safetensors", "progress.json")
    return {name: (checkpoint / name).read_bytes() for name in names}


class StopAfter:
    """A real signal to this very process, in the middle of a step."""

    def __init__(self, monkeypatch, step, number=signal.SIGTERM):
        take, self.taken = loop.take_step, 0

        def take_and_signal(*args, **kwargs):
            self.taken += 1
            if self.taken == step:
                os.kill(os.getpid(), number)
            return take(*args, **kwargs)

        monkeypatch.setattr(loop, "take_step", take_and_signal)
