"""The quickstart's model on a CPU: rewarm beside transformers' own model under its Trainer.

    python benchmarks/cpu_step.py [--steps 60] [--repeats 5] [--threads N] [--out FIGURES.json]

Same weights, same tokens in the same order, same AdamW, constant rate and clip, fp32; no
validation, no saving, a log line every 20 steps, no progress bar. Every figure is from a separate
process; the arms are interleaved. Time is measured from the end of step 10 to the end of the last
step. The loss of each trained model on held-out text shows that both did the same work. If other
processes use the machine, two threads wait for each other's cores and wall time is unreliable: use
CPU time with `--threads 1`.

- rewarm: `rewarm train`, its own loop and reader of shards.
- Trainer: GPTNeoXForCausalLM under transformers.Trainer, the tokens ready in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from quickstart_shards import write_quickstart_shards
from spread import spread

ARMS = ("rewarm", "Trainer")
SEQUENCES, CONTEXT, LR, WARMUP_STEPS = 16, 128, 1e-3, 10

RECIPE = """\
run: {work}/{run}
seed: 1
tokens: {tokens}
model: {{base: {work}/base}}
data:
  context: 128
  train:
    upstream: {{shards: {work}/shards/upstream/train}}
batch: {{tokens: 2048, microbatch: 16}}
schedule: {{name: constant, lr: 1e-3}}
precision: fp32
every: {{log: 20}}
"""


class StepEnd(NamedTuple):
    """Wall time and CPU time of this process on all cores, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> StepEnd:
        return cls(time.perf_counter(), time.process_time())


def prepare(work: Path, steps: int) -> None:
    """Writes the quickstart's shards of English, new weights, and the tokens of all steps."""
    import numpy as np
    from safetensors.torch import save_file

    from rewarm.cli.quickstart_steps import BASE_RECIPE
    from rewarm.data.batch_loader import BatchLoader
    from rewarm.data.shard_source import ShardSource
    from rewarm.data.stored_blocks import StoredBlocks
    from rewarm.model.neox import NeoX, initialize_weights
    from rewarm.recipe.recipe import load_recipe
    from rewarm.runs.resolve_run import resolve

    write_quickstart_shards(work, "upstream")
    recipe_file = work / "recipes" / "base.yaml"  # its paths are relative to this folder
    recipe_file.parent.mkdir(exist_ok=True)
    recipe_file.write_text(BASE_RECIPE)
    shape = load_recipe(recipe_file).model.explicit_architecture
    assert shape is not None
    model = NeoX(shape)
    initialize_weights(model, 1)
    (work / "base").mkdir()
    save_file(model.state_dict(), work / "base" / "model.safetensors")
    (work / "base" / "config.json").write_text(json.dumps(shape.to_hugging_face()))
    recipe = _recipe(work, "tokens", steps)
    corpora = list(resolve(recipe).corpora.values())
    batches = BatchLoader(corpora, recipe.corpus_weights, sequences=SEQUENCES).batches(0)
    held_out_blocks = StoredBlocks(
        ShardSource(str(work / "shards" / "upstream" / "val")), context=CONTEXT, tokens=64 * CONTEXT
    )
    np.save(work / "held-out.npy", np.stack(list(held_out_blocks)).astype(np.int64))
    np.save(work / "tokens.npy", np.stack([next(batches).tokens for _ in range(steps)]))


def _recipe(work: Path, run: str, steps: int) -> Any:
    from rewarm.recipe.recipe import load_recipe

    path = work / f"{run}.yaml"
    path.write_text(RECIPE.format(work=work, run=run, tokens=steps * SEQUENCES * CONTEXT))
    return load_recipe(path)


def rewarm(work: Path, steps: int, run: str) -> list[StepEnd]:
    """Returns when each step step_ends."""
    from rewarm.training.loop import train
    from rewarm.training.progress_line import ProgressLine

    step_ends: list[StepEnd] = []

    class Clock(ProgressLine):
        def show_step(self, step: int) -> None:
            step_ends.append(StepEnd.now())
            super().show_step(step)

    train(_recipe(work, run, steps), progress_line_class=Clock)
    return step_ends


