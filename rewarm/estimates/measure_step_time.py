"""Measures how fast this machine takes a recipe's steps: `rewarm train`, stopped after a few.

```
 recipe ──> new weights of its shape, random tokens ──> rewarm train ── SIGTERM ──> metrics, events
```
What is measured is a real run in a process of its own, with its imports, evaluations and a save.
Only weights, tokens and the rate are others, which changes no time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import IO, Any

import numpy as np

from rewarm import exit_codes
from rewarm.data.sharding.shard_folder import ShardWriter
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import RewarmError
from rewarm.estimates.throughput import Speed
from rewarm.model.architecture import Architecture
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.recipe.yaml_document import write_yaml
from rewarm.runs.metrics_file import read_metrics
from rewarm.safe_loading import parse_json
from rewarm.stop_signals import raise_if_stopped, stop_signals_noted

STEPS_PER_LINE = 5  # of metrics; the first line is a warm-up
MIN_LINES = 3
MIN_SECONDS = 10.0  # on a machine with other work too, one moment says little
_MAX_EVALUATED = 16  # microbatches of an evaluation
_TOKENS = 2**20
_EOS = "<|endoftext|>"


def measure_step_time(recipe: Recipe, architecture: Architecture, evaluated: int) -> Speed:
    """Returns a recipe's speed on this machine, over ten steps or ten seconds, whichever is longer.

    Args:
        recipe: what to run; neither its base nor its data need to exist.
        architecture: its model's.
        evaluated: tokens in one of its evaluations; 0 for none.

    Raises:
        RewarmError: it does not run here.
    """
    with tempfile.TemporaryDirectory(prefix="rewarm-plan-") as folder:
        root = Path(folder)
        unit = (recipe.batch.microbatch or 1) * recipe.data.context
        evaluated = min(evaluated, _MAX_EVALUATED * unit)
        tokens = max(_TOKENS, evaluated) + recipe.data.context
        _write_random_shards(root / "tokens", architecture, tokens)
        path = root / "recipe.yaml"
        path.write_text(_stand_in(recipe, architecture, root, evaluated), encoding="utf-8")
        with (root / "output").open("w+b") as output:
            return _measure(path, root / "run", output, recipe, evaluated)


def _write_random_shards(folder: Path, architecture: Architecture, tokens: int) -> None:
    """Writes random tokens, in documents of 1,024, in the format of `rewarm shard`."""
    from tokenizers import Tokenizer as Encoder
    from tokenizers.models import WordLevel

    encoder = Encoder(WordLevel({_EOS: 0}, _EOS))
    tokenizer = Tokenizer(encoder, "random", architecture.vocabulary, 0, _EOS)
    size = (-(-tokens // 1024), 1024)
    documents = np.random.default_rng(0).integers(1, architecture.vocabulary, size)
    documents[:, -1] = 0
    with ShardWriter(folder, tokenizer, shard_tokens=2**40) as writer:
        for document in documents.astype(np.uint32):
            writer.write_document(document)
        writer.finish()


def _stand_in(recipe: Recipe, architecture: Architecture, root: Path, evaluated: int) -> str:
    """Returns a recipe that takes the same steps, and so many that a signal has to end them."""
    settings: dict[str, Any] = recipe.document()
    shards = {"shards": str(root / "tokens")}
    settings["run"] = str(root / "run")
    settings["tokens"] = 10**6 * recipe.batch.tokens
    settings["model"] = {"architecture": architecture.model_dump()}
    settings["data"] |= {"train": {"random": shards}, "max_epochs": None, "carry": False}
    validation = {"random": {**shards, "tokens": evaluated}}
    settings["data"]["validation"] = validation if evaluated else {}
    settings["optimizer"]["carry"] = False
    settings["schedule"] = {"name": "constant", "lr": 1e-4}
    settings["every"] = {"log": STEPS_PER_LINE, "evaluate": 2 * STEPS_PER_LINE, "save": None}
    settings["trackers"] = {}  # it is not a run that anybody wants to see there
    return write_yaml(settings)


def _measure(path: Path, run: Path, output: IO[bytes], recipe: Recipe, evaluated: int) -> Speed:
    started = time.perf_counter()
    peak_memory = _train_until_measured(path, run, output)
    wall = time.perf_counter() - started
    events = _events(run)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"][1:]
    step = fmean(recipe.batch.tokens / line["tokens_per_second"] for line in lines)
    (save,) = events["save"]
    evaluations = [event["seconds"] for event in events.get("evaluate", [])]
    microbatch = load_saved_document(run / "recipe.yaml").data["batch"]["microbatch"]
    unit = microbatch * recipe.data.context
    device = events["start"][0]["environment"]["device"]
    return Speed(
        step=step,
        evaluated_per_second=-(-evaluated // unit) * unit / fmean(evaluations[1:])
        if evaluations
        else 1.0,
        source=f"{recipe.batch.tokens / step:,.0f} tokens/s: {STEPS_PER_LINE * len(lines)} steps "
        f"of a real run on this machine ({device}), with new weights and random tokens",
        start=max(0.0, wall - save["step"] * step - sum(evaluations) - save["seconds"]),
        stall=save["stall"],
        save=save["seconds"],
        microbatch=microbatch,
        memory=peak_memory if device.startswith("cpu") else None,
    )


def _train_until_measured(path: Path, run: Path, output: IO[bytes]) -> int:
    """Runs a recipe until enough was measured, and returns the peak memory of its process.

    Raises:
        RewarmError: it ended by itself, or a signal ended it.
    """
    command = [sys.executable, "-m", "rewarm", "train", str(path)]
    with stop_signals_noted() as noted:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            _wait(process.pid, run, noted)
            os.kill(process.pid, signal.SIGTERM)  # send_signal would reap a process that has ended
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
    if process.returncode != exit_codes.STOPPED:
        raise _failure(output, process.returncode)
    return usage.ru_maxrss * 1024


def _wait(pid: int, run: Path, noted: list[int]) -> None:
    """Waits until enough was measured, or the process has ended.

    Raises:
        Preempted: a signal was noted.
    """
    since = None
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.05)
        raise_if_stopped(noted)
        try:
            metrics = read_metrics(run / "metrics.jsonl")
        except RewarmError:
            continue  # not written yet
        lines = [line for line in metrics if line["kind"] == "train"]
        if lines and since is None:
            since = time.perf_counter()
        if since and len(lines) >= MIN_LINES and time.perf_counter() - since >= MIN_SECONDS:
            return


def _events(run: Path) -> dict[str, list[dict[str, Any]]]:
    events: dict[str, list[dict[str, Any]]] = {}
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = parse_json(line.encode())
        events.setdefault(event["kind"], []).append(event)
    return events


def _failure(output: IO[bytes], code: int) -> RewarmError:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines() or ["no output"]
    error = RewarmError(
        f"the measured steps ended with exit code {code}: {lines[-1].removeprefix('error: ')}"
    )
    error.exit_code = code if code > 0 else exit_codes.UNEXPECTED
    return error
