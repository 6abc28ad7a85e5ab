"""The steps of `rewarm quickstart`: text, shards, a base model, three arms, results."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import read_training_state
from rewarm.cli.terminal_tables import print_notes, print_result_table
from rewarm.data.quickstart_text import (
    VOCABULARY_SIZE,
    train_byte_level_bpe,
    write_standard_library_text,
    write_text_shards,
)
from rewarm.data.shard_format import read_shard_index
from rewarm.errors import Preempted
from rewarm.plots.loss_figure import save_losses
from rewarm.recipe.recipe import Recipe, load_recipe
from rewarm.study.comparison_tables import start_to_end_table
from rewarm.study.run_outcomes import RunOutcome, read_outcome

BASE_RECIPE = """\
# Pre-train a small base model on the English text of Python's standard library.
# It warms up from 0 and decays to a tenth of its peak, as Pythia did.
run: ../runs/base
seed: 1
tokens: 819_200
model:
  architecture: {layers: 4, hidden: 96, heads: 4, vocabulary: 4096, positions: 128}
data:
  context: 128
  train:
    upstream: {shards: ../shards/upstream/train}
  validation:
    upstream:   {shards: ../shards/upstream/val, tokens: 25k}
    downstream: {shards: ../shards/downstream/val, tokens: 25k}
batch: {tokens: 2048, microbatch: 16}
schedule: {name: rewarm, start_lr: 0, peak_lr: 2e-3, min_lr: 2e-4, warmup: 5%, decay: cosine}
precision: fp32
every: {log: 20, evaluate: 100, save: 100}
"""

_ARM_RECIPE = """\
# Continue the base on source code: {summary}
run: ../runs/{name}
seed: 2
tokens: 245_760
model: {{base: ../runs/base}}      # a run stands for its last checkpoint
data:
  context: 128
  train:
    downstream: {{shards: ../shards/downstream/train}}
    # To replay 5% of the old text, add "weight: 95%" to downstream and uncomment the next line:
    # upstream: {{shards: ../shards/upstream/train, weight: 5%}}
  validation:
    upstream:   {{shards: ../shards/upstream/val, tokens: 25k}}
    downstream: {{shards: ../shards/downstream/val, tokens: 25k}}
batch: {{tokens: 2048, microbatch: 16}}
schedule: {schedule}
precision: fp32
every: {{log: 10, evaluate: 20, save: 60}}
"""

ARM_SCHEDULES = {
    "rewarm": (
        "raise the learning rate to the old peak, then decay it again.",
        "{name: rewarm, start_lr: 2e-4, peak_lr: 2e-3, min_lr: 2e-4, warmup: 10%, decay: cosine}",
    ),
    "no-warmup": (
        "set the learning rate to the old peak at once, then decay it again.",
        "{name: no-warmup, peak_lr: 2e-3, min_lr: 2e-4, decay: cosine}",
    ),
    "constant": ("keep the last learning rate of the base.", "{name: constant, lr: 2e-4}"),
}


def run_quickstart(out: Path) -> None:
    """Runs all steps in the folder `out`, except those that an earlier call completed.

    Raises:
        RewarmError: a step failed.
    """
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a pipe gets each line whole
    say = console.print
    say(f"[bold]1. Text[/]  Python {sys.version.split()[0]}'s standard library → {out}/text")
    texts = write_standard_library_text(out / "text")
    say(f"[bold]2. Shards[/]  a BPE of {VOCABULARY_SIZE:,} entries, token shards → {out}/shards")
    train_byte_level_bpe(out / "tokenizer.json", texts.values())
    for name, text in texts.items():
        write_text_shards(text, out / "shards" / name, out / "tokenizer.json")
        _print_shard_tokens(name, out / "shards" / name, console)
    recipes = _write_recipes(out)
    say(f"[bold]3. Base[/]  pre-trained on upstream: {recipes['base']}")
    _train_unless_complete(load_recipe(recipes["base"]), console)
    runs: dict[str, Path] = {}
    for arm in ARM_SCHEDULES:
        say(f"[bold]4. Continue[/]  on downstream, {arm}: {recipes[arm]}")
        recipe = load_recipe(recipes[arm])
        _train_unless_complete(recipe, console)
        runs[arm] = recipe.run_directory
    figure = out / "curves.png"
    save_losses({arm: [run] for arm, run in runs.items()}, figure, "png")
    _print_results(runs, figure)
    print(_next_steps(out))


def _print_shard_tokens(name: str, folder: Path, console: Console) -> None:
    train, validation = (read_shard_index(folder / part).tokens for part in ("train", "val"))
    console.print(f"   {name:<10} {train:,} tokens, {validation:,} held out")


def _write_recipes(out: Path) -> dict[str, Path]:
    """Writes the recipes of the base and of the arms, and returns their paths by name."""
    folder = out / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    recipes = {"base": BASE_RECIPE}
    for name, (summary, schedule) in ARM_SCHEDULES.items():
        recipes[name] = _ARM_RECIPE.format(name=name, summary=summary, schedule=schedule)
    paths = {name: folder / f"{name}.yaml" for name in recipes}
    for name, path in paths.items():
        if not path.exists():  # an existing recipe may have been edited
            path.write_text(recipes[name], encoding="utf-8")
    return paths


def _train_unless_complete(recipe: Recipe, console: Console) -> None:
    checkpoint = last_checkpoint(recipe.run_directory)
    if checkpoint and read_training_state(checkpoint).is_complete(recipe.steps):
        console.print(f"   complete: {checkpoint}")
        return
    from rewarm.training.loop import train

    try:
        train(recipe, resume=True)
    except Preempted as error:  # the quickstart resumes by itself
        error.args = (str(error).replace("the same command and --resume", "the same command"),)
        raise


def _print_results(runs: dict[str, Path], figure: Path) -> None:
    """Prints the losses of all arms, and whether they were trained on the same tokens."""
    outcomes = {arm: outcome for arm, run in runs.items() if (outcome := read_outcome(run))}
    print()
    print_result_table(start_to_end_table(outcomes), show_title=False)
    loss = "nats per token; forgetting is its rise upstream, adaptation its fall downstream"
    notes = [f"loss      {loss}", _same_tokens_line(outcomes), f"picture   {figure}"]
    print_notes(notes, indent=10)
    print()


def _same_tokens_line(outcomes: dict[str, RunOutcome]) -> str:
    digests = {outcome.stream_digest for outcome in outcomes.values()}
    if len(digests) == 1:
        return f"batches   the same tokens for every arm (stream digest {str(digests.pop())[:12]})"
    return "batches   not the same tokens for every arm: was a recipe edited?"


def _next_steps(out: Path) -> str:
    return f"""\
Next, try
  cd {out}
  rewarm plot-schedule recipes/rewarm.yaml recipes/constant.yaml
  rewarm check recipes/constant.yaml --set run=runs/high --set schedule.lr=1e-3
  rewarm train recipes/constant.yaml --set run=runs/high --set schedule.lr=1e-3
  rewarm eval runs/base runs/high --data upstream=shards/upstream/val
  cd .."""