def trainer(work: Path, steps: int, run: str) -> tuple[list[StepEnd], Any]:
    """Returns when each step of transformers' Trainer step_ends, and its model."""
    import numpy as np
    import torch
    from transformers import GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from rewarm.recipe.training_settings import OptimizerSettings

    blocks = torch.from_numpy(np.load(work / "tokens.npy").reshape(-1, CONTEXT + 1))
    # Its loss would shift the labels and train on one position fewer, so they are shifted here.
    rows = [{"input_ids": b[:-1], "labels": b[1:], "shift_labels": b[1:]} for b in blocks]
    step_ends: list[StepEnd] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_a: Any, **_k: Any) -> None:
            step_ends.append(StepEnd.now())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_a: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    settings = OptimizerSettings()
    arguments = TrainingArguments(
        output_dir=str(work / run),
        per_device_train_batch_size=SEQUENCES,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.eps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    model = GPTNeoXForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return step_ends, model


def held_out(model: Any, work: Path) -> float:
    """Returns the loss of transformers' model on held-out text."""
    import numpy as np
    import torch

    blocks = torch.from_numpy(np.load(work / "held-out.npy"))
    with torch.no_grad():
        logits = model(input_ids=blocks[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
    return float(loss)


def measure(work: Path, arm: str, run: str, steps: int, threads: int | None) -> dict[str, float]:
    """Runs one arm in this process."""
    import torch
    from transformers import GPTNeoXForCausalLM

    from rewarm.checkpoints.find_checkpoint import last_checkpoint

    if threads:
        torch.set_num_threads(threads)
    if arm == "Trainer":
        step_ends, model = trainer(work, steps, run)
    else:
        step_ends = rewarm(work, steps, run)
        model = GPTNeoXForCausalLM.from_pretrained(last_checkpoint(work / run), dtype=torch.float32)
    step_ends = step_ends[WARMUP_STEPS - 1 :]
    steps_each = [(b.wall - a.wall, b.cpu - a.cpu) for a, b in pairwise(step_ends)]
    return {
        "tokens_per_s": SEQUENCES
        * CONTEXT
        * len(steps_each)
        / (step_ends[-1].wall - step_ends[0].wall),
        "step_ms": 1e3 * statistics.median(wall for wall, _ in steps_each),
        "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in steps_each),
        "loss": held_out(model.eval(), work),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Runs the arms in turn, each in a separate process, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; by default torch's own choice")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(
            json.dumps(
                measure(options.work, options.only, options.run, options.steps, options.threads)
            )
        )
        return
    arms = [arm for arm in ARMS if arm != "Trainer" or importlib.util.find_spec("accelerate")]
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    loads = []
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), options.steps)
        for repeat in range(options.repeats):
            # The first arm changes from repeat to repeat, so that other load affects all alike.
            for arm in arms[repeat % len(arms) :] + arms[: repeat % len(arms)]:
                command = [sys.executable, __file__, *sys.argv[1:], "--only", arm, "--work", work]
                command += ["--run", f"run-{arm[-3:]}-{repeat}"]
                process = subprocess.run(command, capture_output=True, text=True, check=False)
                if process.returncode:
                    sys.exit(f"{arm} failed: {process.stderr.strip()}")
                results[arm].append(json.loads(process.stdout.splitlines()[-1]))
                loads.append(os.getloadavg()[0])
    report(results, options, loads)


def report(
    results: dict[str, list[dict[str, float]]], options: argparse.Namespace, loads: list[float]
) -> None:
    """Prints the table, and writes the figures if `--out` is given."""
    threads = results["rewarm"][0]["threads"]
    print(
        f"{processor()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, torch {version('torch')}, transformers "
        f"{version('transformers')}; {options.steps} steps of {SEQUENCES} × {CONTEXT} tokens, "
        f"{options.repeats} repeats: median (lowest to highest); load average {min(loads):.1f} to "
        f"{max(loads):.1f}"
    )
    print("| | tokens/s | step, ms | CPU ms | rewarm × by wall | × by CPU | final loss, nats |")
    print("|---|---|---|---|---|---|---|")
    for arm, runs in results.items():
        pairs = list(zip(results["rewarm"], runs, strict=True))
        cells = [
            spread([run["tokens_per_s"] for run in runs], 0),
            spread([run["step_ms"] for run in runs], 1),
            spread([run["cpu_ms"] for run in runs], 1),
            spread([theirs["step_ms"] / ours["step_ms"] for ours, theirs in pairs], 2),
            spread([theirs["cpu_ms"] / ours["cpu_ms"] for ours, theirs in pairs], 2),
            spread([run["loss"] for run in runs], 5),
        ]
        print(f"| {arm} | {' | '.join(cells)} |")
    if options.out:
        options.out.write_text(json.dumps({"runs": results, "load": loads}, indent=1) + "\n")


def processor() -> str:
    """Returns the name of the processor."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [
        line.partition(": ")[2] for line in cpuinfo.splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
