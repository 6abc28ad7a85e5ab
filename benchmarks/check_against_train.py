"""Checks that `rewarm check` refuses what `rewarm train` refuses, with the same code and message.

    python benchmarks/check_against_train.py [--setups 70] [--seed 1] [--only TEXT]

Each set-up is a fault in a recipe, its data, its base, or its run directory. Both commands have to
end with the same exit code, 2 or 3, and print the same message; neither may change a file. Not in
the list, as only `train` reads that much: changed bytes of weights or shards whose size is right.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from data_faults import RECIPE, build, edit_index, shard
from forked_commands import Ended, run_command, run_forked

from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train

SETTINGS = {
    "tokens: 65536": "tokens: 6144",
    "{log: 100, evaluate: null, save: 10}": "{log: 1, evaluate: 2, save: 2}",
}
CHECKED, BASE = "step-00000004", "step-00000006"


class Attempt(NamedTuple):
    """How the two commands are called."""

    overrides: list[str]
    options: list[str]


class Setup:
    """Shards, a complete run to start from, and a run that was stopped after step 4 of 6."""

    def __init__(self, root: Path) -> None:
        self.root, self.work, self.pristine = root, root / "work", root / "pristine"
        self.work.mkdir()
        build(self.work)
        shard(self.work, "a", self.work / "other", tokenizer="other")
        (self.work / "c.jsonl").write_text('{"text": "ab"}\n')
        shard(self.work, "c", self.work / "tiny")
        self.recipe, self.run = self.work / "recipe.yaml", self.work / "run"
        text = RECIPE.format(run=self.run, a=self.work / "a", b=self.work / "b")
        for before, after in SETTINGS.items():
            text = text.replace(before, after)
        validation = f"{{a: {{shards: {self.work}/a, tokens: 1280}}}}"
        self.text = text.replace("\nbatch:", f"\n  validation: {validation}\nbatch:")
        self.recipe.write_text(self.text)
        ended = run_command("train", self.recipe, "--set", f"run={self.work}/base")
        assert ended.code == 0, ended.errors
        run_forked(lambda: train(load_recipe(self.recipe), stop_after_step=4))
        assert self.checkpoint.is_dir()
        (self.run / "lock").touch()
        self.open_files: list[IO[str]] = []
        shutil.copytree(self.work, self.pristine)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that the stopped run is resumed from."""
        return self.run / "checkpoints" / CHECKED

    @property
    def base(self) -> Path:
        """The last checkpoint of the complete run."""
        return self.work / "base" / "checkpoints" / BASE

    def restore(self) -> None:
        while self.open_files:
            self.open_files.pop().close()
        shutil.rmtree(self.work)
        shutil.copytree(self.pristine, self.work)

    def new(self, *overrides: str) -> Attempt:
        """Returns a start of a new run with overrides."""
        shutil.rmtree(self.run)
        return Attempt(list(overrides), [])

    def from_base(self, *overrides: str, base: object = None) -> Attempt:
        """Returns a start of a new run from the complete run, or from another base."""
        return self.new(f"model={{base: {base or self.base}}}", *overrides)

    def resume(self, *overrides: str, options: tuple[str, ...] = ("--resume",)) -> Attempt:
        return Attempt(list(overrides), list(options))


Faults = dict[str, Callable[[Setup], Attempt]]
FAULTS: Faults = {}


def change(path: Path, function: Callable[[bytes], bytes]) -> None:
    path.write_bytes(function(path.read_bytes()))


def fault(function: Callable[[Setup], Attempt]) -> Callable[[Setup], Attempt]:
    """Adds a set-up to the list, by the name of its function."""
    FAULTS[function.__name__.replace("_", " ")] = function
    return function


