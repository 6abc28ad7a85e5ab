"""Small real corpora, and recipes for models that train in a second."""

import hashlib
import json
import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import settings
from repository import ROOT
from shared_folder import shared_folder
from text_corpora import WORDS, write_texts

from rewarm.checkpoints.training_state import TrainingState
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.model.architecture import PRESETS
from rewarm.stop_signals import REPEATED_SIGNALS

# Models are tiny: a second thread would only wait for the first, here and in started processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under nohup or in the background, processes would inherit that these signals are ignored.
for _number, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# A slow machine must not fail a test, and each run has to draw the same examples.
settings.register_profile("calm", deadline=None, derandomize=True, database=None)
settings.load_profile("calm")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Leaves slow tests out, and uses all cores, unless a file, a test or `-m` selects tests.

    Folders of tests run in one process per core. A file or a test runs in this process, slow or
    not; so do tests on the one GPU.
    """
    option = config.option
    names_a_file = any("::" in path or path.endswith(".py") for path in config.args)
    if not (names_a_file or option.markexpr):
        option.markexpr = "not slow"
    if getattr(option, "numprocesses", 0) is not None or hasattr(config, "workerinput"):
        return  # pytest-xdist is not installed, -n is given, or this is one of its processes
    if not (names_a_file or "gpu" in option.markexpr or option.collectonly):
        option.numprocesses, option.dist = "auto", "worksteal"


def pytest_collection_modifyitems(items):
    """Puts slow tests first, so that at the end no process has to wait for one of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _reset_compiler():
    """Compiles anew in each test on a GPU: PyTorch keeps at most eight variants of a layer."""
    yield
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_available():
        torch.compiler.reset()


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory) -> Path:
    """A byte-level BPE of 512 entries, trained on all three kinds of text."""

    def train_tokenizer(folder: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        encoder = Tokenizer(models.BPE())
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoder.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        encoder.train_from_iterator(list(WORDS.values()) * 50, trainer)
        encoder.save(str(folder / "tokenizer.json"))

    return shared_folder(tmp_path_factory, "tokenizer", train_tokenizer) / "tokenizer.json"


@pytest.fixture(scope="session")
def corpora(tmp_path_factory, tokenizer_json) -> Path:
    """A folder with upstream, downstream and third, each train (several tars) and val."""

    def write_corpora(folder: Path) -> None:
        tokenizer = load_tokenizer(str(tokenizer_json))
        for name in WORDS:
            text = write_texts(folder / f"{name}.jsonl", name, documents=200)
            write_shards([text], folder / name, tokenizer, shard_tokens=3000, validation=0.1)

    return shared_folder(tmp_path_factory, "corpora", write_corpora)


_RECIPE = """\
run: {run}
seed: 5
tokens: 20480
model:
  architecture: {{layers: 2, hidden: 32, heads: 2, vocabulary: 512, positions: 64}}
data:
  context: 64
  lanes: 2
  train:
    downstream: {{shards: {corpora}/downstream/train, weight: 70%}}
    upstream: {{shards: {corpora}/upstream/train, weight: 30%}}
  validation:
    downstream: {{shards: {corpora}/downstream/val}}
    upstream: {{shards: {corpora}/upstream/val, tokens: 640}}
batch: {{tokens: 1024, microbatch: 8}}
schedule: {{name: rewarm, peak_lr: 1e-2, min_lr: 1e-3, warmup: 10%}}
precision: fp32
every: {{log: 3, evaluate: 5, save: 10}}
"""


@pytest.fixture
def recipe_text(corpora, tmp_path) -> str:
    """A recipe from scratch: two mixed corpora, accumulation 2, 20 steps."""
    return _RECIPE.format(run=tmp_path / "run", corpora=corpora)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, corpora) -> Path:
    """The run directory of that recipe, trained once: tests read it, and copy what they change."""

    def train_recipe(folder: Path) -> None:
        from training_runs import run

        run(_RECIPE.format(run=folder / "run", corpora=corpora), folder / "run")

    return shared_folder(tmp_path_factory, "trained", train_recipe) / "run"


@pytest.fixture
def recipe_file(recipe_text, tmp_path) -> Path:
    """The same, in a file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    return path


@pytest.fixture
def thousand_steps() -> str:
    """A recipe whose numbers are round: 1,000 steps of 10 × 10 × 1,000 tokens. Nothing is there."""
    return """\
run: runs/round
tokens: 100M
model: {preset: pythia-14m}
data:
  context: 1000
  train:
    downstream: {shards: data/new, weight: 0.75}
    upstream: {shards: data/old, weight: 0.25}
batch: {tokens: 100_000, microbatch: 10}
schedule: {name: rewarm, peak_lr: 3e-4, min_lr: 3e-5, warmup: 100 steps}
"""


@pytest.fixture
def reached(tmp_path):
    """Writes a checkpoint as far as it is read without its tensors; returns its run directory."""

    def write(preset: str, recipe: str = "", **state: object) -> Path:
        run = tmp_path / "base"
        folder = run / "checkpoints" / f"step-{state['step']:08d}"
        folder.mkdir(parents=True)
        architecture = PRESETS[preset]
        empty = ("blocks", "carried", "corpora", "baseline", "losses", "guard", "schedule")
        defaults = {name: {} for name in empty} | {"stream": "0" * 32, "lineage": [], "rewarm": "0"}
        texts = {
            "config.json": json.dumps(architecture.to_hugging_face()),
            "recipe.yaml": recipe,
            "progress.json": TrainingState(**defaults | state).model_dump_json(),
            "optimizer.safetensors": "",
        }
        for name, text in texts.items():
            (folder / name).write_text(text)
        with (folder / "model.safetensors").open("wb") as weights:
            weights.truncate(4 * architecture.parameters)  # all zeros, without a disk block
        files = {
            path.name: {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest()
                if path.name in texts
                else "c0ffee" + 58 * "0",
            }
            for path in folder.iterdir()
        }
        (folder / "MANIFEST.json").write_text(json.dumps({"files": files}))
        return run

    return write


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Puts real distributions on the path, each one module with what it offers of a group."""
    site = tmp_path / "site"

    def make(name: str, source: str, group: str = "rewarm.schedules", **offered: str) -> None:
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        entries = "".join(f"{entry} = {name}:{kind}\n" for entry, kind in offered.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{entries}")
        (site / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(site)

    return make


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Puts every plug-in of this repository on the path, as pip would."""
    site = tmp_path / "plugins"
    for folder in sorted((ROOT / "plugins").glob("rewarm-*")):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        name, version = project["name"], project["version"]
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        ((group, offered),) = project["entry-points"].items()
        entries = "".join(f"{entry} = {kind}\n" for entry, kind in offered.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{entries}")
        monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(site)


@pytest.fixture(autouse=True)
def _signal_handlers_stay():
    """A command that stops with exit code 75 ignores some signals, since its process ends."""
    handlers = {number: signal.getsignal(number) for number in (*REPEATED_SIGNALS, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a command line as the console script does; returns its code, output and errors."""
    from rewarm.cli.app import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rewarm", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run
