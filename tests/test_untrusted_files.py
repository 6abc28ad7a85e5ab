"""400 damaged or malicious checkpoints end in an error message, and nothing in them is run.

The damages, and the ways in which a damaged folder is used, are in helpers/damaged_checkpoints.py.
"""

import random
import re
import resource
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from damage import MANIFEST, MODEL, OPTIMIZER, rewrite_manifest
from damaged_checkpoints import FOLDER_USES, INSPECTED, REFUSED, RUN_USES, DamageCase
from training_runs import trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.training.loop import train

RECIPE = """\
run: {run}
seed: {seed}
tokens: 2048
model:
  architecture: {{layers: 2, hidden: 32, heads: 2, vocabulary: 512, positions: 64}}
data:
  context: 64
  lanes: 2
  train:
    downstream: {{shards: {corpora}/downstream/train, weight: 70%}}
    upstream: {{shards: {corpora}/upstream/train, weight: 30%}}
batch: {{tokens: 512, microbatch: 8}}
schedule: {{name: constant, lr: 1e-3}}
precision: fp32
every: {{log: 1, evaluate: null, save: 2}}
"""


class UndamagedRun(NamedTuple):
    """A run of 4 steps that was stopped after step 2."""

    directory: Path
    recipe: str
    other_checkpoint: Path
    """The last checkpoint of another run."""
    final_state: dict[str, bytes]
    """What the checkpoint of step 4 contains if the run is not stopped."""


@pytest.fixture(scope="session")
def undamaged(tmp_path_factory, corpora):
    root = tmp_path_factory.mktemp("undamaged")

    def train_run(name: str, seed: int) -> tuple[str, Path]:
        text = RECIPE.format(run=root / name, seed=seed, corpora=corpora)
        return text, train(validate_recipe(YamlDocument(text, "recipe.yaml")))

    _, other_checkpoint = train_run("other", 6)
    recipe, last = train_run("run", 5)
    final_state = trained_files(last)
    shutil.rmtree(last)
    return UndamagedRun(root / "run", recipe, other_checkpoint, final_state)


@pytest.fixture
def memory_limit():
    """Makes every attempt to reserve another gigabyte of memory fail."""
    statm = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def list_tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and modification time of everything in a folder; links are not followed."""
    tree = {}
    for path in root.rglob("*"):
        status = path.lstat()
        size, mtime = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
        tree[str(path.relative_to(root))] = (status.st_mode, size, mtime)
    return tree


def copy_and_damage(case: DamageCase, undamaged: UndamagedRun, root: Path) -> Path:
    """Returns a damaged copy, beside files that links and paths out of it could reach."""
    folder = root / "plain"
    if case.use in FOLDER_USES:
        shutil.copytree(last_checkpoint(undamaged.directory), folder)
        for name in (MANIFEST, OPTIMIZER, "progress.json", "recipe.yaml"):
            (folder / name).unlink()
    else:
        shutil.copytree(undamaged.directory, root / "run")
        folder = last_checkpoint(root / "run")
    (folder.parent / "other").symlink_to(undamaged.other_checkpoint)
    (folder.parent / "outside").write_text("a secret")
    shutil.copyfile(folder / MODEL, folder.parent / "outside.safetensors")
    shutil.copyfile(folder / "config.json", folder.parent / "outside.json")
    shutil.copyfile(folder / "tokenizer.json", folder.parent / "tokenizer.json")
    case.damage(folder, random.Random(str(case)))
    if case.fix_manifest and case.use not in FOLDER_USES:
        rewrite_manifest(folder)
    return folder


def command_line(case: DamageCase, folder: Path, root: Path, corpora: Path) -> list[object]:
    """The command that uses the folder."""
    recipe, base = root / "recipe.yaml", f"model={{base: {folder}}}"
    new_run = ["train", recipe, "--set", f"run={root}/new", "--set", base]
    evaluate = ["eval", folder, "--data", f"upstream={corpora}/upstream/val"]
    evaluate += ["--tokens", 640, "--context", 64]
    return {
        "resume": ["train", recipe, "--resume", "--set", f"run={root}/run"],
        "base": new_run,
        "carry": [*new_run, "--set", "optimizer.carry=true"],
        "eval": evaluate,
        "folder base": new_run,
        "folder eval": evaluate,
        "check": ["check", recipe, "--set", base],
        "lineage": ["lineage", folder],
    }[case.use]


def is_printable(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


ADVICE = re.compile(
    r"(; |\n *)(use another|use weights|download|copy|name|put|replace|restore|undo"
    r"|resume with|shard with|expected|write the shards again)"
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if number % 4 else [])
        for number, case in enumerate(REFUSED)
    ],
)
def test_a_damaged_checkpoint_is_refused(
    case, undamaged, corpora, command, tmp_path, monkeypatch, memory_limit
):
    (tmp_path / "recipe.yaml").write_text(undamaged.recipe)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = copy_and_damage(case, undamaged, tmp_path)
    before, started = list_tree(tmp_path), time.monotonic()
    code, out, err = command(*command_line(case, folder, tmp_path, corpora))
    seconds = time.monotonic() - started
    changed = {name for name, _ in list_tree(tmp_path).items() ^ before.items()}
    assert changed <= {"new", "new/lock", "new/checkpoints", "run/lock"}
    assert code in (2, 3), err
    assert out == ""
    assert folder.name in err or f"{tmp_path}/run: " in err
    assert ADVICE.search(err), err
    assert len(err) < 3000
    assert "out of memory" not in err
    assert "MemoryError" not in err
    assert is_printable(err)
    assert seconds < 30


def test_there_are_400_different_cases():
    assert len({str(case) for case in REFUSED}) == 400


@pytest.mark.parametrize("use", [*RUN_USES, *FOLDER_USES])
def test_an_undamaged_checkpoint_is_accepted(use, undamaged, corpora, command, tmp_path):
    """In the same uses, so that the errors above are due to the damage."""
    (tmp_path / "recipe.yaml").write_text(undamaged.recipe)
    case = DamageCase("none", "none", use, lambda *_: None, fix_manifest=True)
    folder = copy_and_damage(case, undamaged, tmp_path)
    code, out, err = command(*command_line(case, folder, tmp_path, corpora))
    assert code == 0, err
    if use == "resume":
        assert trained_files(Path(out.strip())) == undamaged.final_state


@pytest.mark.parametrize("case", INSPECTED, ids=str)
def test_inspecting_a_damaged_checkpoint_is_safe(case, undamaged, corpora, command, tmp_path,
                                                 memory_limit):  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(undamaged.recipe)
    folder = copy_and_damage(case, undamaged, tmp_path)
    code, out, err = command(*command_line(case, folder, tmp_path, corpora))
    assert code in (0, 3), err
    assert is_printable(out + err)