def _add_settings() -> None:
    """Adds the set-ups that differ from a valid one in settings only."""
    new = {
        "unknown schedule": ["schedule={name: nothing}"],
        "warm-up longer than the run": [
            "schedule={name: rewarm, peak_lr: 1e-3, min_lr: 1e-4, warmup: 100 steps}"
        ],
        "rate as a multiple of no base": ["schedule.lr=2x base"],
        "negative rate": ["schedule.lr=-1"],
        "batch that is no multiple of its microbatch": ["batch.microbatch=3"],
        "batch that is no multiple of the context": ["batch.tokens=1000"],
        "unknown setting": ["data.contxt=64"],
        "width that fp8 cannot have": ["precision=fp8", "model.architecture.hidden=40"],
        "missing shards": ["data.train.a.shards=nowhere"],
        "missing validation shards": ["data.validation.a.shards=nowhere"],
        "shards from a pipe": ["data.train.a.shards=pipe:cat x"],
        "validation tokens shorter than the context": ["data.validation.a.tokens=63"],
        "more epochs than allowed": ["data.max_epochs=0.01"],
        "vocabulary smaller than the tokenizer's": ["model.architecture.vocabulary=64"],
        "context longer than the positions": [
            "data.context=128",
            "batch={tokens: 2048, microbatch: 16}",
        ],
        "run directory below a device": ["run=/dev/null/run"],
        "run directory that cannot be written": ["run=/proc/run"],
        "missing base": ["model={base: /nowhere}"],
        "several problems": ["data.train.a.shards=nowhere", "model={base: /nowhere}"],
    }
    resumed = {
        "resume with another weight decay": ["optimizer.weight_decay=0.3"],
        "resume with another rate": ["schedule.lr=2e-3"],
        "resume with another seed": ["seed=6"],
        "resume with other weights of the corpora": [
            "data.train.a.weight=90%",
            "data.train.b.weight=10%",
        ],
        "resume with a longer run": ["tokens=8192"],
        "resume with a shorter run than is done": ["tokens=2048"],
        "resume with another model": ["model.architecture.layers=2"],
        "resume with other validation tokens": ["data.validation.a.tokens=2560"],
    }
    for name, overrides in new.items():
        FAULTS[name] = lambda setup, overrides=overrides: setup.new(*overrides)
    for name, overrides in resumed.items():
        FAULTS[name] = lambda setup, overrides=overrides: setup.resume(*overrides)


@fault
def recipe_that_is_not_yaml(setup: Setup) -> Attempt:
    setup.recipe.write_text("run: [")
    return setup.new()


@fault
def shards_without_index(setup: Setup) -> Attempt:
    (setup.work / "a" / "index.json").unlink()
    return setup.new()


@fault
def damaged_index(setup: Setup) -> Attempt:
    change(setup.work / "a" / "index.json", lambda data: data[:-20])
    return setup.new()


@fault
def index_of_a_later_format(setup: Setup) -> Attempt:
    edit_index(setup.work / "a", lambda index: index.update(format=99, version=99))
    return setup.new()


@fault
def missing_tars(setup: Setup) -> Attempt:
    for path in (setup.work / "b").glob("*.tar"):
        path.unlink()
    return setup.new()


@fault
def truncated_tars(setup: Setup) -> Attempt:
    for path in (setup.work / "b").glob("*.tar"):
        os.truncate(path, 1000)
    return setup.new()


@fault
def training_shards_shorter_than_a_block(setup: Setup) -> Attempt:
    return setup.new(f"data.train.a.shards={setup.work}/tiny")


@fault
def validation_shards_shorter_than_a_block(setup: Setup) -> Attempt:
    return setup.new(f"data.validation.a.shards={setup.work}/tiny")


@fault
def training_shards_of_another_tokenizer(setup: Setup) -> Attempt:
    return setup.new(f"data.train.a.shards={setup.work}/other")


@fault
def validation_shards_of_another_tokenizer(setup: Setup) -> Attempt:
    return setup.new(f"data.validation.a={{shards: {setup.work}/other}}")


@fault
def base_of_another_tokenizer(setup: Setup) -> Attempt:
    data = f"{{context: 64, train: {{a: {{shards: {setup.work}/other}}}}}}"
    return setup.from_base(f"data={data}")


@fault
def base_without_weights(setup: Setup) -> Attempt:
    for name in ("MANIFEST.json", "progress.json", "model.safetensors"):
        (setup.base / name).unlink()
    (setup.base / "model.safetensors.index.json").unlink()
    return setup.from_base()


