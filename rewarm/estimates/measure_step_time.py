"""How fast this machine takes a recipe's steps: `rewarm train`, stopped after a few of them.

```
 recipe ──> new weights of its shape, random tokens ──> rewarm train ── SIGTERM ──> metrics, events
```
What is measured is the real run of a real process, its imports, evaluations and a save among it;
only what takes no time to choose is another: weights, tokens and the rate.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from rewarm.data.shard_writer import ShardWriter
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import RewarmError
from rewarm.estimates.throughput import Speed
from rewarm.model.architecture import Architecture
from rewarm.recipe.recipe import Recipe
from rewarm.recipe.yaml_document import YamlDocument, write_yaml
from rewarm.runs.metrics_file import read_metrics
from rewarm.safe_loading import parse_json

LINE = 5  # steps of a line of metrics; the first line is a warm-up
LINES = 3
SECONDS = 10.0  # so long at least: on a machine that others use too, one moment says little
_EVALUATED = 16  # microbatches of an evaluation, at most
_TOKENS = 2**20
_EOS = "<|endoftext|>"


def measure_step_time(recipe: Recipe, shape: Architecture, evaluated: int) -> Speed:
    """Returns a recipe's speed on this machine, of ten steps, or of as many as ten seconds take.

    Args:
        recipe: what to run; neither its base nor its data need be there.
        shape: its model's.
        evaluated: tokens in one evaluation of it; 0 for none.

    Raises:
        RewarmError: it does not run here.
    """
    with tempfile.TemporaryDirectory(prefix="rewarm-plan-") as folder:
        root = Path(folder)
        unit = (recipe.batch.microbatch or 1) * recipe.data.context
        evaluated = min(evaluated, _EVALUATED * unit)
        _write_shards(root / "tokens", shape, max(_TOKENS, evaluated) + recipe.data.context)
        path = root / "recipe.yaml"
        path.write_text(_stand_in(recipe, shape, root, evaluated), encoding="utf-8")
        with (root / "said").open("w+b") as said:
            return _measured(path, root / "run", said, recipe, evaluated)


def _write_shards(folder: Path, shape: Architecture, tokens: int) -> None:
    """Writes random tokens, in documents of 1,024, as `rewarm shard` writes text."""
    from tokenizers import Tokenizer as Encoder
    from tokenizers.models import WordLevel

    encoder = Encoder(WordLevel({_EOS: 0}, _EOS))
    told = Tokenizer(encoder, "random", shape.vocabulary, 0, _EOS)
    drawn = np.random.default_rng(0).integers(1, shape.vocabulary, (-(-tokens // 1024), 1024))
    drawn[:, -1] = 0
    with ShardWriter(folder, told, shard_tokens=2**40) as writer:
        for document in drawn.astype(np.uint32):
            writer.write(document)
        writer.finish()


def _stand_in(recipe: Recipe, shape: Architecture, root: Path, evaluated: int) -> str:
    """Returns a recipe that takes the same steps, and many: a signal ends them."""
    said: dict[str, Any] = recipe.document()
    tokens = {"shards": str(root / "tokens")}
    said["run"] = str(root / "run")
    said["tokens"] = 10**6 * recipe.batch.tokens
    said["model"] = {"architecture": shape.model_dump()}
    said["data"] |= {"train": {"random": tokens}, "max_epochs": None, "carry": False}
    said["data"]["validation"] = {"random": {**tokens, "tokens": evaluated}} if evaluated else {}
    said["optimizer"]["carry"] = False
    said["schedule"] = {"name": "constant", "lr": 1e-4}
    said["every"] = {"log": LINE, "evaluate": 2 * LINE, "save": None}
    return write_yaml(said)


def _measured(path: Path, run: Path, said: IO[bytes], recipe: Recipe, evaluated: int) -> Speed:
    began = time.perf_counter()
    command = [sys.executable, "-m", "rewarm", "train", str(path)]
    process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        _wait(process.pid, run)
        os.kill(process.pid, signal.SIGTERM)  # send_signal would take the status of one that ended
        _, status, used = os.wait4(process.pid, 0)  # of this process alone, its peak memory
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    wall = time.perf_counter() - began
    if process.returncode != 75:
        raise _failure(said, process.returncode)
    events = _events(run)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"][1:]
    tokens, context = recipe.batch.tokens, recipe.data.context
    step = _mean([tokens / line["tokens_per_second"] for line in lines])
    (save,) = events["save"]
    evaluations = [one["seconds"] for one in events.get("evaluate", [])]
    own = YamlDocument.load(run / "recipe.yaml").data["batch"]["microbatch"]
    unit = own * context
    device = events["start"][0]["environment"]["device"]
    taken = save["step"]
    return Speed(
        step=step,
        evaluated_per_second=-(-evaluated // unit) * unit / _mean(evaluations[1:])
        if evaluations
        else 1.0,
        source=f"{tokens / step:,.0f} tokens/s: {LINE * len(lines)} steps of a real run on this "
        f"machine ({device}), with new weights and random tokens",
        start=max(0.0, wall - taken * step - sum(evaluations) - save["seconds"]),
        stall=save["stall"],
        save=save["seconds"],
        microbatch=own,
        memory=used.ru_maxrss * 1024 if device.startswith("cpu") else None,
    )


def _wait(pid: int, run: Path) -> None:
    """Waits until enough was measured, or the process has ended."""
    since = None
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.05)
        try:
            lines = [x for x in read_metrics(run / "metrics.jsonl") if x["kind"] == "train"]
        except RewarmError:
            continue  # not yet there
        if lines and since is None:
            since = time.perf_counter()
        if since and len(lines) >= LINES and time.perf_counter() - since >= SECONDS:
            return


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _events(run: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = parse_json(line.encode())
        found.setdefault(event["kind"], []).append(event)
    return found


def _failure(said: IO[bytes], code: int) -> RewarmError:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    error = RewarmError(
        f"the steps to be measured ended with exit code {code}: {lines[-1].removeprefix('error: ')}"
    )
    error.exit_code = code if code > 0 else 1
    return error