@fault
def base_with_a_missing_file(setup: Setup) -> Attempt:
    (setup.base / "optimizer.safetensors").unlink()
    return setup.from_base()


@fault
def base_with_a_truncated_file(setup: Setup) -> Attempt:
    os.truncate(setup.base / "model.safetensors", 100)
    return setup.from_base()


@fault
def base_with_a_damaged_configuration(setup: Setup) -> Attempt:
    (setup.base / "config.json").write_text("{")
    return setup.from_base()


@fault
def base_run_whose_last_checkpoint_has_no_manifest(setup: Setup) -> Attempt:
    (setup.base / "MANIFEST.json").unlink()
    return setup.from_base(base=setup.work / "base")


@fault
def base_checkpoint_without_manifest(setup: Setup) -> Attempt:
    (setup.base / "MANIFEST.json").unlink()
    return setup.from_base()


@fault
def base_step_that_does_not_exist(setup: Setup) -> Attempt:
    return setup.from_base(base=f"{setup.work}/base@99")


@fault
def context_longer_than_the_positions_of_the_base(setup: Setup) -> Attempt:
    return setup.from_base("data.context=128", "batch={tokens: 2048, microbatch: 16}")


@fault
def optimizer_state_of_a_base_that_has_none(setup: Setup) -> Attempt:
    for name in ("MANIFEST.json", "progress.json", "optimizer.safetensors"):
        (setup.base / name).unlink()
    return setup.from_base("optimizer.carry=true")


@fault
def data_position_of_a_base_that_records_none(setup: Setup) -> Attempt:
    for name in ("MANIFEST.json", "progress.json"):
        (setup.base / name).unlink()
    return setup.from_base("data.carry=true")


@fault
def shards_changed_since_the_base_read_them(setup: Setup) -> Attempt:
    shutil.rmtree(setup.work / "a")
    shutil.copytree(setup.work / "b", setup.work / "a")
    return setup.from_base("data.carry=true")


@fault
def run_directory_is_a_file(setup: Setup) -> Attempt:
    return setup.new(f"run={setup.recipe}")


@fault
def run_directory_in_use(setup: Setup) -> Attempt:
    lock = (setup.run / "lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    setup.open_files.append(lock)
    return setup.resume()


@fault
def run_directory_with_checkpoints(setup: Setup) -> Attempt:
    return setup.resume(options=())


@fault
def run_directory_with_metrics_only(setup: Setup) -> Attempt:
    shutil.rmtree(setup.run / "checkpoints")
    return setup.resume(options=())


@fault
def resume_after_all_checkpoints_were_deleted(setup: Setup) -> Attempt:
    shutil.rmtree(setup.run / "checkpoints")
    return setup.resume()


@fault
def resume_of_metrics_of_another_recipe(setup: Setup) -> Attempt:
    shutil.rmtree(setup.run / "checkpoints")
    (setup.run / "events.jsonl").unlink()
    change(setup.run / "metrics.jsonl", lambda data: data.splitlines(keepends=True)[0])
    return setup.resume("seed=6")


@fault
def recipe_inside_the_run_directory(setup: Setup) -> Attempt:
    attempt = setup.new(f"run={setup.work}")
    setup.recipe.write_text(f"# a comment\n{setup.text}")
    return attempt


@fault
def recipe_of_the_run_directory_edited(setup: Setup) -> Attempt:
    """Starts a run in a folder that has another recipe.yaml, and nothing else."""
    attempt = setup.new()
    setup.run.mkdir()
    (setup.run / "recipe.yaml").write_text("# notes of mine\nrun: elsewhere\n")
    return attempt


@fault
def resume_from_a_checkpoint_with_a_truncated_file(setup: Setup) -> Attempt:
    os.truncate(setup.checkpoint / "optimizer.safetensors", 100)
    return setup.resume()


@fault
def resume_from_a_checkpoint_with_a_missing_file(setup: Setup) -> Attempt:
    (setup.checkpoint / "config.json").unlink()
    return setup.resume()


@fault
def resume_from_a_checkpoint_without_manifest(setup: Setup) -> Attempt:
    (setup.checkpoint / "MANIFEST.json").unlink()
    return setup.resume()


@fault
def resume_from_a_checkpoint_with_a_damaged_manifest(setup: Setup) -> Attempt:
    change(setup.checkpoint / "MANIFEST.json", lambda data: data[:50])
    return setup.resume()


@fault
def resume_from_a_renamed_checkpoint(setup: Setup) -> Attempt:
    setup.checkpoint.rename(setup.checkpoint.with_name("step-00000005"))
    return setup.resume()


@fault
def resume_from_a_step_that_does_not_exist(setup: Setup) -> Attempt:
    return setup.resume(options=("--resume-from", "3"))


@fault
def resume_without_metrics(setup: Setup) -> Attempt:
    (setup.run / "metrics.jsonl").unlink()
    return setup.resume()


@fault
def resume_with_a_missing_line_of_metrics(setup: Setup) -> Attempt:
    change(setup.run / "metrics.jsonl", lambda data: b"".join(data.splitlines(keepends=True)[1:]))
    return setup.resume()


@fault
def resume_with_metrics_twice(setup: Setup) -> Attempt:
    change(setup.run / "metrics.jsonl", lambda data: data + data)
    return setup.resume()


@fault
def resume_with_a_damaged_line_of_metrics(setup: Setup) -> Attempt:
    change(setup.run / "metrics.jsonl", lambda data: data.replace(b'"kind"', b'"ki', 1))
    return setup.resume()


@fault
def resume_with_changed_training_shards(setup: Setup) -> Attempt:
    shutil.rmtree(setup.work / "b")
    shutil.copytree(setup.work / "a", setup.work / "b")
    return setup.resume()


@fault
def resume_with_changed_validation_shards(setup: Setup) -> Attempt:
    return setup.resume(f"data.validation.a.shards={setup.work}/b")


@fault
def resume_with_missing_shards(setup: Setup) -> Attempt:
    shutil.rmtree(setup.work / "b")
    return setup.resume()


_add_settings()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def compare_commands(setup: Setup, function: Callable[[Setup], Attempt]) -> tuple[str, Ended]:
    """Returns how `check` and `train` differ, "" if they do not, and how `check` ended."""
    setup.restore()
    attempt = function(setup)
    words = [setup.recipe, *attempt.options]
    for override in attempt.overrides:
        words += ["--set", override]
    before = snapshot(setup.work)
    checked = run_command("check", *words)
    changed_by = ["check"] if snapshot(setup.work) != before else []
    trained = run_command("train", *words)
    changed_by += ["train"] if snapshot(setup.work) != before else []
    endings = "; ".join(
        f"{name} ends with exit code {ended.code}: {ended.errors.strip()[-400:]}"
        for name, ended in (("check", checked), ("train", trained))
    )
    is_same = checked.code == trained.code and same_message(checked, trained)
    if not is_same or checked.code not in (2, 3) or "Traceback" in endings:
        return endings, checked
    return f"changed files: {', '.join(changed_by)}" if changed_by else "", checked


def same_message(checked: Ended, trained: Ended) -> bool:
    """Returns whether two commands printed the same; a usage error names its command."""
    return re.sub(r"rewarm check\b", "rewarm train", checked.errors) == trained.errors


def main() -> None:
    """Compares the commands on every set-up, and prints a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--setups", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=1, help="Which, if not all.")
    parser.add_argument("--only", default="", help="Only set-ups whose names have this text.")
    options = parser.parse_args()
    names = sorted(name for name in FAULTS if options.only in name)
    chosen = random.Random(options.seed).sample(names, min(options.setups, len(names)))
    violations = 0
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder).resolve())
        for name in chosen:
            difference, checked = compare_commands(setup, FAULTS[name])
            violations += bool(difference)
            message = checked.errors.strip().partition("\n")[0]
            result = f"VIOLATION: {difference}" if difference else f"exit {checked.code}: {message}"
            print(f"{name}: {result}".replace(folder, ""), flush=True)
        setup.restore()
    print(f"{len(chosen)} set-ups, {violations} violations")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
